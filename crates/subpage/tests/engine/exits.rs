//! Answers to exits that are neither a denial nor a first write.

use subpage::access::SubPage;
use subpage::domain::{
    Answer, AtOnce, Counters, Decision, EptViolation, HostError, ProcessorUse, RetryState,
    SppEvent, WriteParts,
};
use subpage::exit::{Delivery, EptQualification, SppQualification};
use subpage::frames::TableFrames;
use subpage::level::{Level, PageSize};
use subpage::rules::Action;
use subpage::slots::{SlotFlags, SlotId};
use subpage::sppt::SpptEntry;

use crate::guest::{
    BASE, Normal, TestDomain, bytes, done, gfn, gfns, guest, host_page, mapped, rule, set,
};

fn violation(page: u64, qualification: EptQualification) -> EptViolation {
    EptViolation {
        qualification: qualification.with_readable(true).with_linear_valid(true),
        gpa: bytes((BASE + page) * 4096 + 8, 1).first(),
        gla: 0x7000,
        rip: 0x1000,
        length: None,
        space: Normal,
        delivery: Delivery::default(),
    }
}

/// A page walk is never a denial; only in a restricted page is there something to do about it.
#[test]
fn page_walks_are_retried_or_completed_but_not_denied() {
    let (mut domain, _) = mapped(512, PageSize::Size2M);
    set(&mut domain, BASE, &[0, u32::MAX]);
    let walk = EptQualification::new().with_write(true).with_final_access(false);
    let mut retry = RetryState::default();
    for on_every_walk in [false, true] {
        domain.set_processor_use(ProcessorUse {
            sub_page_permissions: true,
            ept_accessed_dirty: on_every_walk,
        });
        let exit = violation(0, walk);
        let expected = Answer::PageWalk { gpa: exit.gpa, on_every_walk };
        assert_eq!(domain.ept_violation(&mut retry, &exit).0, expected);
    }
    let stale = violation(1, walk);
    assert_eq!(domain.ept_violation(&mut retry, &stale).0, Answer::Retry);
    assert_eq!(domain.ept_violation(&mut retry, &stale).0, Answer::Emulate, "C8: no livelock");
    assert_eq!(domain.counters().denied, 0);
}

/// A page that the host shares is made writable first, also where the write would be emulated (D9).
#[test]
fn a_permitted_write_waits_for_the_host_page() {
    let plain = EptQualification::new().with_write(true).with_final_access(true);
    for (spp, open) in [(false, Answer::Emulate), (true, Answer::Retry)] {
        let exit = violation(0, plain);
        let answer = |circumstance, exit| {
            let mut domain = in_circumstance(circumstance, spp);
            domain.ept_violation(&mut RetryState::default(), exit).0
        };
        assert_eq!(answer(Circumstance::None, &exit), open);
        assert_eq!(answer(Circumstance::Protected, &exit), Answer::MakeWritable(exit.gpa));
        let walk = violation(0, plain.with_final_access(false));
        assert_eq!(answer(Circumstance::Protected, &walk), Answer::MakeWritable(walk.gpa));
    }
}

/// Reads and fetches trap only on stale entries, and not forever.
#[test]
fn reads_and_fetches_are_retried_once() {
    let (mut domain, _) = mapped(512, PageSize::Size2M);
    set(&mut domain, BASE, &[0]);
    for kind in [EptQualification::new().with_read(true), EptQualification::new().with_fetch(true)]
    {
        let mut retry = RetryState::default();
        let exit = violation(0, kind.with_final_access(true));
        assert_eq!(domain.ept_violation(&mut retry, &exit).0, Answer::Retry);
        assert_eq!(domain.ept_violation(&mut retry, &exit).0, Answer::Emulate);
    }
}

/// A fetch from a page that the host does not let the guest execute is no stale entry, a read is.
#[test]
fn only_a_fetch_needs_an_executable_page() {
    let (mut domain, _) = guest(1);
    let mut page = host_page(gfn(BASE), PageSize::Size4K);
    page.executable = false;
    domain.map(Normal, gfn(BASE), page).expect("memory");
    let mut answer = |kind: EptQualification| {
        let exit = violation(0, kind.with_final_access(true));
        (domain.ept_violation(&mut RetryState::default(), &exit).0, exit.gpa)
    };
    let (fetch, gpa) = answer(EptQualification::new().with_fetch(true));
    assert_eq!(fetch, Answer::NotExecutable(gpa));
    assert_eq!(answer(EptQualification::new().with_read(true)).0, Answer::Retry);
}

/// In a slot that the guest may only read neither a store nor a walk goes further, whatever the host
/// lets be written.
#[test]
fn a_read_only_slot_answers_for_itself() {
    let (mut domain, _) = mapped(512, PageSize::Size2M);
    let flags = SlotFlags { read_only: true, log_dirty: false };
    let token = domain.set_slot_flags(Normal, SlotId(0), flags).expect("there is one");
    done(&mut domain, token);
    for host_writable in [true, false] {
        let token = domain.protect(Normal, gfns(BASE, 512), host_writable).expect("no split");
        done(&mut domain, token);
        for final_access in [true, false] {
            let kind = EptQualification::new().with_write(true).with_final_access(final_access);
            let exit = violation(0, kind);
            let (answer, _) = domain.ept_violation(&mut RetryState::default(), &exit);
            assert_eq!(answer, Answer::ReadOnlySlot(exit.gpa));
        }
    }
}

/// An entry that somebody else has written is told with its level, wherever it stands on the way.
#[test]
fn a_damaged_entry_of_the_sppt_is_told() {
    let (mut domain, _) = mapped(512, PageSize::Size2M);
    set(&mut domain, BASE, &[1]);
    let gpa = bytes(BASE * 4096, 1).first();
    let qualification = SppQualification::new().with_miss(false);
    let exit =
        SppEvent { qualification, gpa, rip: 1, space: Normal, delivery: Delivery::default() };
    let mut table = domain.sppt().expect("enabled").root();
    for level in [Level::L4, Level::L3, Level::L2, Level::L1] {
        let answer = domain.spp_event(&mut RetryState::default(), &exit).0;
        assert_eq!(answer, Answer::Retry);
        let index = level.index(gpa.gfn());
        let good = domain.frames().load(table, index);
        let entry = good | 2;
        domain.frames_mut().store(table, index, entry);
        let answer = domain.spp_event(&mut RetryState::default(), &exit).0;
        assert_eq!(answer, Answer::Host(HostError::DamagedSppt { level, entry }));
        domain.frames_mut().store(table, index, good);
        if level != Level::L1 {
            table = SpptEntry::from(good).table().expect("linked");
        }
    }
}

/// Each way in which something can stand against letting a write through at once, alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Circumstance {
    None,
    Tracked,
    LogsDirty,
    ReadOnly,
    Protected,
    Unmapped,
}

fn in_circumstance(circumstance: Circumstance, sub_page_permissions: bool) -> TestDomain {
    let (mut domain, _) = mapped(512, PageSize::Size2M);
    domain.set_processor_use(ProcessorUse { sub_page_permissions, ept_accessed_dirty: false });
    // Page 0: a map; page 1: rules, of which one is no denial, next to bytes that nothing forbids.
    set(&mut domain, BASE, &[!0b110]);
    let page = (BASE + 1) * 4096;
    let rules = [
        (8, 8, Action::Deny),
        (128, 128, Action::Deny),
        (256, 4, Action::Log),
        (272, 4, Action::AllowOnce),
    ];
    for (offset, length, action) in rules {
        let (_, token) =
            domain.add_rule(rule(bytes(page + offset, length), action)).expect("a good rule");
        done(&mut domain, token);
    }
    let flags = |read_only, log_dirty| SlotFlags { read_only, log_dirty };
    let token = match circumstance {
        Circumstance::None => return domain,
        Circumstance::Tracked => domain.track(bytes((BASE + 9) * 4096, 8)).expect("memory").1,
        Circumstance::LogsDirty => {
            domain.set_slot_flags(Normal, SlotId(0), flags(false, true)).expect("a slot")
        }
        Circumstance::ReadOnly => {
            domain.set_slot_flags(Normal, SlotId(0), flags(true, false)).expect("a slot")
        }
        Circumstance::Protected => domain.protect(Normal, gfns(BASE, 3), false).expect("memory"),
        Circumstance::Unmapped => domain.unmap(Normal, gfns(BASE, 3)).expect("memory"),
    };
    done(&mut domain, token);
    domain
}

/// An open write is one that is permitted, that no rule has a sub-page in, and whose permission notes
/// nothing; and all such writes of one page are open where nothing is tracked or logged.
#[test]
fn an_open_write_needs_no_second_look() {
    use Circumstance as C;
    let mut open = 0;
    for circumstance in [C::None, C::Tracked, C::LogsDirty, C::ReadOnly] {
        let mut domain = in_circumstance(circumstance, false);
        for (page, offset, length) in (0..4)
            .flat_map(|page| (0..420).step_by(4).map(move |offset| (page, offset)))
            .chain([(0, 4092), (1, 4092), (2, 4092)])
            .flat_map(|(page, offset)| [1, 4, 8, 16, 130].map(|n| (page, offset, n)))
        {
            let write = bytes((BASE + page) * 4096 + offset, length);
            // Of a write into the next page, only what lies in the first.
            let touched = (offset / 128..=((offset + length - 1) / 128).min(31))
                .fold(0, |all, at| all | 1 << at);
            let map = domain.permitted(write.first().gfn()).bits();
            let expected = circumstance == C::None
                && write.first().gfn() == write.last().gfn()
                && map & touched == touched;
            assert_eq!(domain.is_open(Normal, write), expected, "{circumstance:?}: {write:?}");
            if !expected {
                continue;
            }
            open += 1;
            let first = write.first().as_u64() & !127;
            let whole = bytes(first, (write.last().as_u64() | 127) - first + 1);
            assert_eq!(domain.rules().touching(whole).count(), 0, "{write:?}");
            let before = *domain.counters();
            let decision = domain.authorize_write(Normal, write).expect("nothing to be noted");
            assert_eq!((decision, domain.counters()), (Decision::Allowed, &before), "{write:?}");
        }
    }
    assert!(open > 200, "{open}: the common case was met");
    let nowhere = bytes(0xffff_0000_0000, 8);
    assert!(!in_circumstance(C::None, false).is_open(Normal, nowhere), "no slot");
}

/// What is permitted at once is what the whole answer has emulated at the first trap, permits, and
/// counts the same; what is denied at once, the whole answer denies the same; all that the whole answer
/// does besides is left to it, and so is an exit in another page than the write.
#[test]
fn a_write_is_decided_at_once_only_where_the_whole_answer_says_the_same() {
    use Circumstance as C;
    let (mut permitted, mut denied) = (0, 0);
    for spp in [false, true] {
        for circumstance in
            [C::None, C::Tracked, C::LogsDirty, C::ReadOnly, C::Protected, C::Unmapped]
        {
            let mut quick = in_circumstance(circumstance, spp);
            let mut whole = in_circumstance(circumstance, spp);
            for (page, offset, length) in (0..4)
                .flat_map(|page| (0..420).step_by(4).map(move |offset| (page, offset)))
                .chain([(0, 4092), (1, 4092), (2, 4092)])
                .flat_map(|(page, offset)| [1, 4, 8, 16, 130].map(|n| (page, offset, n)))
            {
                let write = bytes((BASE + page) * 4096 + offset, length);
                let in_one_page = write.first().gfn() == write.last().gfn();
                let plain = EptQualification::new().with_write(true).with_final_access(true);
                let before = *quick.counters();
                for elsewhere in [page + 1, page + 512] {
                    let exit = violation(elsewhere, plain);
                    assert_eq!(quick.decide_at_once(&exit, write), None, "{write:?}: {exit:?}");
                    assert_eq!(*quick.counters(), before, "{write:?}: {exit:?}");
                }
                for at in [write.first(), write.last()] {
                    if spp && SubPage::of(at) != SubPage::of(write.first()) {
                        // Its sub-page may be open: the whole answer takes that for stale first.
                        continue;
                    }
                    let exit = EptViolation { gpa: at, ..violation(page, plain) };
                    let parts = WriteParts::one(write);
                    let decision = whole.check_write_parts(Normal, &parts);
                    let before = *quick.counters();
                    let at_once = quick.decide_at_once(&exit, write);
                    let ours = *quick.counters();
                    let counted = *whole.counters();
                    let retry = &mut RetryState::default();
                    let (answer, _) = whole.ept_violation_by(retry, &exit, &parts);
                    let theirs = *whole.counters();
                    let expected = match answer {
                        // What else waits for the write is not looked at.
                        Answer::Deny(denial)
                            if in_one_page
                                && !matches!(circumstance, C::Tracked | C::LogsDirty) =>
                        {
                            denied += 1;
                            // The exit's linear address is that of the byte which trapped.
                            let told = (at == write.first()).then_some(exit.gla);
                            assert_eq!(denial.gla, told, "{write:?}: {exit:?}");
                            Some(AtOnce::Denied(denial))
                        }
                        Answer::Emulate
                            if in_one_page
                                && circumstance == C::None
                                && decision == Decision::Allowed =>
                        {
                            permitted += 1;
                            let gfn = write.first().gfn();
                            let place = whole.mapping(Normal, gfn).expect("mapped");
                            Some(AtOnce::Permitted(place.host_frame(gfn)))
                        }
                        _ => None,
                    };
                    let context = || format!("{circumstance:?}, spp {spp}: {write:?}: {exit:?}");
                    assert_eq!(at_once, expected, "{}: {answer:?}", context());
                    if at_once.is_none() {
                        assert_eq!(ours, before, "{}", context());
                        continue;
                    }
                    let by = |now: Counters, then: Counters| {
                        [
                            now.ept_violations - then.ept_violations,
                            now.emulations - then.emulations,
                            now.denied - then.denied,
                            now.reported - then.reported,
                            now.retries - then.retries,
                        ]
                    };
                    assert_eq!(by(ours, before), by(theirs, counted), "{}", context());
                }
            }
        }
    }
    assert!(permitted > 200, "{permitted}: the common case was met");
    assert!(denied > 200, "{denied}: and so was the other");
}

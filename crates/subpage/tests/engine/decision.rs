//! The decision function: every offset, every size, every single denied sub-page.

use subpage::access::AccessMap;
use subpage::domain::{Decision, WriteParts};
use subpage::rules::Action;
use subpage::slots::{SlotFlags, SlotId};

use crate::guest::{BASE, Normal, bytes, done, gfns, guest, rule, set};

const PAGE: u64 = BASE * 4096;

/// The same question answered byte by byte.
fn naive(map: u32, first: u64, length: u64) -> Option<u64> {
    (first..first + length).find(|byte| {
        let page = byte / 4096 - BASE;
        page == 0 && map >> (byte % 4096 / 128) & 1 == 0
    })
}

#[test]
fn every_offset_size_and_single_denied_sub_page() {
    let (mut domain, _) = guest(2);
    for denied in 0..32 {
        let map = !(1u32 << denied);
        set(&mut domain, BASE, &[map]);
        for offset in 0..4096 {
            for length in 1..=64 {
                let first = PAGE + offset;
                let expected = match naive(map, first, length) {
                    None => Decision::Allowed,
                    Some(byte) => {
                        Decision::Denied { rule: None, at: bytes(byte, 1).first(), stop: false }
                    }
                };
                assert_eq!(domain.check_write(Normal, bytes(first, length)), expected);
            }
        }
    }
}

#[test]
fn a_write_that_crosses_pages_is_one_write() {
    let (mut domain, _) = guest(2);
    set(&mut domain, BASE + 1, &[!1]);
    let crossing = bytes(PAGE + 4092, 8);
    let at = bytes(PAGE + 4096, 1).first();
    assert_eq!(
        domain.check_write(Normal, crossing),
        Decision::Denied { rule: None, at, stop: false }
    );
    assert_eq!(domain.check_write(Normal, bytes(PAGE + 4088, 8)), Decision::Allowed);
    let beyond = bytes(PAGE + 2 * 4096 - 1, 2);
    let outside = Decision::NotMapped { at: bytes(PAGE + 2 * 4096, 1).first() };
    assert_eq!(domain.check_write(Normal, beyond), outside);
}

#[test]
fn read_only_slots_are_not_a_matter_of_sub_pages() {
    let (mut domain, _) = guest(1);
    let flags = SlotFlags { read_only: true, log_dirty: false };
    domain.add_slot(Normal, SlotId(1), gfns(BASE + 1, 1), flags).expect("a free place");
    let write = bytes(PAGE + 4096, 4);
    let decision = domain.check_write(Normal, write);
    assert_eq!(decision, Decision::NotEligible { at: write.first() });
    assert!(!decision.permits());
}

#[test]
fn bytes_outside_a_fine_rule_are_let_through() {
    let (mut domain, _) = guest(1);
    let (id, token) =
        domain.add_rule(rule(bytes(PAGE + 200, 10), Action::Deny)).expect("a good rule");
    done(&mut domain, token);
    for (offset, length, denied) in
        [(192, 8, false), (193, 8, true), (209, 1, true), (210, 8, false), (128, 64, false)]
    {
        let decision = domain.check_write(Normal, bytes(PAGE + offset, length));
        let expected = if denied {
            let at = bytes(PAGE + offset.max(200), 1).first();
            Decision::Denied { rule: Some(id), at, stop: false }
        } else {
            Decision::Allowed
        };
        assert_eq!(decision, expected, "{length} bytes at {offset}");
    }
}

#[test]
fn the_strongest_touched_rule_decides() {
    let (mut domain, _) = guest(1);
    let rules = [
        rule(bytes(PAGE, 512), Action::Log),
        rule(bytes(PAGE + 128, 8), Action::AllowOnce),
        rule(bytes(PAGE + 256, 8), Action::Deny),
        rule(bytes(PAGE + 256, 1), Action::Stop),
    ];
    let (first, token) = domain.add_rules(&rules).expect("good rules");
    done(&mut domain, token);
    let id = |n: u64| subpage::rules::RuleId(first.0 + n);
    let at = |offset: u64| bytes(PAGE + offset, 1).first();
    let write = |offset| bytes(PAGE + offset, 1);
    assert_eq!(domain.check_write(Normal, write(0)), Decision::Reported { rule: id(0), at: at(0) });
    assert_eq!(
        domain.check_write(Normal, write(128)),
        Decision::Reported { rule: id(1), at: at(128) }
    );
    assert_eq!(
        domain.check_write(Normal, write(257)),
        Decision::Denied { rule: Some(id(2)), at: at(257), stop: false }
    );
    assert_eq!(
        domain.check_write(Normal, write(256)),
        Decision::Denied { rule: Some(id(3)), at: at(256), stop: true }
    );
}

#[test]
fn allow_once_is_spent_by_the_write_and_not_by_the_question() {
    let (mut domain, _) = guest(1);
    let (id, token) = domain.add_rule(rule(bytes(PAGE, 4), Action::AllowOnce)).expect("a rule");
    done(&mut domain, token);
    let write = bytes(PAGE + 2, 4);
    for _ in 0..3 {
        assert!(domain.check_write(Normal, write).permits());
    }
    assert!(domain.authorize_write(Normal, write).expect("memory").permits());
    let denied = Decision::Denied { rule: Some(id), at: write.first(), stop: false };
    assert_eq!(domain.authorize_write(Normal, write), Ok(denied));
    assert_eq!(domain.counters().denied, 1);
}

#[test]
fn two_parts_of_one_write_stand_or_fall_together() {
    let (mut domain, _) = guest(1);
    set(&mut domain, BASE, &[!1]);
    let allowed = domain.check_write(Normal, bytes(PAGE + 4092, 4));
    let denied = domain.check_write(Normal, bytes(PAGE, 4));
    assert!(!allowed.and(denied).permits());
    assert!(!denied.and(allowed).permits());
    assert_eq!(allowed.and(allowed), Decision::Allowed);
    assert_eq!(AccessMap::ALL.count(), 32);
}

/// A write to two pages that are not neighbours is one write: all or none of it, by the strongest rule,
/// whichever page that is in.
#[test]
fn a_write_in_two_runs_is_decided_by_the_strongest_rule() {
    let (mut domain, _) = guest(8);
    let first = bytes(PAGE + 4088, 8);
    let second = bytes(PAGE + 4096 * 4, 8);
    let rules = [
        rule(bytes(PAGE + 4092, 4), Action::Deny),
        rule(bytes(PAGE + 4096 * 4, 2), Action::Stop),
        rule(bytes(PAGE + 4096 * 4 + 128, 8), Action::AllowOnce),
    ];
    let (id, token) = domain.add_rules(&rules).expect("good rules");
    done(&mut domain, token);
    let stop = Decision::Denied {
        rule: Some(subpage::rules::RuleId(id.0 + 1)),
        at: second.first(),
        stop: true,
    };
    let both = WriteParts::two(first, second);
    assert_eq!(domain.check_write_parts(Normal, &both), stop);
    assert_eq!(domain.authorize_write_parts(Normal, &both), Ok(stop));
    assert_eq!(domain.counters().denied, 1);
    // Adjoining runs are one.
    let joined = WriteParts::two(bytes(PAGE, 4), bytes(PAGE + 4, 4));
    assert_eq!(joined.runs(), [bytes(PAGE, 8)]);
    // An "allow once" that only the second run touches is spent by the whole.
    let once = WriteParts::two(bytes(PAGE + 256, 8), bytes(PAGE + 4096 * 4 + 128, 8));
    assert!(domain.authorize_write_parts(Normal, &once).expect("memory").permits());
    assert!(!domain.authorize_write_parts(Normal, &once).expect("memory").permits());
}

/// What is considered takes effect when it is committed, and not at all otherwise.
#[test]
fn a_considered_write_takes_effect_when_it_is_committed() {
    let (mut domain, _) = guest(8);
    let once = bytes(PAGE + 128, 8);
    let (_, token) = domain
        .add_rules(&[rule(once, Action::AllowOnce), rule(bytes(PAGE + 512, 8), Action::Deny)])
        .expect("good rules");
    done(&mut domain, token);
    let write = WriteParts::one(once);
    for _ in 0..2 {
        assert!(domain.consider_write(Normal, &write).decision().permits());
    }
    assert!(domain.consider_write(Normal, &write).commit().expect("memory").permits());
    assert!(!domain.consider_write(Normal, &write).decision().permits());

    let denied = WriteParts::one(bytes(PAGE + 512, 1));
    let _ = domain.consider_write(Normal, &denied).decision();
    assert_eq!(domain.counters().denied, 0);
    assert!(!domain.consider_write(Normal, &denied).commit().expect("memory").permits());
    assert_eq!(domain.counters().denied, 1);
}

#[test]
#[should_panic(expected = "a part lies within its write")]
fn what_was_not_considered_is_not_committed() {
    let (mut domain, _) = guest(8);
    let write = WriteParts::one(bytes(PAGE, 64));
    let _ = domain.consider_write(Normal, &write).commit_part(bytes(PAGE + 60, 8));
}

#[test]
#[should_panic(expected = "what is not allowed whole has no parts")]
fn of_a_denied_write_no_part_is_committed() {
    let (mut domain, _) = guest(8);
    let (_, token) = domain.add_rules(&[rule(bytes(PAGE, 8), Action::Deny)]).expect("a good rule");
    done(&mut domain, token);
    let write = WriteParts::one(bytes(PAGE, 64));
    let _ = domain.consider_write(Normal, &write).commit_part(bytes(PAGE + 32, 8));
}

/// Of two parts of one write that both want a report, the first is reported.
#[test]
fn of_two_reports_the_first_stays() {
    let report = |number| Decision::Reported {
        rule: subpage::rules::RuleId(number),
        at: bytes(number, 1).first(),
    };
    assert_eq!(report(1).and(report(2)), report(1));
    assert_eq!(Decision::Allowed.and(report(2)), report(2));
    // What stops a part is told before a report, and of two such parts the first is told.
    let denied =
        |number| Decision::Denied { rule: None, at: bytes(number, 1).first(), stop: false };
    assert_eq!(report(1).and(denied(2)), denied(2));
    assert_eq!(denied(1).and(report(2)), denied(1));
    assert_eq!(denied(1).and(denied(2)), denied(1));
}

/// A rule that only reports does not open what an access map denies, neither in the same page nor in
/// the next.
#[test]
fn a_report_opens_nothing_that_a_map_denies() {
    let (mut domain, _) = guest(2);
    set(&mut domain, BASE, &[!(1 << 31)]);
    for at in [PAGE + 4090, PAGE + 4096] {
        let (_, token) = domain.add_rule(rule(bytes(at, 4), Action::Log)).expect("a good rule");
        done(&mut domain, token);
    }
    for (offset, length) in [(4088, 4), (4092, 4), (4092, 8), (4095, 2)] {
        let write = bytes(PAGE + offset, length);
        let denied = Decision::Denied { rule: None, at: write.first(), stop: false };
        assert_eq!(domain.check_write(Normal, write), denied, "{write:?}");
    }
    assert!(domain.check_write(Normal, bytes(PAGE + 4096, 2)).permits());
}

/// A permitted write spends what is in force and allows once, and nothing else that it touches.
#[test]
fn only_what_allows_once_and_is_in_force_is_spent() {
    let (mut domain, _) = guest(1);
    let at = bytes(PAGE, 8);
    let (log, token) = domain.add_rule(rule(at, Action::Log)).expect("a good rule");
    done(&mut domain, token);
    let (once, token) =
        domain.add_some_armed(&[(rule(at, Action::AllowOnce), false)]).expect("a good rule");
    done(&mut domain, token);
    for _ in 0..2 {
        let reported = Decision::Reported { rule: log, at: at.first() };
        assert_eq!(domain.authorize_write(Normal, at), Ok(reported));
    }
    assert!([log, once].iter().all(|id| !domain.rules().get(*id).expect("a rule").spent));
    let token = domain.arm_rules(&[once]).expect("a rule");
    done(&mut domain, token);
    assert!(domain.authorize_write(Normal, at).expect("memory").permits());
    assert!(!domain.authorize_write(Normal, at).expect("memory").permits());
    assert!(domain.rules().get(once).expect("a rule").spent);
    assert!(!domain.rules().get(log).expect("a rule").spent);
}

/// Of a write under a mask, only the bytes that it writes are decided about, also across pages that are
/// no neighbours.
#[test]
fn only_the_bytes_under_a_mask_count() {
    const BYTES: u64 = 12;
    const ENDS: u64 = 1 | 1 << (BYTES - 1);
    let first = PAGE + 4096 - 5;
    let far = PAGE + 3 * 4096;
    for denied in 0..BYTES {
        let (mut domain, _) = guest(5);
        let at = if denied < 5 { first + denied } else { far + denied - 5 };
        let (id, token) = domain.add_rule(rule(bytes(at, 1), Action::Deny)).expect("memory");
        done(&mut domain, token);
        for middle in 0..1 << (BYTES - 2) {
            let mask = ENDS | middle << 1;
            let parts = WriteParts::two(bytes(first, 5), bytes(far, BYTES - 5)).under_mask(mask);
            let expected = if mask >> denied & 1 == 0 {
                Decision::Allowed
            } else {
                Decision::Denied { rule: Some(id), at: bytes(at, 1).first(), stop: false }
            };
            assert_eq!(domain.check_write_parts(Normal, &parts), expected, "{mask:#x}, {denied}");
        }
    }
}

/// What a mask writes is exactly the runs of its set bits, cut where the write goes on elsewhere.
#[test]
fn a_mask_writes_the_runs_of_its_bits() {
    let runs = |parts: &WriteParts| parts.with_written(<[_]>::to_vec);
    let far = PAGE + 3 * 4096;
    let (first, second) = (bytes(PAGE + 4090, 6), bytes(far, 6));
    let parts = WriteParts::two(first, second);
    assert_eq!((parts.first(), parts.last(), parts.bytes()), (first, second, 12));
    assert_eq!(runs(&parts), [first, second]);
    let masked = parts.under_mask(0b1000_0111_1001);
    let expected = [(PAGE + 4090, 1), (PAGE + 4093, 3), (far, 1), (far + 5, 1)];
    assert_eq!(runs(&masked), expected.map(|(first, length)| bytes(first, length)));
    assert_eq!(masked.runs(), [first, second]);
    let whole = bytes(PAGE, 64);
    assert_eq!(runs(&WriteParts::one(whole).under_mask(u64::MAX)), [whole]);
    let halves = WriteParts::two(bytes(PAGE + 4064, 32), bytes(far, 32)).under_mask(u64::MAX);
    assert_eq!(runs(&halves), halves.runs());
    let every_second = WriteParts::one(bytes(PAGE, 63)).under_mask(u64::MAX / 3);
    assert_eq!(runs(&every_second).len(), 32);
}

/// Where a rule is met by several runs, the first byte that it denies is told.
#[test]
fn the_first_byte_that_a_rule_denies_is_in_the_first_run() {
    let (mut domain, _) = guest(5);
    let (id, token) = domain.add_rule(rule(bytes(PAGE, 4 * 4096), Action::Deny)).expect("memory");
    done(&mut domain, token);
    let parts = WriteParts::two(bytes(PAGE + 4090, 6), bytes(PAGE + 3 * 4096, 2));
    let at = bytes(PAGE + 4090, 1).first();
    let expected = Decision::Denied { rule: Some(id), at, stop: false };
    assert_eq!(domain.check_write_parts(Normal, &parts), expected);
}

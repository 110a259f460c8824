//! Page-granular dirty logging on top of sub-page permissions.

use subpage::address::Gfn;
use subpage::domain::{Answer, EptViolation, RetryState};
use subpage::exit::{Delivery, EptQualification};
use subpage::level::{Level, PageSize};
use subpage::slots::{SlotFlags, SlotId};

use crate::guest::{
    BASE, Normal, TestDomain, bare, bytes, done, gfn, gfns, host_page, mapped, set,
};

const SLOT: SlotId = SlotId(0);
const LOGGING: SlotFlags = SlotFlags { read_only: false, log_dirty: true };

fn write_violation(offset: u64) -> EptViolation {
    let gpa = bytes(BASE * 4096 + offset, 1).first();
    EptViolation {
        qualification: EptQualification::new()
            .with_write(true)
            .with_readable(true)
            .with_linear_valid(true)
            .with_final_access(true),
        gpa,
        gla: gpa.as_u64(),
        rip: 0x1000,
        length: None,
        space: Normal,
        delivery: Delivery::default(),
    }
}

fn trap(domain: &mut TestDomain, offset: u64) -> Answer {
    domain.ept_violation(&mut RetryState::default(), &write_violation(offset)).0
}

fn harvest(domain: &mut TestDomain) -> Vec<Gfn> {
    let (pending, token) = domain.harvest_dirty(Normal, SLOT).expect("a logging slot");
    let completed = token.without_processors();
    domain.finish(&completed);
    pending.ready(&completed).expect("completed").iter().collect()
}

fn logging() -> TestDomain {
    let (mut domain, _) = mapped(512, PageSize::Size2M);
    let token = domain.set_slot_flags(Normal, SLOT, LOGGING).expect("there is one");
    assert!(token.is_required());
    done(&mut domain, token);
    domain
}

#[test]
fn the_first_write_splits_marks_and_opens_one_page() {
    let mut domain = logging();
    assert_eq!(trap(&mut domain, 4096 + 5), Answer::Resume);
    let opened = domain.mapping(Normal, gfn(BASE + 1)).expect("mapped");
    assert_eq!(opened.level, Level::L1);
    assert!(opened.entry.write());
    assert!(!domain.mapping(Normal, gfn(BASE)).expect("mapped").entry.write());
    assert_eq!(harvest(&mut domain), [gfn(BASE + 1)]);
    assert!(!domain.mapping(Normal, gfn(BASE + 1)).expect("mapped").entry.write());
    assert_eq!(harvest(&mut domain), []);
}

#[test]
fn a_harvest_can_be_read_only_when_its_re_arming_is_in_force() {
    let mut domain = logging();
    assert_eq!(trap(&mut domain, 0), Answer::Resume);
    let (pending, token) = domain.harvest_dirty(Normal, SLOT).expect("a logging slot");
    assert!(token.is_required());
    let early = domain.set_access(gfn(BASE + 9), &[subpage::access::AccessMap::ALL]).expect("ok");
    assert!(!early.is_required());
    let pending = pending.ready(&early.without_processors()).expect_err("not in force yet");
    let completed = token.without_processors();
    assert_eq!(pending.ready(&completed).expect("in force").iter().count(), 1);
    domain.finish(&completed);
}

#[test]
fn a_denied_write_is_not_dirty_and_a_permitted_one_is() {
    let mut domain = logging();
    set(&mut domain, BASE, &[!1]);
    assert!(matches!(trap(&mut domain, 0), Answer::Deny(_)));
    assert_eq!(harvest(&mut domain), []);
    assert_eq!(trap(&mut domain, 128), Answer::Resume);
    let entry = domain.mapping(Normal, gfn(BASE)).expect("mapped").entry;
    assert!(entry.sub_page_write() && !entry.write(), "bit 61 is back, W is not");
    assert_eq!(harvest(&mut domain), [gfn(BASE)]);
    let entry = domain.mapping(Normal, gfn(BASE)).expect("mapped").entry;
    assert!(!entry.sub_page_write(), "armed again: losing bit 61 counts (D24)");
}

#[test]
fn emulated_and_logged_writes_are_dirty_too() {
    let mut domain = logging();
    let decision = domain.authorize_write(Normal, bytes(BASE * 4096 + 4090, 12)).expect("memory");
    assert!(decision.permits());
    domain.note_logged(Normal, [gfn(BASE + 7), gfn(3)].into_iter());
    assert_eq!(harvest(&mut domain), [gfn(BASE), gfn(BASE + 1), gfn(BASE + 7)]);
}

#[test]
fn switching_the_log_off_opens_and_merges() {
    let mut domain = logging();
    assert_eq!(trap(&mut domain, 0), Answer::Resume);
    let token = domain.set_slot_flags(Normal, SLOT, SlotFlags::default()).expect("there is one");
    assert!(token.is_required(), "a processor may still walk the table of small pages");
    done(&mut domain, token);
    assert_eq!(domain.retired_frames(), 0);
    let place = domain.mapping(Normal, gfn(BASE)).expect("mapped");
    assert_eq!(place.level, Level::L2);
    assert!(place.entry.write());
}

/// Where no page was split there is no table to wait for, and every leaf gets a right back.
#[test]
fn switching_off_a_log_of_nothing_needs_no_invalidation() {
    let mut domain = logging();
    let token = domain.set_slot_flags(Normal, SLOT, SlotFlags::default()).expect("there is one");
    assert!(!token.is_required());
    assert!(domain.mapping(Normal, gfn(BASE)).expect("mapped").entry.write());
}

/// Pages that the host offers one by one stay so when a flag changes that has nothing to do with the
/// log.
#[test]
fn only_the_end_of_a_log_merges_pages() {
    let (mut domain, _) = mapped(512, PageSize::Size4K);
    for read_only in [true, false] {
        let flags = SlotFlags { read_only, log_dirty: false };
        let token = domain.set_slot_flags(Normal, SLOT, flags).expect("there is one");
        done(&mut domain, token);
        let place = domain.mapping(Normal, gfn(BASE)).expect("mapped");
        assert_eq!((place.level, place.entry.write()), (Level::L1, !read_only));
    }
}

/// Of a large page of either size the one page that is written becomes dirty.
#[test]
fn the_first_write_splits_a_page_of_1_gib() {
    let giant = 1 << 18;
    let (mut domain, _) = bare();
    let pages = gfns(giant, giant);
    domain.add_slot(Normal, SLOT, pages, LOGGING).expect("a free place");
    let page = host_page(pages.first(), PageSize::Size1G);
    domain.map(Normal, pages.first(), page).expect("memory");
    assert_eq!(domain.mapping(Normal, gfn(giant)).expect("mapped").level, Level::L3);
    let gpa = bytes((giant + 700) * 4096, 1).first();
    let exit = EptViolation { gpa, ..write_violation(0) };
    let (answer, _) = domain.ept_violation(&mut RetryState::default(), &exit);
    assert_eq!(answer, Answer::Resume);
    let leaf = |page| domain.mapping(Normal, gfn(page)).expect("mapped");
    assert_eq!(
        [giant, giant + 512, giant + 700].map(|page| leaf(page).level),
        [Level::L2, Level::L1, Level::L1]
    );
    assert!(leaf(giant + 700).entry.write() && !leaf(giant + 701).entry.write());
    assert_eq!(harvest(&mut domain), [gfn(giant + 700)]);
}

/// Pages of which all are dirty have equal leaves, but a large one could not be armed page by page.
#[test]
fn a_logging_slot_is_not_merged_when_a_restriction_goes() {
    let mut domain = logging();
    set(&mut domain, BASE, &[1]);
    domain.note_logged(Normal, (BASE..BASE + 512).map(gfn));
    set(&mut domain, BASE, &[u32::MAX]);
    assert!(domain.mapping(Normal, gfn(BASE)).expect("mapped").entry.write());
    assert_eq!(harvest(&mut domain).len(), 512);
    let armed = domain.mapping(Normal, gfn(BASE + 1)).expect("mapped");
    assert!(!armed.entry.write(), "the next write has to trap");
    assert_eq!(trap(&mut domain, 4096), Answer::Resume, "the page is armed again");
    assert_eq!(harvest(&mut domain), [gfn(BASE + 1)]);
}

/// A large leaf stands for 512 pages, so its first page does not decide whether it is armed.
#[test]
fn a_large_leaf_stays_armed_when_its_first_page_is_dirty() {
    let mut domain = logging();
    domain.note_logged(Normal, [gfn(BASE)].into_iter());
    let token = domain.protect(Normal, gfns(BASE, 512), true).expect("no split");
    done(&mut domain, token);
    let leaf = domain.mapping(Normal, gfn(BASE + 1)).expect("mapped");
    assert_eq!((leaf.level, leaf.entry.write()), (Level::L2, false));
    assert_eq!(trap(&mut domain, 4096), Answer::Resume);
    assert_eq!(harvest(&mut domain), [gfn(BASE), gfn(BASE + 1)]);
}

/// The part of a write in the next page traps by itself, and is dirty only then.
#[test]
fn a_write_across_a_page_end_marks_the_page_that_trapped() {
    let mut domain = logging();
    let exit = EptViolation { length: Some(8), ..write_violation(4092) };
    let (answer, _) = domain.ept_violation(&mut RetryState::default(), &exit);
    assert_eq!(answer, Answer::Resume);
    assert_eq!(harvest(&mut domain), [gfn(BASE)]);
}

//! Tracking of written sub-pages.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::hypervisor::test_hooks::{Counter, growth};
use crate::hypervisor::{Harvest, Tracking, errno, get_access, has_spp, set_access};
use crate::memory::paging::{ACCESSED, DIRTY, Space, USER, WRITE};
use crate::memory::{PAGE, frames};
use crate::processor::start::{give, join, start, wait_for};
use crate::test;

/// What was written is harvested once, page by page, and nothing else is.
fn tracking_harvests_what_was_written() {
    let pages = frames::pages(4);
    let tracking = Tracking::start(pages);
    let mut harvest = Harvest::with_room(4);
    assert_eq!(tracking.harvest(&mut harvest), 0);
    pages.page(0).write(0x7f, 0xffff_u16);
    pages.page(2).write(0xf80, 1_u8);
    assert_eq!(pages.page(0).read::<u16>(0x7f), 0xffff);
    assert_eq!(pages.page(2).read::<u8>(0xf80), 1);
    assert_eq!(get_access(pages), !0, "tracking is no restriction");
    assert_eq!(tracking.harvest(&mut harvest), 2);
    let spp = has_spp();
    // Bochs judges the store across sub-pages by its first byte (`docs/conformance.md`).
    assert_eq!(harvest.written(pages.page(0)) & if spp { 1 } else { 3 }, if spp { 1 } else { 3 });
    assert_eq!(harvest.written(pages.page(2)), 1 << 31);
    assert_eq!(tracking.harvest(&mut harvest), 0);
    // Armed again: the second write of a round does not trap any more where SPP is.
    let tracked = growth(Counter::Tracked, || {
        pages.page(2).write(0xf80, 2_u8);
        pages.page(2).write(0xf81, 3_u8);
    });
    assert_eq!(tracked, 1);
    assert_eq!(tracking.harvest(&mut harvest), 1);
    assert_eq!(harvest.written(pages.page(2)), 1 << 31);
    // No room: nothing is taken.
    pages.page(1).write(0, 1_u8);
    pages.page(3).write(0, 1_u8);
    assert_eq!(tracking.harvest(&mut Harvest::with_room(1)), errno::ENOSPC);
    assert_eq!(tracking.harvest(&mut harvest), 2);
    assert_eq!((harvest.written(pages.page(1)), harvest.written(pages.page(3))), (1, 1));
    assert_eq!(tracking.stop(), 0);
    assert_eq!(tracking.harvest(&mut harvest), errno::ENOENT);
    let violations = growth(Counter::Exits(48), || pages.write(0, 5_u64));
    assert_eq!(violations, 0);
}
test!(tracking_harvests_what_was_written);

/// Accessed and dirty flags that walks set in a tracked table are harvested.
fn flags_in_a_tracked_table_are_harvested() {
    let space = Space::new();
    let page = frames::page();
    space.map(0, page, WRITE | USER);
    // One entry in another sub-page, which stays as it is.
    space.map(100, page, WRITE | USER);
    let tracking = Tracking::start(space.table);
    let mut harvest = Harvest::with_room(1);
    let _ = tracking.harvest(&mut harvest);
    let before = space.table.read::<u64>(0);
    space.run(|| Space::page(0).write(0, 5_u64));
    assert_eq!(page.read::<u64>(0), 5);
    let set = space.table.read::<u64>(0) & !before;
    assert_eq!(set, ACCESSED | DIRTY);
    assert_eq!(tracking.harvest(&mut harvest), 1);
    assert_eq!(harvest.written(space.table), 1);
    assert_eq!(tracking.stop(), 0);
}
test!(flags_in_a_tracked_table_are_harvested);

/// A denied write is not a written sub-page; a permitted one next to it is.
fn tracking_beside_restrictions() {
    let page = frames::page();
    set_access(page, !1);
    let tracking = Tracking::start(page);
    let mut harvest = Harvest::with_room(1);
    let denied = growth(Counter::Denied, || {
        page.write(0, 1_u64);
        page.write(0x80, 1_u64);
    });
    assert_eq!(denied, 1);
    assert_eq!(page.read::<u64>(0), 0);
    assert_eq!(tracking.harvest(&mut harvest), 1);
    assert_eq!(harvest.written(page), 1 << 1);
    assert_eq!(tracking.stop(), 0);
    assert_eq!(get_access(page), !1);
    page.write(0, 1_u64);
    assert_eq!(page.read::<u64>(0), 0);
}
test!(tracking_beside_restrictions);

/// The tracked page, and how many writes to it are done.
static PAGE_ADDRESS: AtomicU64 = AtomicU64::new(0);
static WRITTEN: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicU64 = AtomicU64::new(0);

/// Which sub-page write `number` goes to: any, and never in a simple order.
const fn sub_page_of(number: u64) -> u64 {
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % 32
}

/// Lets some time pass. Not by PAUSE, of which one may take long.
fn delay(turns: u64) {
    for turn in 0..turns {
        core::hint::black_box(turn);
    }
}

/// Harvests while another processor writes: no write is lost, and none is invented.
fn tracking_harvested_against_a_writer() {
    let page = frames::page();
    PAGE_ADDRESS.store(page.address(), Ordering::Relaxed);
    let tracking = Tracking::start(page);
    start(1);
    give(1, |_| {
        let page = frames::again(PAGE_ADDRESS.load(Ordering::Relaxed), PAGE);
        let mut number = 0;
        while STOP.load(Ordering::Relaxed) == 0 {
            page.sub_page(sub_page_of(number)).write(8, number);
            number += 1;
            WRITTEN.store(number, Ordering::Release);
            delay(300);
        }
    });
    let mut harvest = Harvest::with_room(1);
    wait_for("the writer begins", || WRITTEN.load(Ordering::Acquire) > 0);
    let mut previous = 0;
    // Writes before `checked` were in a harvest that is over.
    let mut checked = 0;
    let mut harvests_with_writes = 0;
    for round in 0..300 {
        let before = WRITTEN.load(Ordering::Acquire);
        let result = tracking.harvest(&mut harvest);
        assert!(result == 0 || result == 1, "{result}");
        let after = WRITTEN.load(Ordering::Acquire);
        let written = harvest.written(page);
        for number in checked..before {
            let bit = 1 << sub_page_of(number);
            assert!((written | previous) & bit != 0, "round {round} lost write {number}");
        }
        // A write of this harvest was not over when the last one began.
        let possible = (checked..=after).fold(0, |map, n| map | 1 << sub_page_of(n));
        assert_eq!(written & !possible, 0, "round {round} tells of writes that never were");
        harvests_with_writes += u64::from(written != 0);
        previous = written;
        checked = before;
        delay(round % 7 * 500);
    }
    STOP.store(1, Ordering::Relaxed);
    join(1);
    let total = WRITTEN.load(Ordering::Acquire);
    assert!(harvests_with_writes > 10, "{harvests_with_writes} harvests met {total} writes");
    let total = WRITTEN.load(Ordering::Acquire);
    for number in total.saturating_sub(8)..total {
        assert!(page.sub_page(sub_page_of(number)).read::<u64>(8) >= number);
    }
}
test!(tracking_harvested_against_a_writer; cpus = 2; limit = 40);

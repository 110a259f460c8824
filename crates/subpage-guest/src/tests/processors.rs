//! Several processors: a tightening is in force everywhere when its call returns (contract C1), no
//! write is lost or doubled (C3), and a shoot-down that leaves one out is noticed.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::hypervisor::test_hooks::{self, Counter};
use crate::hypervisor::{Action, Rule, add_rule, set_access};
use crate::memory::{Bytes, PAGE, frames};
use crate::processor::apic::{Message, send};
use crate::processor::exception;
use crate::processor::start::{give, join, start, wait_for};
use crate::test;

/// The page that all write: a counter that is closed and opened at 0, one that never is at 80H. The
/// next page is closed, where a test says so.
static SHARED: AtomicU64 = AtomicU64::new(0);
/// Rounds of each writer.
static ROUNDS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
static STOP: AtomicU64 = AtomicU64::new(0);

fn shared() -> Bytes {
    frames::again(SHARED.load(Ordering::Relaxed), 2 * PAGE)
}

fn rounds() -> u64 {
    ROUNDS.iter().map(|rounds| rounds.load(Ordering::Acquire)).sum()
}

/// A writer tries the closed page once in so many rounds. In between nothing makes it exit as long as
/// the first page is open, so that what it has cached outlasts a call that changes permissions.
const ROUNDS_PER_TRY: u64 = 4096;

/// Locked increments of both counters, and now and then an attempt at the closed page.
fn write_counters(number: usize) {
    let page = shared();
    let mut round = 0;
    while STOP.load(Ordering::Relaxed) == 0 {
        page.increment(0);
        page.increment(0x80);
        round += 1;
        if round % ROUNDS_PER_TRY == 0 {
            page.write(PAGE, !0_u64);
        }
        ROUNDS[number].store(round, Ordering::Release);
    }
}

/// Two processors write while a third tightens and loosens.
fn tightening_holds_when_its_call_returns() {
    let page = frames::pages(2);
    SHARED.store(page.address(), Ordering::Relaxed);
    set_access(page.page(1), 0);
    let denied_before = Counter::Denied.get();
    for number in [1, 2] {
        start(number);
        give(number, write_counters);
    }
    for round in 0..60 {
        // From wholly open, which every processor caches as writable.
        set_access(page, !1);
        let frozen = page.read::<u64>(0);
        let begin = [1, 2].map(|number: usize| ROUNDS[number].load(Ordering::Acquire));
        wait_for("both writers try again", || {
            assert_eq!(page.read::<u64>(0), frozen, "round {round}: written after the call");
            [1, 2]
                .iter()
                .zip(begin)
                .all(|(number, begin)| ROUNDS[*number].load(Ordering::Acquire) > begin + 2)
        });
        assert_eq!(page.read::<u64>(0), frozen, "round {round}: written after the call");
        set_access(page, !0);
        wait_for("the counter continues", || page.read::<u64>(0) > frozen + 1000);
    }
    STOP.store(1, Ordering::Relaxed);
    join(1);
    join(2);
    let denied = Counter::Denied.get() - denied_before;
    let counted = page.read::<u64>(0);
    assert_eq!(page.read::<u64>(0x80), rounds(), "locked increments are lost or doubled");
    assert_eq!(page.read::<u64>(PAGE), 0, "the closed page was written");
    assert!(counted < rounds(), "the counter was never closed to anybody");
    let tries: u64 = ROUNDS.iter().map(|r| r.load(Ordering::Acquire) / ROUNDS_PER_TRY).sum();
    assert_eq!(counted + denied, rounds() + tries, "each attempt is done or denied");
}
test!(tightening_holds_when_its_call_returns; cpus = 3; limit = 60);

/// Stores without any exit, so that a translation stays as it is.
fn write_without_exits(number: usize) {
    let page = shared();
    let mut value = 0_u64;
    while STOP.load(Ordering::Relaxed) == 0 {
        value += 1;
        page.write(0, value);
        ROUNDS[number].store(value, Ordering::Release);
    }
}

/// Whether a write of processor 1 lands in the shared page in the next rounds.
fn write_lands(page: Bytes) -> bool {
    let before = page.read::<u64>(0);
    let begin = ROUNDS[1].load(Ordering::Acquire);
    wait_for("the writer continues", || ROUNDS[1].load(Ordering::Acquire) > begin + 1000);
    page.read::<u64>(0) != before
}

/// With one processor left out of the shoot-down its writes do land: the test above can fail. With
/// it, they do not.
fn a_left_out_processor_is_noticed() {
    let page = frames::pages(2);
    SHARED.store(page.address(), Ordering::Relaxed);
    start(1);
    give(1, write_without_exits);
    assert!(write_lands(page));
    test_hooks::skip_shootdown(Some(1));
    set_access(page, !1);
    assert!(write_lands(page), "without a shoot-down no stale translation was used");
    test_hooks::skip_shootdown(None);
    set_access(page, !0);
    assert!(write_lands(page));
    set_access(page, !1);
    assert!(!write_lands(page), "written after the call");
    STOP.store(1, Ordering::Relaxed);
    join(1);
}
test!(a_left_out_processor_is_noticed; cpus = 2; limit = 40);

/// Closes and opens a page of its own, writes a common one, and closes a part of that.
fn change_maps(number: usize) {
    let pages = frames::again(SHARED.load(Ordering::Relaxed), 8 * PAGE);
    let own = pages.page(number as u64);
    for round in 0..100_u64 {
        set_access(own, !1);
        own.write(0, !0_u64);
        assert_eq!(own.read::<u64>(0), round);
        set_access(own, !0);
        own.write(0, round + 1);
        assert_eq!(own.read::<u64>(0), round + 1);
        pages.page(7).increment(0x80 * number as u64);
        set_access(pages.page(7), !(1 << 31));
    }
}

/// All processors change permissions of pages of their own and of a common one at once.
fn all_processors_change_permissions() {
    let pages = frames::pages(8);
    SHARED.store(pages.address(), Ordering::Relaxed);
    for number in 1..4 {
        start(number);
        give(number, change_maps);
    }
    change_maps(0);
    for number in 1..4 {
        join(number);
    }
    for number in 0..4 {
        assert_eq!(pages.page(7).read::<u64>(0x80 * number), 100);
    }
    pages.page(7).write(31 * 0x80, 1_u64);
    assert_eq!(pages.page(7).read::<u64>(31 * 0x80), 0);
}
test!(all_processors_change_permissions; cpus = 4; limit = 60);

/// NMIs of the guest's own arrive, however many shoot-downs there are meanwhile, and no shoot-down
/// shows as an NMI in the guest.
fn shootdowns_are_no_nmis_of_the_guest() {
    let page = frames::pages(2);
    SHARED.store(page.address(), Ordering::Relaxed);
    start(1);
    give(1, write_without_exits);
    for round in 0..50 {
        set_access(page, if round % 2 == 0 { !1 } else { !0 });
    }
    assert_eq!(exception::interrupts(1, 2), 0, "a shoot-down reached the guest");
    for round in 1..=20 {
        send(1, Message::Nmi);
        wait_for("the NMI arrives", || exception::interrupts(1, 2) == round);
        set_access(page, if round % 2 == 0 { !1 } else { !0 });
    }
    let begin = ROUNDS[1].load(Ordering::Acquire);
    wait_for("the writer continues", || ROUNDS[1].load(Ordering::Acquire) > begin + 100);
    assert_eq!(exception::interrupts(1, 2), 20);
    STOP.store(1, Ordering::Relaxed);
    join(1);
}
test!(shootdowns_are_no_nmis_of_the_guest; cpus = 2; limit = 40);

/// How often each processor does what it does in the tests below.
const TURNS: u64 = 400;

/// Increments a counter in a sub-page that a rule holds elsewhere, and tries the rule's bytes.
fn write_beside_a_rule(number: usize) {
    let page = shared();
    for _ in 0..TURNS {
        page.increment(0x108);
        page.exchange_add(0x110, 1);
        page.write(0x100, !0_u64);
        // Not locked, but a counter of its own in the same sub-page.
        let own = 0x140 + 8 * number as u64;
        page.write(own, page.read::<u64>(own) + 1);
    }
}

/// Locked operations that software completes are as atomic as those of the processor.
fn stores_in_software_are_atomic() {
    let page = frames::pages(2);
    SHARED.store(page.address(), Ordering::Relaxed);
    add_rule(&Rule::new("fine", page.part(0x100, 8), Action::Deny));
    let denied = test_hooks::growth(Counter::Denied, || {
        for number in [1, 2] {
            start(number);
            give(number, write_beside_a_rule);
        }
        write_beside_a_rule(0);
        for number in [1, 2] {
            join(number);
        }
    });
    assert_eq!(denied, 3 * TURNS);
    assert_eq!(page.read::<u64>(0x100), 0);
    assert_eq!(page.read::<u64>(0x108), 3 * TURNS, "lock inc");
    assert_eq!(page.read::<u64>(0x110), 3 * TURNS, "lock xadd");
    for number in 0..3 {
        assert_eq!(page.read::<u64>(0x140 + 8 * number), TURNS, "processor {number}");
    }
}
test!(stores_in_software_are_atomic; cpus = 3; limit = 60);

/// While one processor's writes are let through, no other gets through alongside (C1).
fn letting_through_opens_nothing() {
    let page = frames::pages(2);
    SHARED.store(page.address(), Ordering::Relaxed);
    add_rule(&Rule::new("log", page.part(0x100, 8), Action::Log));
    add_rule(&Rule::new("deny", page.part(0x108, 8), Action::Deny));
    set_access(page, !(1 << 3));
    start(1);
    give(1, |number| {
        let page = shared();
        while STOP.load(Ordering::Relaxed) == 0 {
            page.write(0x108, !0_u64);
            page.write(0x180, !0_u64);
            ROUNDS[number].fetch_add(1, Ordering::Release);
        }
    });
    wait_for("the other processor writes", || rounds() > 2);
    let reported = test_hooks::growth(Counter::Reported, || {
        for value in 1..=TURNS {
            page.increment(0x100);
            assert_eq!(page.read::<u64>(0x100), value);
            assert_eq!(page.read::<u64>(0x108), 0, "after {value} writes");
            assert_eq!(page.read::<u64>(0x180), 0, "after {value} writes");
        }
    });
    assert_eq!(reported, TURNS);
    let begin = rounds();
    wait_for("the other processor writes on", || rounds() > begin + 2);
    STOP.store(1, Ordering::Relaxed);
    join(1);
    assert_eq!((page.read::<u64>(0x108), page.read::<u64>(0x180)), (0, 0));
}
test!(letting_through_opens_nothing; cpus = 2; limit = 40);

/// Cells of [`allow_once_is_once_for_all_processors`].
const CELLS: u64 = 30;

/// Waits for the others, and increments each cell.
fn increment_cells(_: usize) {
    let page = shared();
    ROUNDS[0].fetch_add(1, Ordering::Release);
    wait_for("all processors are there", || ROUNDS[0].load(Ordering::Acquire) == 3);
    for cell in 0..CELLS {
        page.increment(0x100 + 8 * cell);
    }
}

/// Of all processors' writes to the bytes of a rule "allow once", one takes effect.
fn allow_once_is_once_for_all_processors() {
    let page = frames::pages(2);
    SHARED.store(page.address(), Ordering::Relaxed);
    for cell in 0..CELLS {
        add_rule(&Rule::new("once", page.part(0x100 + 8 * cell, 8), Action::AllowOnce));
    }
    let (reported, denied) = (Counter::Reported.get(), Counter::Denied.get());
    for number in [1, 2] {
        start(number);
        give(number, increment_cells);
    }
    increment_cells(0);
    for number in [1, 2] {
        join(number);
    }
    for cell in 0..CELLS {
        assert_eq!(page.read::<u64>(0x100 + 8 * cell), 1, "cell {cell}");
    }
    assert_eq!(Counter::Reported.get() - reported, CELLS);
    assert_eq!(Counter::Denied.get() - denied, 2 * CELLS);
}
test!(allow_once_is_once_for_all_processors; cpus = 3; limit = 40);

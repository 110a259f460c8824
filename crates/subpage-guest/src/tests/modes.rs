//! Resets and changes of mode weaken no rule (D11 to D13; contract C5).

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::hypervisor::test_hooks::{Counter, growth};
use crate::hypervisor::{Action, Rule, add_rule, get_access, set_access};
use crate::memory::{Bytes, PAGE, frames};
use crate::processor::start::{give, join, start, wait_for};
use crate::processor::{modes, registers};
use crate::test;

/// A processor in real mode meets the same permissions.
fn real_mode_writes() {
    let page = Bytes::low(0x9000, PAGE);
    page.fill(0);
    set_access(page, !(1 << 3));
    for round in 1..=2_u16 {
        let denied = growth(Counter::Denied, || {
            modes::write_in_real_mode(1, page.part(0x1fe, 2), 0x1111 * round);
        });
        assert_eq!((denied, page.read::<u16>(0x1fe)), (1, 0));
        let denied = growth(Counter::Denied, || {
            modes::write_in_real_mode(1, page.part(0x200, 2), 0x1111 * round);
        });
        assert_eq!((denied, page.read::<u16>(0x200)), (0, 0x1111 * round));
    }
    assert_eq!(get_access(page), !(1 << 3));
}
test!(real_mode_writes; cpus = 2);

/// A rule finer than a sub-page, in real mode.
fn real_mode_beside_a_rule() {
    let page = Bytes::low(0x9000, PAGE);
    page.fill(0);
    add_rule(&Rule::new("low", page.part(0x184, 2), Action::Deny));
    modes::write_in_real_mode(1, page.part(0x182, 2), 0x2222);
    modes::write_in_real_mode(1, page.part(0x186, 2), 0x3333);
    let denied = growth(Counter::Denied, || {
        modes::write_in_real_mode(1, page.part(0x183, 2), 0x4444);
        modes::write_in_real_mode(1, page.part(0x184, 2), 0x4444);
    });
    assert_eq!(denied, 2);
    assert_eq!(page.read::<u64>(0x182), 0x3333_0000_2222);
}
test!(real_mode_beside_a_rule; cpus = 2);

/// Without paging, from 32-bit code.
fn writes_without_paging() {
    let page = frames::page();
    set_access(page, !1);
    let denied = growth(Counter::Denied, || {
        modes::write_without_paging(page.part(0x7c, 4), 0x1234_5678);
        modes::write_without_paging(page.part(0x80, 4), 0x1234_5678);
    });
    assert_eq!(denied, 1);
    assert_eq!(page.read::<u32>(0x7c), 0);
    assert_eq!(page.read::<u32>(0x80), 0x1234_5678);
    page.write(0, 1_u64);
    assert_eq!(page.read::<u64>(0), 0);
}
test!(writes_without_paging);

/// Changes of CR0, CR3, CR4 and EFER.
fn register_changes() {
    let page = frames::page();
    set_access(page, !(1 << 2));
    let checks = Cell::new(0);
    let check = |what: &str| {
        checks.set(checks.get() + 1);
        let denied = growth(Counter::Denied, || {
            page.write(0x100, 1_u64);
            page.increment(0x180);
        });
        assert_eq!((denied, page.read::<u64>(0x100)), (1, 0), "after {what}");
    };
    check("nothing");
    let cr0 = registers::cr0();
    registers::set_cr0(cr0 | registers::CR0_CD);
    check("CR0.CD = 1");
    registers::set_cr0(cr0);
    check("CR0.CD = 0");
    for bit in [registers::CR4_PGE, registers::CR4_OSXSAVE] {
        let set = registers::cr4() & bit != 0;
        registers::change_cr4(bit, !set);
        check("a change of CR4");
        registers::change_cr4(bit, set);
        check("a change of CR4 back");
    }
    for bit in [1, 1 << 11] {
        registers::change_efer(bit, true);
        check("a bit of EFER set");
        registers::change_efer(bit, false);
        check("a bit of EFER cleared");
    }
    crate::memory::paging::Space::new().run(|| check("another CR3"));
    check("CR3 as before");
    assert_eq!(page.read::<u64>(0x180), checks.get(), "locked increments");
}
test!(register_changes);

static PAGE_ADDRESS: AtomicU64 = AtomicU64::new(0);
static ROUNDS: AtomicU64 = AtomicU64::new(0);

/// INIT in the middle of a processor's writes, and a fresh start: rules hold before and after, and
/// locked increments of others are none the worse.
fn reset_of_another_processor() {
    let page = frames::page();
    PAGE_ADDRESS.store(page.address(), Ordering::Relaxed);
    set_access(page, !1);
    for _ in 0..10 {
        start(1);
        give(1, |_| {
            let page = frames::again(PAGE_ADDRESS.load(Ordering::Relaxed), PAGE);
            loop {
                page.write(0, 1_u64);
                page.increment(0x80);
                ROUNDS.fetch_add(1, Ordering::Release);
            }
        });
        let begin = ROUNDS.load(Ordering::Acquire);
        wait_for("the other processor writes", || ROUNDS.load(Ordering::Acquire) > begin + 20);
        assert_eq!(page.read::<u64>(0), 0);
    }
    start(1);
    let (rounds, written) = (ROUNDS.load(Ordering::Acquire), page.read::<u64>(0x80));
    // Each INIT may have fallen between an increment and the count of it.
    assert!((rounds..=rounds + 10).contains(&written), "{written} increments in {rounds} rounds");
    give(1, |_| {
        let page = frames::again(PAGE_ADDRESS.load(Ordering::Relaxed), PAGE);
        page.write(0, 1_u64);
    });
    join(1);
    assert_eq!(page.read::<u64>(0), 0);
    assert_eq!(get_access(page), !1);
}
test!(reset_of_another_processor; cpus = 2; limit = 40);

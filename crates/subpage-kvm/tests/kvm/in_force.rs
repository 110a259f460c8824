//! A change is in force when its call returns, on processors that run at full speed until then.

use std::time::Duration;

use iced_x86::code_asm::{qword_ptr, rbx};
use subpage_kvm::vm::{Configuration, TrapChoice};

use crate::guest::{Guest, PAGE, kvm, small};
use crate::privilege::{LEVELS, Level, place_all};

/// How often memory is looked at.
const LOOKS: u32 = 20_000;

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// Processors that count in the same word, without a lock.
fn hammer(trap: TrapChoice, levels: &[Level]) -> Guest {
    let cpus = u32::try_from(levels.len()).unwrap();
    let configuration = Configuration { cpus, trap, ..small() };
    let mut guest = Guest::new(&configuration, |code| {
        let mut again = code.create_label();
        code.mov(rbx, PAGE).unwrap();
        code.set_label(&mut again).unwrap();
        code.inc(qword_ptr(rbx)).unwrap();
        code.jmp(again).unwrap();
    });
    place_all(&guest, levels);
    guest.vm.start().unwrap();
    guest
}

fn tightening_and_loosening(trap: TrapChoice, levels: &[Level]) {
    let guest = hammer(trap, levels);
    for round in 0..5 {
        let context = format!("{trap:?} at {levels:?}, round {round}");
        let before = guest.word(PAGE);
        until(&context, || guest.word(PAGE) != before);
        guest.map(PAGE, !1);
        let last = guest.word(PAGE);
        for _ in 0..LOOKS {
            assert_eq!(guest.word(PAGE), last, "written after it was denied: {context}");
        }
        assert_eq!(guest.vm.trapped_pages(), 1, "{context}");
        let denied = guest.vm.ledger().writes();
        until("it goes on and is denied", || guest.vm.ledger().writes() > denied + 3);
        assert_eq!(guest.word(PAGE), last, "{context}");
        guest.map(PAGE, u32::MAX);
        assert_eq!(guest.vm.trapped_pages(), 0, "{context}");
        // A write that had trapped before may still be let through: some later none is left.
        until(&context, || guest.word(PAGE) > last + 100);
        let trapped = guest.vm.ledger().writes();
        let counted = guest.word(PAGE);
        until(&context, || guest.word(PAGE) > counted + 1000);
        assert_eq!(guest.vm.ledger().writes(), trapped, "it runs without traps: {context}");
    }
}

#[test]
fn a_denied_byte_never_changes_again_until_it_is_permitted() {
    if !kvm() {
        return;
    }
    for trap in [TrapChoice::Slots, TrapChoice::View] {
        for level in LEVELS {
            tightening_and_loosening(trap, &[level]);
        }
    }
}

#[test]
fn the_same_with_three_processors() {
    if !kvm() {
        return;
    }
    for trap in [TrapChoice::Slots, TrapChoice::View] {
        tightening_and_loosening(trap, &[Level::User, Level::Supervisor, Level::User]);
    }
}

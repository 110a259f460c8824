//! A change is in force when its call returns, on processors that run at full speed until then.

use std::time::Duration;

use iced_x86::code_asm::{qword_ptr, rax, rbp, rbx, xmm0, xmmword_ptr};
use subpage::rules::{Action, Owner, RuleId};
use subpage_kvm::vm::{Configuration, TrapChoice};

use crate::guest::{Guest, PAGE, PLAIN, kvm, small};
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

/// The word: in the second sub-page, so that no store could reach it from another page.
const WORD: u64 = PAGE + 0x800;

/// Processors that count in the same word, without a lock.
fn hammer(trap: TrapChoice, levels: &[Level]) -> Guest {
    let cpus = u32::try_from(levels.len()).unwrap();
    let configuration = Configuration { cpus, trap, ..small() };
    let mut guest = Guest::new(&configuration, |code| {
        let mut again = code.create_label();
        code.mov(rbx, WORD).unwrap();
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
        let before = guest.word(WORD);
        until(&context, || guest.word(WORD) != before);
        guest.map(PAGE, !(1 << 16));
        let last = guest.word(WORD);
        for _ in 0..LOOKS {
            assert_eq!(guest.word(WORD), last, "written after it was denied: {context}");
        }
        assert_eq!(guest.vm.trapped_pages(), 1, "{context}");
        let denied = guest.vm.trap_counts().writes();
        until("it continues and is denied", || guest.vm.trap_counts().writes() > denied + 3);
        assert_eq!(guest.word(WORD), last, "{context}");
        guest.map(PAGE, u32::MAX);
        assert_eq!(guest.vm.trapped_pages(), 0, "{context}");
        // A write that had trapped before may still be let through, and its processor may have to wait
        // for one of the host's meanwhile: some later none is left.
        until("it runs without traps", || {
            let trapped = guest.vm.trap_counts().writes();
            let counted = guest.word(WORD);
            until(&context, || guest.word(WORD) > counted + 1000);
            guest.vm.trap_counts().writes() == trapped
        });
    }
}

#[test]
fn a_denied_byte_never_changes_again_until_it_is_permitted() {
    if !kvm() {
        return;
    }
    for trap in [TrapChoice::Slots, TrapChoice::Mprotect] {
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
    for trap in [TrapChoice::Slots, TrapChoice::Mprotect] {
        tightening_and_loosening(trap, &[Level::User, Level::Supervisor, Level::User]);
    }
}

/// Sixteen bytes of a page that traps for others, and the eight of them that come and go.
const PAIR: u64 = PAGE + 0x100;
const HALF: u64 = PAIR + 8;

/// A store that KVM tells of in two parts is done as a whole or not at all, whenever rules change.
#[test]
fn no_change_comes_between_the_parts_of_a_store() {
    if !kvm() {
        return;
    }
    for (trap, levels) in [
        (TrapChoice::Slots, vec![Level::Supervisor]),
        (TrapChoice::Mprotect, vec![Level::Supervisor]),
    ] {
        let cpus = u32::try_from(levels.len()).unwrap();
        let configuration = Configuration { cpus, trap, ..small() };
        let mut guest = Guest::new(&configuration, |code| {
            let mut again = code.create_label();
            code.mov(rbx, PAIR).unwrap();
            code.mov(rbp, PLAIN).unwrap();
            code.set_label(&mut again).unwrap();
            code.inc(rax).unwrap();
            code.mov(qword_ptr(rbp), rax).unwrap();
            code.mov(qword_ptr(rbp + 8), rax).unwrap();
            code.movdqu(xmm0, xmmword_ptr(rbp)).unwrap();
            code.movdqu(xmmword_ptr(rbx), xmm0).unwrap();
            code.jmp(again).unwrap();
        });
        place_all(&guest, &levels);
        guest.guard(PAGE + 0x800, 8, Action::Deny);
        guest.vm.start().unwrap();
        for round in 0..40 {
            let context = format!("{trap:?} at {levels:?}, round {round}");
            let before = guest.word(HALF);
            until(&context, || guest.word(HALF) != before);
            guest.guard(HALF, 8, Action::Deny);
            let pair: [u8; 16] = guest.read(PAIR);
            assert_eq!(pair[..8], pair[8..], "half a store: {context}");
            for _ in 0..LOOKS / 20 {
                assert_eq!(guest.read(PAIR), pair, "written after it was denied: {context}");
            }
            guest.vm.remove_rule(RuleId(guest.rules()), Owner::HOST).unwrap();
        }
    }
}

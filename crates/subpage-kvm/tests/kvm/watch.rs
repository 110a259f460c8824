//! What looking after the processors must not do to a guest that is well.

use std::time::Duration;

use iced_x86::code_asm::{ax, dword_ptr, ebx, rbx};
use subpage::rules::Action;

use crate::guest::{Guest, PAGE, both_ways, kvm};

/// Many rounds of the watch.
const LONG: Duration = Duration::from_millis(700);

/// An instruction that software does not know, again and again, is none of ours.
#[test]
fn a_guest_that_loops_over_what_software_does_not_know_runs_on() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, |code| {
            let mut again = code.create_label();
            code.mov(ax, iced_x86::code_asm::ds).unwrap();
            code.set_label(&mut again).unwrap();
            code.mov(iced_x86::code_asm::ds, ax).unwrap();
            code.jmp(again).unwrap();
        });
        guest.guard(PAGE, 8, Action::Deny);
        guest.vm.start().unwrap();
        assert_eq!(guest.vm.wait(LONG), None, "it does nothing wrong");
        guest.vm.stop();
    }
}

/// A processor that waits for an interrupt is behind its HLT, and what stands there has not happened.
#[test]
fn a_store_behind_a_halt_waits_for_the_interrupt() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, |code| {
            code.mov(rbx, PAGE).unwrap();
            code.xor(ebx, 0x80).unwrap();
            code.sti().unwrap();
            code.hlt().unwrap();
            code.inc(dword_ptr(rbx)).unwrap();
            code.hlt().unwrap();
        });
        guest.guard(PAGE, 8, Action::Deny);
        guest.vm.start().unwrap();
        assert_eq!(guest.vm.wait(LONG), None, "an interrupt could come");
        assert_eq!(guest.word(PAGE + 0x80), 0, "but none did");
        guest.vm.stop();
    }
}

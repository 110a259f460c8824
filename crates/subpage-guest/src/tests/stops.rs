//! Guests that the hypervisor stops, in order and with a reason.

use crate::hypervisor::test_hooks::{self, Break};
use crate::hypervisor::{Action, Rule, add_rule, set_access};
use crate::memory::{Bytes, frames};
use crate::processor::{exception, halt, tables};
use crate::registry::passed;
use crate::test;

/// A triple fault.
fn triple_fault() {
    passed();
    tables::forget_interrupts();
    exception::raise_undefined();
}
test!(triple_fault; stop = "triple");

/// A store where no slot is.
fn unmapped_memory() {
    let nothing = Bytes::beyond(0x3000_0000, 8);
    passed();
    nothing.write(0, 1_u64);
}
test!(unmapped_memory; stop = "memory");

/// A load where no slot is.
fn unmapped_memory_read() {
    let nothing = Bytes::beyond(0x3000_0000, 8);
    passed();
    nothing.read::<u64>(0);
}
test!(unmapped_memory_read; stop = "memory");

/// A rule that stops the guest.
fn rule_that_stops() {
    let page = frames::page();
    add_rule(&Rule::new("tripwire", page.part(8, 8), Action::Stop));
    page.write(0, 1_u64);
    page.write(16, 1_u64);
    assert_eq!(page.read::<u64>(16), 1);
    passed();
    page.write(15, 1_u8);
}
test!(rule_that_stops; stop = "violated");

/// Somebody damaged the SPPT.
fn damaged_sppt() {
    let page = frames::page();
    set_access(page, !1);
    test_hooks::break_sppt(page, Break::Misconfiguration);
    passed();
    page.write(0x80, 1_u64);
}
test!(damaged_sppt, spp; stop = "DamagedSppt");

/// All processors halt with interrupts off.
fn all_processors_halt() {
    passed();
    halt();
}
test!(all_processors_halt; stop = "halted");

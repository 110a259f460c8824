//! Events: what they tell, their order, and what is lost when nobody reads them.

use subpage_vmx::abi::event_flag;

use crate::hypervisor::test_hooks::{Counter, ExitField, growth};
use crate::hypervisor::{
    Action, Events, Rule, add_rule, drain_events, events_lost, has_spp, set_access,
};
use crate::memory::frames;
use crate::processor::registers;
use crate::test;

/// Every field of the event of a denied store.
fn event_tells_what_was_done() {
    let page = frames::page();
    let rule = add_rule(&Rule::new("secret", page.part(0x284, 4), Action::Deny));
    drain_events();
    let value = 0x1122_3344_5566_7788_u64;
    page.write(0x280, value);
    let event = Events::with_room(4).only();
    assert_eq!(event.rule.get(), rule);
    assert_eq!(event.gpa.get(), page.address() + 0x280);
    assert_eq!(event.gla.get(), page.address() + 0x280);
    assert_eq!(event.flags.get() & event_flag::LINEAR, event_flag::LINEAR);
    assert_eq!(event.flags.get() & event_flag::DELIVERY, 0);
    assert_eq!(event.at.get(), page.address() + 0x284);
    assert_eq!(event.cr3.get(), registers::cr3());
    assert_eq!(event.length.get(), 8);
    assert_eq!(event.cpu.get(), 0);
    assert_eq!(event.cpl, 0);
    assert_eq!(event.outcome.get(), 1);
    assert_eq!(event.data_length, 8);
    assert_eq!(event.data[..8], value.to_le_bytes());
    assert_eq!(event.data[8..], [0; 56]);
    assert_eq!(event.reserved, 0);
    // A write, to a page that may be read, with a linear address, no page walk.
    let qualification = event.qualification.get();
    assert_eq!(qualification & 0x18b, 0x18a, "qualification {qualification:#x}");
    assert_eq!(qualification & 1 << 4, 0, "the page cannot have been writable");
    assert_eq!(event.rip.get(), ExitField::Rip.get());
    // The instruction is what is at RIP: a MOV with a REX prefix.
    let length = usize::from(event.instruction_length);
    assert!((3..=15).contains(&length), "{length}");
    assert_eq!(event.instruction[0] & 0xf8, 0x48);
    assert_eq!(event.instruction[1], 0x89);
    assert!(event.instruction[length..].iter().all(|byte| *byte == 0));
}
test!(event_tells_what_was_done);

/// Events are numbered without a gap; what does not fit into the ring is counted, and shows as a gap.
fn ring_overflow_is_counted() {
    let page = frames::page();
    set_access(page, 0);
    drain_events();
    let lost_before = events_lost();
    page.write(0, 0_u64);
    let events = Events::with_room(300);
    let first = events.only().sequence.get();
    let denied = growth(Counter::Denied, || {
        for value in 0..1000_u64 {
            page.write(value % 512 * 8, value);
        }
    });
    assert_eq!(denied, 1000);
    let kept = events.take();
    assert!((1..1000).contains(&kept), "the ring kept {kept}");
    for index in 0..kept {
        let event = events.get(index);
        assert_eq!(event.sequence.get(), first + 1 + index);
        assert_eq!(event.data[..8], index.to_le_bytes());
    }
    assert_eq!(events_lost() - lost_before, 1000 - kept);
    page.write(0, 7_u64);
    assert_eq!(events.only().sequence.get(), first + 1001);
    assert_eq!(events.take(), 0);
}
test!(ring_overflow_is_counted);

/// Code in the guest's kernel can drain the ring. What the host guards is told outside
/// of the guest all the same: the test passes if the hypervisor prints the event.
fn a_drained_ring_hides_nothing_from_the_host() {
    let page = frames::page();
    Rule::new("evidence", page.part(0, 64), Action::Deny).add_as_host();
    page.write(0, 1_u64);
    drain_events();
    assert_eq!(Events::with_room(1).take(), 0);
    // A guest's own rules are its own business: nothing is printed for them.
    let other = frames::page();
    add_rule(&Rule::new("noise", other.part(0, 64), Action::Deny));
    for value in 0..20_u64 {
        other.write(0, value);
    }
}
test!(a_drained_ring_hides_nothing_from_the_host; event = "\"evidence\"");

/// Reading with little room leaves the rest in the ring.
fn events_are_read_in_portions() {
    let page = frames::page();
    set_access(page, 0);
    drain_events();
    for value in 0..5_u64 {
        page.write(8 * value, value);
    }
    let events = Events::with_room(2);
    let mut seen = 0_u64;
    for portion in [2, 2, 1, 0] {
        assert_eq!(events.take(), portion);
        for index in 0..portion {
            assert_eq!(events.get(index).data[..8], seen.to_le_bytes());
            seen += 1;
        }
    }
}
test!(events_are_read_in_portions);

/// The event says whether software decided.
fn software_decisions_are_marked() {
    let page = frames::page();
    set_access(page, 0);
    drain_events();
    page.write(0, 1_u64);
    let event = Events::with_room(1).only();
    let software = event.flags.get() & event_flag::SOFTWARE != 0;
    assert_eq!(software, !has_spp());
}
test!(software_decisions_are_marked);

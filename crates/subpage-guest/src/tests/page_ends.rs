//! Writes over a page end are one write: one decision about all bytes, all of them stored or none, and
//! one event (contract C3).

use core::sync::atomic::Ordering;

use subpage_vmx::abi::event_flag;

use crate::hypervisor::test_hooks::{Counter, growth};
use crate::hypervisor::{Action, Events, Rule, add_rule, drain_events};
use crate::memory::paging::{Space, USER, WRITE};
use crate::memory::{Bytes, PAGE, frames};
use crate::processor::exception::{self, COUNT};
use crate::processor::tables::set_test_stack;
use crate::registry::passed;
use crate::test;

/// Offset in two pages of an interrupt's frame: 24 bytes in the first, 16 in the second.
const FRAME: u64 = PAGE - 24;
const FRAME_BYTES: u64 = 40;

/// Two pages, between which the frames of counted interrupts go.
fn stack() -> (Bytes, u64) {
    let pages = frames::pages(2);
    exception::count_interrupts();
    set_test_stack(pages.address() + FRAME + FRAME_BYTES);
    (pages, frames::page().address() + 0x800)
}

/// A frame that a rule wants to know of is pushed and reported, with its bytes.
fn frame_logged() {
    let (pages, rsp) = stack();
    add_rule(&Rule::new("watched stack", pages.part(PAGE - 8, 16), Action::Log));
    let events = Events::with_room(8);
    drain_events();
    exception::interrupt_from(rsp);
    assert_eq!(COUNT.load(Ordering::Relaxed), 1);
    let event = events.only();
    assert_eq!((event.outcome.get(), event.length.get()), (0, 40));
    assert_eq!(event.flags.get() & event_flag::DELIVERY, event_flag::DELIVERY);
    assert_eq!(event.gpa.get(), pages.address() + FRAME);
    assert_eq!(event.at.get(), pages.address() + PAGE - 8);
    assert_eq!(event.data_length, 40);
    assert_eq!(event.data[..40], pages.part(FRAME, FRAME_BYTES).to_array::<40>());
    let [rip, ..] = exception::frame_of(rsp, false);
    assert_eq!(pages.read::<u64>(FRAME), rip);
}
test!(frame_logged);

/// One "allow once" over both pages lets one frame through, whole; of the next, no byte is stored.
fn frame_allowed_once() {
    let (pages, rsp) = stack();
    add_rule(&Rule::new("once", pages.part(PAGE - 256, 512), Action::AllowOnce));
    let events = Events::with_room(8);
    drain_events();
    let first = exception::catch(|| exception::interrupt_from(rsp));
    assert_eq!(first, None);
    assert_eq!(COUNT.load(Ordering::Relaxed), 1);
    let [rip, cs, _, expected_rsp, _] = exception::frame_of(rsp, false);
    assert_eq!((pages.read::<u64>(FRAME), pages.read::<u64>(FRAME + 8)), (rip, cs));
    assert_eq!(pages.read::<u64>(FRAME + 24), expected_rsp);
    assert_eq!(events.only().outcome.get(), 0);
    let stored = pages.part(FRAME, FRAME_BYTES).to_array::<40>();
    let other = rsp - 0x100;
    let second = exception::catch(|| exception::interrupt_from(other)).expect("it is spent");
    assert_eq!(second.vector, 8);
    assert_eq!(pages.part(FRAME, FRAME_BYTES).to_array::<40>(), stored);
    assert_eq!(events.only().outcome.get(), 2);
    assert_eq!(COUNT.load(Ordering::Relaxed), 1);
}
test!(frame_allowed_once);

/// A rule that denies in the first page hides none that stops in the second.
fn frame_that_stops() {
    let (pages, rsp) = stack();
    add_rule(&Rule::new("denies", pages.part(FRAME, 8), Action::Deny));
    add_rule(&Rule::new("stops", pages.part(PAGE, 8), Action::Stop));
    passed();
    exception::interrupt_from(rsp);
}
test!(frame_that_stops; stop = "violated");

/// The same for an instruction's store.
fn store_that_stops() {
    let pages = frames::pages(2);
    add_rule(&Rule::new("denies", pages.part(PAGE - 4, 4), Action::Deny));
    add_rule(&Rule::new("stops", pages.part(PAGE + 2, 2), Action::Stop));
    pages.write(PAGE - 4, 1_u32);
    pages.write(PAGE - 2, 1_u32);
    passed();
    pages.write(PAGE - 4, 1_u64);
}
test!(store_that_stops; stop = "violated");

/// The event of a store over a page end has all of it, and there is one.
fn store_denied() {
    let pages = frames::pages(2);
    add_rule(&Rule::new("before", pages.part(PAGE - 4, 4), Action::Deny));
    add_rule(&Rule::new("after", pages.part(PAGE, 4), Action::Deny));
    let events = Events::with_room(8);
    drain_events();
    pages.write(PAGE - 3, 0x0102_0304_0506_0708_u64);
    assert_eq!((pages.read::<u64>(PAGE - 8), pages.read::<u64>(PAGE)), (0, 0));
    let event = events.only();
    assert_eq!((event.gpa.get(), event.length.get()), (pages.address() + PAGE - 3, 8));
    assert_eq!(event.data[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
}
test!(store_denied);

/// A store whose second page is absent faults there: nothing is denied or reported, whatever is
/// guarded in its first page.
fn store_whose_second_page_is_absent() {
    let page = frames::page();
    add_rule(&Rule::new("denies", page.part(PAGE - 4, 4), Action::Deny));
    let space = Space::new();
    space.map(0, page, WRITE | USER);
    let events = Events::with_room(8);
    drain_events();
    let denied = growth(Counter::Denied, || {
        space.run(|| {
            let exception = exception::catch(|| {
                Space::pages(0, 2).write(PAGE - 4, 1_u64);
            });
            let exception = exception.expect("the second page is not there");
            assert_eq!(exception.vector, 14);
        });
    });
    assert_eq!((denied, events.take()), (0, 0));
    assert_eq!(page.read::<u64>(PAGE - 8), 0);
}
test!(store_whose_second_page_is_absent);

//! Interrupts and exceptions whose frame goes onto a stack with restricted sub-pages: delivered
//! exactly once whatever their delivery meets (contract C8; D35).

use core::sync::atomic::Ordering;

use subpage_vmx::abi::event_flag;

use crate::hypervisor::test_hooks::{self, Break, Counter, ExitField, Injected, growth};
use crate::hypervisor::{Events, drain_events, has_spp, set_access};
use crate::memory::{Bytes, SUB_PAGE, frames};
use crate::processor::exception::{self, COUNT, COUNTED_ON_TEST_STACK, Exception};
use crate::processor::tables::set_test_stack;
use crate::test;

/// A stack whose frames lie in sub-page 4, and the RSP of the interrupted code.
struct Stage {
    page: Bytes,
    rsp: u64,
}

/// Offset of the end of the stack: the end of sub-page 4.
const TOP: u64 = 5 * SUB_PAGE;
/// Offset of a frame: RIP, CS, RFLAGS, RSP, SS.
const FRAME: u64 = TOP - 40;

impl Stage {
    fn new() -> Self {
        let page = frames::page();
        let other = frames::page();
        exception::count_interrupts();
        set_test_stack(page.address() + TOP);
        drain_events();
        Self { page, rsp: other.address() + 0x800 }
    }

    fn frame(&self) -> [u64; 5] {
        core::array::from_fn(|index| self.page.read(FRAME + 8 * index as u64))
    }

    /// Checks that the delivery stored its own frame.
    fn check_stored(&self, injected: bool) {
        let [rip, cs, rflags, rsp, ss] = self.frame();
        let [expected_rip, expected_cs, _, expected_rsp, expected_ss] =
            exception::frame_of(self.rsp, injected);
        assert_eq!((rip, cs), (expected_rip, expected_cs));
        assert_eq!((rsp, ss), (expected_rsp, expected_ss));
        assert_eq!(rflags & 2, 2);
        assert_eq!(rflags & 0x200 != 0, injected, "interrupts were on: {rflags:#x}");
    }
}

/// INT pushes its frame onto a permitted sub-page between denied ones.
fn interrupt_frame_permitted() {
    let stage = Stage::new();
    set_access(stage.page, 1 << 4);
    let denied = growth(Counter::Denied, || exception::interrupt_from(stage.rsp));
    assert_eq!(denied, 0);
    assert_eq!(COUNT.load(Ordering::Relaxed), 1);
    stage.check_stored(false);
    assert_eq!(growth(Counter::Exits(48), || exception::interrupt_from(stage.rsp)) == 0, has_spp());
    assert_eq!(COUNT.load(Ordering::Relaxed), 2);
}
test!(interrupt_frame_permitted);

/// The SPPT entry for the stack is missing while the frame is pushed: the delivery is repeated, and
/// the handler runs once.
fn interrupt_frame_while_sppt_entry_is_missing() {
    let stage = Stage::new();
    set_access(stage.page, 1 << 4);
    for (round, injected) in [(1, false), (2, true)] {
        test_hooks::break_sppt(stage.page, Break::Miss);
        let misses = growth(Counter::SppMisses, || {
            if injected {
                exception::inject_from(stage.rsp, COUNTED_ON_TEST_STACK, Injected::External as u64);
            } else {
                exception::interrupt_from(stage.rsp);
            }
        });
        assert_eq!(COUNT.load(Ordering::Relaxed), round, "handlers that ran");
        assert_eq!(misses, 1);
        assert_eq!(ExitField::Reason.get() & 0xffff, 66);
        assert_eq!(ExitField::Qualification.get(), 1 << 11);
        let kind = if injected { Injected::External as u64 } else { 4 };
        let vectoring = 1 << 31 | kind << 8 | u64::from(COUNTED_ON_TEST_STACK);
        assert_eq!(ExitField::Vectoring.get(), vectoring);
        stage.check_stored(injected);
        test_hooks::break_sppt(stage.page, Break::Repair);
    }
    stage.page.write(0, 1_u64);
    assert_eq!(stage.page.read::<u64>(0), 0, "the repaired page is protected");
}
test!(interrupt_frame_while_sppt_entry_is_missing, spp);

/// Raises or injects the interrupt; returns what came instead of its handler.
fn interrupt(stage: &Stage, injected: bool) -> Option<Exception> {
    let (vector, kind) = (COUNTED_ON_TEST_STACK, Injected::External as u64);
    exception::catch(|| {
        if injected {
            exception::inject_from(stage.rsp, vector, kind);
        } else {
            exception::interrupt_from(stage.rsp);
        }
    })
}

/// The frame is denied: not a byte of it is stored, the denial is reported as part of a delivery, and
/// the guest gets a double fault. An injected event has no instruction length, and does not loop.
fn interrupt_frame_denied() {
    let stage = Stage::new();
    let events = Events::with_room(8);
    for injected in [false, true] {
        set_access(stage.page, !0);
        stage.page.fill(0x55);
        set_access(stage.page, !(1 << 4));
        drain_events();
        let violations = Counter::Exits(48).get();
        let denied = growth(Counter::Denied, || {
            let exception = interrupt(&stage, injected).expect("the handler cannot be started");
            assert_eq!((exception.vector, exception.error), (8, 0));
        });
        let violations = Counter::Exits(48).get() - violations;
        assert_eq!(denied, 1, "injected: {injected}");
        assert_eq!(violations, 1, "injected: {injected}");
        assert_eq!(stage.frame(), [0x5555_5555_5555_5555; 5], "injected: {injected}");
        let event = events.only();
        assert_eq!(event.flags.get() & event_flag::DELIVERY, event_flag::DELIVERY);
        assert_eq!(event.at.get() & !127, stage.page.address() + 4 * SUB_PAGE);
        assert_eq!(event.outcome.get(), 2);
        assert_eq!(COUNT.load(Ordering::Relaxed), 0, "the handler ran without a frame");
    }
    set_access(stage.page, !0);
    assert_eq!(interrupt(&stage, true), None);
    assert_eq!(COUNT.load(Ordering::Relaxed), 1);
    stage.check_stored(true);
}
test!(interrupt_frame_denied);

/// A frame across the end of a denied sub-page: what may not be written is not.
fn interrupt_frame_partly_denied() {
    let stage = Stage::new();
    stage.page.fill(0x55);
    // The frame's last 16 bytes in sub-page 5, the others in sub-page 4.
    set_test_stack(stage.page.address() + TOP + 16);
    set_access(stage.page, !(1 << 4));
    let denied = growth(Counter::Denied, || {
        let exception = interrupt(&stage, false).expect("the handler cannot be started");
        assert_eq!(exception.vector, 8);
    });
    assert_eq!(denied, 1);
    for offset in 0..SUB_PAGE {
        assert_eq!(stage.page.sub_page(4).read::<u8>(offset), 0x55, "byte {offset:#x}");
    }
    assert_eq!(COUNT.load(Ordering::Relaxed), 0);
}
test!(interrupt_frame_partly_denied);

/// An NMI is delivered once onto a restricted stack, and NMIs are possible again after it.
fn nmi_frame_on_a_restricted_stack() {
    let stage = Stage::new();
    exception::count_nmis_on_test_stack();
    set_access(stage.page, 1 << 4);
    for round in 1..=3 {
        exception::inject_from(stage.rsp, 2, Injected::Nmi as u64);
        assert_eq!(COUNT.load(Ordering::Relaxed), round);
        stage.check_stored(true);
    }
    if has_spp() {
        test_hooks::break_sppt(stage.page, Break::Miss);
        exception::inject_from(stage.rsp, 2, Injected::Nmi as u64);
        assert_eq!(COUNT.load(Ordering::Relaxed), 4);
        stage.check_stored(true);
        test_hooks::break_sppt(stage.page, Break::Repair);
        exception::inject_from(stage.rsp, 2, Injected::Nmi as u64);
        assert_eq!(COUNT.load(Ordering::Relaxed), 5);
    }
}
test!(nmi_frame_on_a_restricted_stack);

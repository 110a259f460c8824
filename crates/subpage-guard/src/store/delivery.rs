//! Interrupts and exceptions whose frame goes to a page that traps: delivered here.

use kvm_bindings::kvm_vcpu_events;
use subpage_emulate::bits::EFER_LMA;
use subpage_emulate::{EventKind, Exception, VectoringEvent, deliver as plan};
use subpage_trap::{Delivered, Frame, Wanted};

use super::backend::{Backend, Before, HostFailure, Obstacle};
use super::inject::inject;
use super::trapped::{Cause, failed};
use super::{Next, StoreContext};
use crate::memory::GuestMemory;
use crate::vcpu::{Interrupted, Processor, ProcessorError};

const NMI: u8 = 2;
const BREAKPOINT: u8 = 3;
const OVERFLOW: u8 = 4;

/// The event that KVM was about to deliver when the exit happened.
///
/// None for software interrupts, whose instruction is still at RIP, whether KVM tells of them or not.
/// Where its emulator
/// failed, it may have queued #UD in place of the instruction, which is then not to be had.
pub(super) fn pending(events: &kvm_vcpu_events, cause: Cause) -> Option<VectoringEvent> {
    let exception = &events.exception;
    let by_instruction = matches!(exception.nr, BREAKPOINT | OVERFLOW)
        || cause == Cause::Emulation && exception.nr == Exception::INVALID_OPCODE.vector;
    if exception.injected != 0 && !by_instruction {
        let error_code = (exception.has_error_code != 0).then_some(exception.error_code);
        return Some(VectoringEvent {
            vector: exception.nr,
            error_code,
            kind: EventKind::Exception,
        });
    }
    if events.nmi.injected != 0 {
        return Some(VectoringEvent { vector: NMI, error_code: None, kind: EventKind::Interrupt });
    }
    let interrupt = &events.interrupt;
    (interrupt.injected != 0 && interrupt.soft == 0).then_some(VectoringEvent {
        vector: interrupt.nr,
        error_code: None,
        kind: EventKind::Interrupt,
    })
}

/// Linear address of the frame that an event pushes, if it can be found out.
pub(super) fn frame_at(
    context: StoreContext<'_, impl GuestMemory>,
    at: &Interrupted,
    event: &VectoringEvent,
) -> Option<u64> {
    if at.state.efer & EFER_LMA == 0 {
        return None;
    }
    let planned = plan(context.ram, context.paging, &at.state, &at.tables, event).ok()?;
    Some(planned.linear)
}

/// Pushes the frame of an event that KVM could not deliver, decided by its exact bytes, and starts the
/// handler.
pub(super) fn deliver(
    context: StoreContext<'_, impl GuestMemory>,
    processor: &mut Processor,
    at: &Interrupted,
    event: &VectoringEvent,
    wanted: Wanted,
) -> Result<Next, Obstacle> {
    let mut state = at.state;
    let mut guard = context.guard();
    let mut backend = Backend {
        context,
        guard: &mut guard,
        processor: &mut *processor,
        tables: &at.tables,
        before: Before::Known(&at.state),
        extended: &mut None,
        settle: false,
    };
    let delivered = match Frame::plan(&mut backend, &state, event, wanted) {
        Err(Obstacle::Exception(exception)) => Frame::escalate(event, exception),
        frame => frame?.push(&mut backend, &mut state)?,
    };
    let settle = backend.settle;
    drop(guard);
    match delivered {
        Delivered::Handler => {
            processor.go_on_with_segments(&state).map_err(failed)?;
            let in_nmi = event.kind == EventKind::Interrupt && event.vector == NMI;
            forget(processor, in_nmi).map_err(failed)?;
            Ok(if settle { Next::Settle } else { Next::Enter })
        }
        Delivered::Inject(exception) => {
            forget(processor, false).map_err(failed)?;
            inject(processor, exception)
                .map_err(|failure| Obstacle::Failed(HostFailure::Processor(failure)))
        }
        Delivered::TripleFault => Ok(Next::TripleFault { rip: at.state.rip }),
        Delivered::Stopped(event) => Ok(Next::Stopped(event)),
    }
}

/// The event is not to be delivered by KVM any more.
fn forget(processor: &Processor, in_nmi: bool) -> Result<(), ProcessorError> {
    let mut events = processor.events()?;
    events.exception.injected = 0;
    events.interrupt.injected = 0;
    events.nmi.injected = 0;
    if in_nmi {
        events.nmi.masked = 1;
    }
    // What else is pending, others may have added to since it was read.
    events.flags = 0;
    processor.set_events(&events)
}

//! Interrupts and exceptions whose frame goes to a page that traps: delivered here.

use kvm_bindings::kvm_vcpu_events;
use subpage::address::Gpa;
use subpage::domain::Decision;
use subpage_emulate::guest::PhysicalMemory as _;
use subpage_emulate::{
    Access, Escalation, EventKind, Exception, Fault, GuestInstruction, VectoringEvent,
    deliver as plan,
};

use super::Next;
use super::destination::{Wanted, destination};
use super::inject::inject;
use super::obstacle::Obstacle;
use super::report::{Account, Outcome, report};
use super::trapped::Cause;
use crate::guard::{Guard, SPACE};
use crate::vcpu::{Interrupted, Processor};
use crate::vm::{Ending, Machine};

const EFER_LMA: u64 = 1 << 10;
const NMI: u8 = 2;
const INVALID_OPCODE: u8 = 6;
const DOUBLE_FAULT: Exception = Exception { vector: 8, error_code: Some(0), address: None };

/// The event that KVM was about to deliver when the exit happened.
///
/// KVM does not tell of software interrupts here, whose instruction is still at RIP. Where its emulator
/// failed, it may have queued #UD in place of the instruction, which is then not to be had.
pub(super) fn pending(events: &kvm_vcpu_events, cause: Cause) -> Option<VectoringEvent> {
    let exception = &events.exception;
    if exception.injected != 0 && !(cause == Cause::Emulation && exception.nr == INVALID_OPCODE) {
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
    (interrupt.injected != 0).then_some(VectoringEvent {
        vector: interrupt.nr,
        error_code: None,
        kind: EventKind::Interrupt,
    })
}

/// The event of INT n, INT3 or INTO.
pub(super) fn software_interrupt(code: &GuestInstruction) -> Option<VectoringEvent> {
    let bytes = code.bytes();
    // Prefixes mean nothing here.
    let vector = match *bytes {
        [.., 0xcd, vector] => vector,
        [.., 0xcc] if bytes.len() == 1 => 3,
        [.., 0xce] if bytes.len() == 1 => 4,
        _ => return None,
    };
    if !code.is_software_interrupt() {
        return None;
    }
    let instruction_bytes = u8::try_from(bytes.len()).expect("at most 15");
    let kind = EventKind::Software { instruction_bytes };
    Some(VectoringEvent { vector, error_code: None, kind })
}

/// Linear address of the frame that an event pushes, if it can be found out.
pub(super) fn frame_at(machine: &Machine, at: &Interrupted, event: &VectoringEvent) -> Option<u64> {
    if at.state.efer & EFER_LMA == 0 {
        return None;
    }
    let planned = plan(&machine.ram, machine.paging, &at.state, &at.tables, event).ok()?;
    Some(planned.linear)
}

/// Pushes the frame of an event that KVM could not deliver, decided by its exact bytes, and starts the
/// handler.
pub(super) fn deliver(
    machine: &Machine,
    processor: &Processor,
    at: &Interrupted,
    event: &VectoringEvent,
) -> Result<Next, Obstacle> {
    match try_deliver(machine, processor, at, event) {
        Err(Obstacle::Exception(exception)) => match event.escalate(exception) {
            Escalation::Deliver(exception) => {
                forget(processor, false)?;
                Ok(inject(processor, exception)?)
            }
            Escalation::Shutdown => Ok(Next::End(Ending::TripleFault { rip: at.state.rip })),
        },
        result => result,
    }
}

fn try_deliver(
    machine: &Machine,
    processor: &Processor,
    at: &Interrupted,
    event: &VectoringEvent,
) -> Result<Next, Obstacle> {
    if at.state.efer & EFER_LMA == 0 {
        let reason = "an event's frame goes to a guarded page outside of IA-32e mode";
        return Err(Obstacle::Cannot(reason.into()));
    }
    let planned = plan(&machine.ram, machine.paging, &at.state, &at.tables, event)?;
    let mut guard = machine.guard();
    let (linear, access) = (planned.linear, planned.access());
    // The frame's pages are accessed with the privilege of the handler.
    let state = &planned.after;
    let length = planned.frame.len();
    let parts = destination(machine, &mut guard, state, linear, length, access, Wanted::InTraps)?;
    guard.ledger_count(&parts);
    machine.metrics.checks(1);
    let decision = guard.domain_mut().authorize_write_parts(SPACE, &parts);
    let decision = decision.map_err(|_| {
        Obstacle::Cannot("the engine has no memory left for a record of a write".into())
    })?;
    let account = Account {
        vcpu: processor.number,
        state: &at.state,
        parts: &parts,
        bytes: &planned.frame,
        gla: Some(linear),
        instruction: None,
        exact: true,
    };
    match decision {
        Decision::Allowed => {}
        Decision::Reported { rule, at } => {
            report(machine, &mut guard, Outcome::Reported { rule, at }, &account);
        }
        Decision::Denied { rule, at: first, stop } => {
            let outcome = Outcome::Denied { rule, at: first, stop };
            let told = report(machine, &mut guard, outcome, &account);
            drop(guard);
            if stop {
                return Ok(Next::End(Ending::Stopped { event: told }));
            }
            return denied(processor, at, event);
        }
        Decision::NotEligible { at } | Decision::NotMapped { at } => {
            let at = at.as_u64();
            return Err(Obstacle::Cannot(format!("there is no memory at {at:#x}")));
        }
    }
    let mut rest = planned.frame.as_slice();
    for run in parts.runs() {
        let (now, later) = rest.split_at(usize::try_from(run.bytes()).expect("a frame's bytes"));
        rest = later;
        let at: Gpa = run.first();
        machine.ram.write(at, now).map_err(|_| Fault::NotMemory(at.as_u64()))?;
    }
    if let Some(descriptor) = planned.mark_descriptor {
        mark_descriptor(machine, &mut guard, at, descriptor);
    }
    drop(guard);
    processor.start_handler(&planned.after)?;
    let in_nmi = event.kind == EventKind::Interrupt && event.vector == NMI;
    forget(processor, in_nmi)?;
    Ok(Next::Enter)
}

/// The frame may not be pushed: there is no instruction to skip, and repeating would loop. The guest
/// gets a double fault; if that cannot be delivered either, it is a triple fault.
fn denied(
    processor: &Processor,
    at: &Interrupted,
    event: &VectoringEvent,
) -> Result<Next, Obstacle> {
    if event.kind == EventKind::Exception && event.vector == DOUBLE_FAULT.vector {
        return Ok(Next::End(Ending::TripleFault { rip: at.state.rip }));
    }
    forget(processor, false)?;
    Ok(inject(processor, DOUBLE_FAULT)?)
}

/// The event is not to be delivered by KVM any more.
fn forget(processor: &Processor, in_nmi: bool) -> Result<(), Obstacle> {
    let mut events = processor.events()?;
    events.exception.injected = 0;
    events.interrupt.injected = 0;
    events.nmi.injected = 0;
    if in_nmi {
        events.nmi.masked = 1;
    }
    // What else is pending, others may have added to since it was read.
    events.flags = 0;
    Ok(processor.set_events(&events)?)
}

/// Sets the accessed flag of a code descriptor, if it may be written; a processor would fail to
/// deliver where it may not, but the flag tells nobody anything.
fn mark_descriptor(machine: &Machine, guard: &mut Guard, at: &Interrupted, linear: u64) {
    let access = Access { write: true, ..Access::SYSTEM_READ };
    let wanted = Wanted::Anywhere;
    let Ok(parts) = destination(machine, guard, &at.state, linear, 1, access, wanted) else {
        return;
    };
    if !guard.domain().check_write_parts(SPACE, &parts).permits() {
        return;
    }
    let Ok(_) = guard.domain_mut().authorize_write_parts(SPACE, &parts) else { return };
    let byte = parts.first().first().as_u64();
    let unit = Gpa::new(byte & !7);
    let mut current = [0; 8];
    if machine.ram.read(unit, &mut current).is_ok() {
        let bit = 1 << ((byte % 8) * 8);
        // If another processor has changed the descriptor meanwhile, it is another one.
        let _ = machine.ram.set_bits(unit, u64::from_le_bytes(current), bit);
    }
}

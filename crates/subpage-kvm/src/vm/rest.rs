//! The end of a processor's run: where it is held, and one instruction at a time.

use kvm_bindings::{KVM_GUESTDBG_USE_HW_BP, KVM_GUESTDBG_USE_SW_BP};
use subpage_emulate::Exception;
use subpage_emulate::bits::DR6_BS;

use super::run::handle;
use super::{StopCause, VmShared};
use crate::ending::Failure;
use crate::exit::{Exit, Next, enter};
use crate::step::HeldStep;
use crate::store::{finish, inject};
use crate::vcpu::{Activity, Kick, Processor};

/// Exits of one instruction that are completed before the processor rests: a string instruction may have
/// more, which then happen when it goes on.
const MOST_EXITS: u32 = 4096;

/// What INT3 raises.
const BREAKPOINT: Exception = Exception { vector: 3, error_code: None, address: None };

/// Number of the debug exception.
const DEBUG: u32 = 1;

/// Bits of DR6 that tell which breakpoint was met.
const DR6_BREAKPOINTS: u64 = 0xf;

/// How often a processor that waits for an interrupt is called out of a step before that counts as one:
/// the watch does it several times a second.
const WAITS: u32 = 3;

/// Has KVM complete what is pending of the last exit, without entering the guest, and lets the processor
/// rest. What came of it, if there is more to do first.
pub(super) fn come_to_rest(
    machine: &VmShared,
    processor: &mut Processor,
    kick: Kick,
) -> Result<Option<Next>, Failure> {
    let next = complete(machine, processor, kick, None)?.0;
    if next.is_none() {
        // Whoever waits for it to rest then knows of it.
        machine.stop_if_watched(processor.number);
        machine.vcpus.settle(processor.number as usize);
    }
    Ok(next)
}

/// Has KVM complete what is pending of the last exit, in a step perhaps, and tells whether a trap has ended
/// that: with what it completes, KVM raises the trap of an instruction that a port or a device has ended.
fn complete(
    machine: &VmShared,
    processor: &mut Processor,
    kick: Kick,
    step: Option<&HeldStep>,
) -> Result<(Option<Next>, bool), Failure> {
    let mut trapped = false;
    for _ in 0..MOST_EXITS {
        finish(machine.stores(), processor, kick)?;
        kick.raise();
        match (enter(&machine.ports, processor, kick)?, step) {
            (Exit::Interrupted, _) => break,
            (Exit::Debug { dr6, exception: DEBUG }, Some(step)) => {
                step.stopped(machine.stores(), processor, dr6)?;
                trapped = true;
            }
            (exit, _) => match handle(machine, processor, kick, exit)? {
                Next::Enter => {}
                next => return Ok((Some(next), trapped)),
            },
        }
    }
    Ok((None, trapped))
}

/// Executes one instruction and has the machine held.
pub(super) fn step_one(
    machine: &VmShared,
    processor: &mut Processor,
    kick: Kick,
) -> Result<Next, Failure> {
    let vcpu = processor.number;
    let before = processor.interrupted()?.state;
    let step = HeldStep::new(machine.stores(), processor, &processor.interrupted()?)?;
    let mut waits = 0;
    let next = loop {
        if !machine.vcpus.may_run(vcpu as usize) {
            break Next::Enter;
        }
        step.arm(processor)?;
        let exit = enter(&machine.ports, processor, kick)?;
        let called = matches!(exit, Exit::Interrupted);
        let mut done = matches!(exit, Exit::Debug { exception: DEBUG, .. });
        let mut next = match exit {
            Exit::Interrupted => Next::Enter,
            Exit::Debug { dr6, exception: DEBUG } => {
                step.stopped(machine.stores(), processor, dr6)?;
                Next::Enter
            }
            exit => handle(machine, processor, kick, exit)?,
        };
        if matches!(next, Next::Enter) {
            let (more, trapped) = complete(machine, processor, kick, Some(&step))?;
            next = more.unwrap_or(Next::Enter);
            done |= trapped;
        }
        processor.give_back()?;
        let now = processor.interrupted()?;
        let moved = done || now.state != before;
        if called && !moved && processor.activity(&now)? != Activity::Running {
            waits += 1;
        }
        if machine.stop_if_watched(vcpu) {
            break next;
        }
        if moved || waits == WAITS {
            machine.stop_here(vcpu, StopCause::Step);
            break next;
        }
        if !matches!(next, Next::Enter) {
            break next;
        }
    };
    let usual = processor.debugging;
    processor.set_guest_debug(&usual)?;
    Ok(next)
}

/// Whether what trapped is a debugger's breakpoint, for which the machine is then held: where KVM emulates
/// a guest's kernel, it does not know INT3.
pub(super) fn is_at_breakpoint(
    machine: &VmShared,
    processor: &mut Processor,
) -> Result<bool, Failure> {
    if processor.debugging.control & KVM_GUESTDBG_USE_SW_BP == 0 {
        return Ok(false);
    }
    let (at, _) = processor.at_exit()?;
    let is_debuggers = machine.is_breakpoint(&at.state);
    if is_debuggers {
        // KVM forgets the exception that it may have queued in place of the instruction.
        processor.go_on(&at.state)?;
        machine.stop_here(processor.number, StopCause::Breakpoint);
    }
    Ok(is_debuggers)
}

/// A debug exception or INT3, with what DR6 would say: a debugger's, for which the machine is held, or the
/// guest's own.
pub(super) fn debug_exit(
    machine: &VmShared,
    processor: &mut Processor,
    exception: u32,
    dr6: u64,
) -> Result<Next, Failure> {
    let state = processor.interrupted()?.state;
    let debugging = processor.debugging;
    let is_debuggers = if exception == DEBUG {
        let sets = debugging.control & KVM_GUESTDBG_USE_HW_BP != 0;
        sets && (dr6 & DR6_BREAKPOINTS != 0
            || dr6 & DR6_BS == 0 && debugging.arch.debugreg[..4].contains(&state.rip))
    } else {
        machine.is_breakpoint(&state)
    };
    if is_debuggers {
        machine.stop_here(processor.number, StopCause::Breakpoint);
        return Ok(Next::Enter);
    }
    if exception != DEBUG {
        return inject(processor, BREAKPOINT).map(Next::from);
    }
    // KVM sets DR6 where it delivers the exception itself.
    let mut debug = processor.debug_registers()?;
    debug.dr6 |= dr6 & (DR6_BS | DR6_BREAKPOINTS);
    processor.set_debug_registers(&debug)?;
    inject(processor, Exception::DEBUG).map(Next::from)
}

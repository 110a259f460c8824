//! The thread of a processor: into the guest, out again, and what the exit asks for.

use std::sync::Arc;

use subpage::rules::Moment;

use super::VmShared;
use super::rest::{come_to_rest, debug_exit, is_at_breakpoint, step_one};
use crate::ending::{Ending, Failure};
use crate::exit::{Exit, Next, after_port, enter};
use crate::metrics::ExitKind;
use crate::step::step;
use crate::store::{Cause, finish, in_traps, mmio_store, trapped, write_clock};
use crate::vcpu::{Activity, Kick, Processor};

/// Runs processor `number` until the machine ends.
pub(super) fn run(machine: &Arc<VmShared>, number: usize) {
    machine.vcpus.enlist(number);
    while let Some(mut processor) = machine.vcpus.enter(number) {
        let next = turns(machine, &mut processor, number);
        let next = explained(machine, &processor, next);
        let given = processor.give_back();
        if let Ok(Some(Next::Arm(_))) = &next {
            machine.waiting().come_to_moment();
        }
        // A change of slots takes all processors, this one too.
        drop(processor);
        let moment = match &next {
            Ok(Some(Next::Arm(moment))) => Some(*moment),
            _ => None,
        };
        if let Some(moment) = moment {
            machine.guest_arms(moment);
        }
        match next.and_then(|next| given.map(|()| next).map_err(Failure::from)) {
            Ok(None | Some(Next::Enter | Next::Arm(_))) => {}
            Ok(Some(Next::Settle)) => machine.settle(),
            Ok(Some(Next::Step(_))) => unreachable!("a step is made where it is asked for"),
            Ok(Some(Next::HoldTables(pages))) => machine.hold_tables(&pages),
            Ok(Some(Next::Reset)) => machine.reset(),
            Ok(Some(Next::End(Ending::Stopped { event }))) => {
                machine.stopped_by_rule(u32::try_from(number).unwrap_or(0), event);
            }
            Ok(Some(Next::End(ending))) => machine.end(ending),
            Err(failure) => machine.end(Ending::Failed(failure)),
        }
    }
    machine.vcpus.delist(number);
}

/// The end of a guest that cannot continue, with what its processor needs that lies in pages that trap,
/// unless it is known what is wrong.
fn explained(
    machine: &VmShared,
    processor: &Processor,
    mut next: Result<Option<Next>, Failure>,
) -> Result<Option<Next>, Failure> {
    let told = match &mut next {
        Ok(Some(Next::End(Ending::TripleFault { in_traps, .. }))) => in_traps,
        Err(failure) if failure.unexplained => &mut failure.in_traps,
        _ => return next,
    };
    if told.is_empty()
        && let Ok(at) = processor.interrupted()
    {
        *told = in_traps(machine.stores(), &machine.guard(), &at);
    }
    next
}

/// Runs a processor until it has to be let go of.
fn turns(
    machine: &VmShared,
    processor: &mut Processor,
    number: usize,
) -> Result<Option<Next>, Failure> {
    machine.vcpus.enter_turns(number);
    let kick = machine.vcpus.kick_of(number);
    let result = enter_again(machine, processor, number)
        .and_then(|next| finish(machine.stores(), processor, kick).map(|()| next))
        .and_then(|next| match next {
            None if machine.vcpus.is_held(number) => come_to_rest(machine, processor, kick),
            next => Ok(next),
        });
    machine.stop_if_watched(processor.number);
    store_ended(machine, processor);
    machine.vcpus.leave_turns(number);
    result
}

/// Has a processor enter the guest again and again.
fn enter_again(
    machine: &VmShared,
    processor: &mut Processor,
    number: usize,
) -> Result<Option<Next>, Failure> {
    let kick = machine.vcpus.kick_of(number);
    loop {
        machine.vcpus.set_out(number);
        if !machine.vcpus.may_run(number) {
            return Ok(None);
        }
        if machine.vcpus.is_waited_for() {
            finish(machine.stores(), processor, kick)?;
            if let Ok(at) = processor.interrupted() {
                machine.vcpus.leave_state(number, &at.state);
            }
        }
        if !std::mem::take(&mut processor.store_may_go_on) {
            store_ended(machine, processor);
            machine.vcpus.pass(number);
        }
        let next = if machine.vcpus.steps(number) {
            step_one(machine, processor, kick)?
        } else {
            turn(machine, processor, kick)?
        };
        match next {
            Next::Enter => {
                machine.stop_if_watched(processor.number);
            }
            next => return Ok(Some(next)),
        }
    }
}

/// The processor is between two stores: changes need not wait for it.
fn store_ended(machine: &VmShared, processor: &mut Processor) {
    if std::mem::take(&mut processor.in_pieces) {
        machine.guard().store_ended(processor.number);
    }
}

/// One stay in the guest, and what it asks for.
fn turn(machine: &VmShared, processor: &mut Processor, kick: Kick) -> Result<Next, Failure> {
    let exit = enter(&machine.ports, processor, kick)?;
    handle(machine, processor, kick, exit)
}

/// What an exit asks for.
pub(super) fn handle(
    machine: &VmShared,
    processor: &mut Processor,
    kick: Kick,
    exit: Exit,
) -> Result<Next, Failure> {
    let vcpu = processor.number;
    match exit {
        Exit::Interrupted => interrupted(machine, processor),
        Exit::Debug { dr6, exception } => {
            machine.metrics.exit(ExitKind::Other);
            debug_exit(machine, processor, exception, dr6)
        }
        Exit::Store { address, data } => {
            let began = machine.clock.now();
            machine.metrics.exit(ExitKind::Mmio);
            let next =
                mmio_store(machine.stores(), processor, kick, address, &data).map(Next::from);
            machine.metrics.write_trapped(machine.clock.since(began));
            after_store(machine, vcpu, next)
        }
        Exit::Trapped(_) if is_at_breakpoint(machine, processor)? => Ok(Next::Enter),
        Exit::Trapped(cause) => {
            let began = machine.clock.now();
            let kind = if cause == Cause::Fault { ExitKind::Fault } else { ExitKind::Emulation };
            machine.metrics.exit(kind);
            let next = match trapped(machine.stores(), processor, cause).map(Next::from) {
                Ok(Next::Step(why)) => step(machine.steps(vcpu as usize), processor, kick, &why),
                next => next,
            };
            machine.metrics.write_trapped(machine.clock.since(began));
            after_store(machine, vcpu, next)
        }
        Exit::Port(effect) => {
            machine.metrics.exit(ExitKind::Io);
            Ok(after_port(effect))
        }
        Exit::Clock(request) => {
            machine.metrics.exit(ExitKind::Other);
            let Some(request) = request else { return Ok(Next::Enter) };
            let mut guard = machine.guard();
            write_clock(machine.stores(), &mut guard, &machine.vm, processor, request)
                .map(Next::from)
        }
        Exit::Nothing(kind) => {
            machine.metrics.exit(kind);
            Ok(Next::Enter)
        }
        Exit::End(ending) => {
            machine.metrics.exit(ExitKind::Other);
            Ok(Next::End(ending))
        }
        Exit::Strange(reason) => {
            machine.metrics.exit(ExitKind::Other);
            let rip = processor.interrupted().ok().map(|at| at.state.rip);
            Err(Failure { rip, unexplained: true, ..Failure::new(vcpu, reason) })
        }
    }
}

/// What comes after a store: perhaps it has told that the guest's kernel starts its first program.
fn after_store(
    machine: &VmShared,
    vcpu: u32,
    next: Result<Next, Failure>,
) -> Result<Next, Failure> {
    match next {
        Ok(Next::Enter | Next::Settle) if machine.events.take_first_program(vcpu) => {
            Ok(Next::Arm(Moment::Init))
        }
        next => next,
    }
}

/// A signal got the processor out: somebody wants it, or the watch asks whether it gets on.
fn interrupted(machine: &VmShared, processor: &mut Processor) -> Result<Next, Failure> {
    machine.metrics.exit(ExitKind::Interrupted);
    if !machine.watch.asks(processor.number) {
        return Ok(Next::Enter);
    }
    let at = processor.interrupted()?;
    match processor.activity(&at)? {
        Activity::Halted if machine.watch.halted(processor.number) => Ok(Next::End(Ending::Halted)),
        // KVM's emulator starts some stores over and over (SGDT to a page that traps). Where a
        // processor is found twice at the same store to such a page, it is carried out here.
        Activity::Running if processor.found_again(at.state.rip) => {
            trapped(machine.stores(), processor, Cause::Stuck).map(Next::from)
        }
        // One that waits for an interrupt is at the next instruction already.
        Activity::Running | Activity::Waiting | Activity::Halted => Ok(Next::Enter),
    }
}

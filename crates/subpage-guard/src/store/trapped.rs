//! Stores that left the guest before they happened: carried out here, exactly.
//!
//! The decision about every byte and the store itself are made under the guard's lock, by executing
//! the same instruction on the guest's bytes (`subpage-trap`). All writes of all processors to a
//! page that traps go through this lock, so a locked instruction is atomic among them, and the
//! processor's own lock makes it atomic towards writes that do not trap.

use std::sync::Arc;

use subpage::address::{ByteRange, PAGE_BYTES};
use subpage_emulate::bits::RFLAGS_TF;
use subpage_emulate::guest::State;
use subpage_emulate::{
    Access, Decoded, Exception, Fault, GuestInstruction, Store, XsaveArea, translate,
};
use subpage_trap::{Record, StoreOutcome, Trapped, Wanted, software_interrupt, store as carry_out};

use super::backend::{Backend, Before, HostFailure, Obstacle};
use super::inject::{end_instruction, inject};
use super::plain::{Plain, plain};
use super::{Next, StoreContext, Unsolved, delivery, walk};
use crate::failure::Failure;
use crate::memory::GuestMemory;
use crate::vcpu::{Interrupted, Processor, ProcessorError};

/// Elements of a repeated string instruction that are carried out before the processor is let go:
/// each one that traps costs an exit otherwise.
const ELEMENTS: u32 = 256;

/// How often the same place may trap without visible progress.
const PATIENCE: u32 = 64;

/// Why KVM did not let an instruction happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Some access of it needs a page that may not be written (KVM_RUN gives EFAULT).
    Fault,
    /// KVM's emulator does not know it, or failed at it.
    Emulation,
    /// An interrupt or exception could not be delivered.
    Delivery,
    /// The processor was found at the same place as some time before.
    Stuck,
}

/// Handles an exit from an instruction that has not happened.
pub fn trapped(
    context: StoreContext<'_, impl GuestMemory>,
    processor: &mut Processor,
    cause: Cause,
) -> Result<Next, Failure> {
    let looked = if cause == Cause::Fault { plain(context, processor) } else { Plain::Other(None) };
    let (failed, first) = match looked {
        Plain::Done(next) => return Ok(next),
        Plain::Failed(instruction, obstacle) => (Some((instruction, obstacle)), None),
        Plain::Other(first) => (None, first),
    };
    let (at, events) = processor.at_exit()?;
    let mut code = None;
    let shadow = events.interrupt.shadow != 0;
    let pending = delivery::pending(&events, cause);
    let result = match (failed, pending, cause) {
        (Some((instruction, obstacle)), ..) => {
            code = Some(instruction);
            Err(obstacle)
        }
        // Nothing is known to be wrong: KVM delivers it.
        (None, Some(_), Cause::Stuck) => return Ok(Next::Enter),
        (None, Some(event), _) => {
            delivery::deliver(context, processor, &at, &event, wanted(context, cause))
        }
        (None, None, _) => instruction(context, processor, &at, shadow, cause, first, &mut code),
    };
    let obstacle = match result {
        Ok(next) => return Ok(next),
        Err(Obstacle::Failed(HostFailure::Processor(failure))) => return Err(failure),
        // The processor was looked at without its having complained.
        Err(_) if cause == Cause::Stuck => return Ok(Next::Enter),
        Err(Obstacle::Exception(exception)) => return inject(processor, exception),
        Err(obstacle) => obstacle,
    };
    // A program must not be able to stop the machine that its kernel runs on. What is the host's fault
    // is told all the same, and an event that cannot be delivered has no instruction to refuse.
    let refusable = at.state.cpl == 3
        && pending.is_none()
        && !matches!(obstacle, Obstacle::Failed(_) | Obstacle::OutOfMemory);
    let visits = visit(context, processor, &at);
    // KVM tells no more of these than that it failed. Where it emulates all of a guest's kernel, it does
    // not know the instruction.
    let unexplained = match obstacle {
        Obstacle::Again => true,
        Obstacle::NotOurs => context.native || cause != Cause::Emulation,
        _ => false,
    };
    let reason = match obstacle {
        Obstacle::Again if visits <= PATIENCE => return Ok(Next::Enter),
        Obstacle::Again => "its store traps again and again although it is permitted".to_owned(),
        // What trapped may be a walk over page tables, whatever the instruction is.
        obstacle if cause == Cause::Fault && context.native && obstacle.may_step() => {
            return Ok(Next::Step(Unsolved { code, reason: reason_of(&obstacle), visits }));
        }
        obstacle if cause == Cause::Fault => {
            let stack = pending.and_then(|event| delivery::frame_at(context, &at, &event));
            if let Some(next) = walk::help(context, &at, code.as_ref(), stack, visits) {
                return Ok(next);
            }
            match obstacle {
                Obstacle::NotOurs => {
                    "KVM reports a write to a guarded page that it does not make".to_owned()
                }
                obstacle => reason_of(&obstacle),
            }
        }
        // The page may have been opened since KVM failed at it.
        Obstacle::NotOurs if visits == 1 => return Ok(Next::Enter),
        // KVM's own answer to a program; a kernel has no business there.
        Obstacle::NotOurs if cause == Cause::Emulation && at.state.cpl == 3 => {
            return inject(processor, Exception::INVALID_OPCODE);
        }
        Obstacle::NotOurs if cause == Cause::Delivery => {
            "KVM cannot deliver an interrupt or exception".to_owned()
        }
        Obstacle::NotOurs => "KVM cannot emulate the instruction".to_owned(),
        obstacle => reason_of(&obstacle),
    };
    if refusable {
        context.metrics.refused();
        processor.stuck.reset();
        return inject(processor, Exception::INVALID_OPCODE);
    }
    let stored_to = code.and_then(|code| guarded_operand(context, &at, &code));
    let reason = [Some(reason), stored_to].into_iter().flatten().collect::<Vec<_>>().join("; ");
    Err(Failure { unexplained, ..failure(processor, &at, code.as_ref(), &reason) })
}

/// Which trapping page an instruction writes to, and a rule that guards bytes there, for people.
fn guarded_operand(
    context: StoreContext<'_, impl GuestMemory>,
    at: &Interrupted,
    code: &GuestInstruction,
) -> Option<String> {
    let guard = context.guard();
    let written = code.accesses(&at.state).into_iter().filter(|(_, _, write)| *write);
    written.into_iter().find_map(|(linear, _, _)| {
        let access = Access::write_by(&at.state);
        let to = translate(context.ram, context.paging, &at.state, linear, access).ok()?.gpa;
        let page = ByteRange::new(to.gfn().gpa(), PAGE_BYTES).ok()?;
        let name = guard.domain().rules().touching(page).map(|active| &active.rule.name).next();
        let by = name.map_or_else(String::new, |name| format!(", in a page that {name} guards"));
        guard.traps().traps(to.gfn()).then(|| format!("it stores at {:#x}{by}", to.as_u64()))
    })
}

/// Which frames of events are pushed here. Where the processor's own walk of a page table traps, it is
/// not the frame that did, and the processor cannot push it.
fn wanted(context: StoreContext<'_, impl GuestMemory>, cause: Cause) -> Wanted {
    if context.native && cause == Cause::Fault { Wanted::Anywhere } else { Wanted::InTraps }
}

/// Why a store is not done, for people.
fn reason_of(obstacle: &Obstacle) -> String {
    match obstacle {
        Obstacle::Unknown(why) => format!("neither KVM nor this program carries out {why}"),
        obstacle => obstacle.to_string(),
    }
}

/// How often the processor came here in a row while nothing has changed about what traps.
fn visit(
    context: StoreContext<'_, impl GuestMemory>,
    processor: &mut Processor,
    at: &Interrupted,
) -> u32 {
    let changes = context.guard().traps().changes();
    processor.stuck.visit(at.state.rip, changes)
}

/// A processor cannot go on at this instruction, for a reason that is a sentence without its end.
pub fn failure(
    processor: &Processor,
    at: &Interrupted,
    code: Option<&GuestInstruction>,
    reason: &str,
) -> Failure {
    Failure {
        vcpu: processor.number,
        rip: Some(at.state.rip),
        instruction: code.map_or_else(Vec::new, |code| code.bytes().to_vec()),
        reason: reason.to_owned(),
        unexplained: false,
        in_traps: Vec::new(),
    }
}

/// Carries out the instruction at RIP, if it stores to a page that traps; `first` is that instruction, if it
/// was decoded before.
fn instruction(
    context: StoreContext<'_, impl GuestMemory>,
    processor: &mut Processor,
    at: &Interrupted,
    shadow: bool,
    cause: Cause,
    mut first: Option<Box<Decoded>>,
    code: &mut Option<GuestInstruction>,
) -> Result<Next, Obstacle> {
    let mut work = Work { context, at, shadow, state: at.state, extended: None, settle: false };
    for element in 0..ELEMENTS {
        let found = match first.take() {
            Some(mut first) => {
                first.renew(&work.state);
                Ok(first)
            }
            None => processor.decode_cache.take(context.ram, context.paging, &work.state),
        };
        let decoded = match found {
            Ok(found) => found,
            Err(_) if element != 0 => break,
            // It cannot even be fetched now, though it could be when it trapped: another processor has
            // changed the tables. A processor that fetches now gets this exception.
            Err(Fault::Exception(exception))
                if matches!(cause, Cause::Emulation | Cause::Fault) =>
            {
                return Err(Obstacle::Exception(exception));
            }
            Err(_) => return Err(Obstacle::NotOurs),
        };
        let instruction = decoded.instruction();
        *code = Some(*instruction);
        match software_interrupt(instruction) {
            Some(event) if element == 0 => {
                return delivery::deliver(context, processor, at, &event, wanted(context, cause));
            }
            // A string store has written it over itself: it is found when the guest gets there.
            Some(_) => break,
            None => {}
        }
        let result = match decoded.store() {
            Ok(store) => work.element(processor, instruction, store),
            Err(refusal) => Err(refusal.into()),
        };
        processor.decode_cache.put(decoded);
        match result {
            Ok(StoreOutcome::Done) => break,
            // The single-step trap comes after each element.
            Ok(StoreOutcome::Repeats) if at.state.rflags & RFLAGS_TF != 0 => break,
            // A debugger stops the guest here.
            Ok(StoreOutcome::Repeats) if context.guard().has_noted(processor.number) => break,
            Ok(StoreOutcome::Repeats) => {}
            Ok(StoreOutcome::Refused(exception)) => return Err(Obstacle::Exception(exception)),
            Ok(StoreOutcome::Stopped(event)) => {
                work.finish(processor).map_err(failed)?;
                return Ok(Next::Stopped(event));
            }
            // What has been done stays done; the rest is found out when the guest gets there.
            Err(_) if element > 0 => break,
            Err(obstacle) => {
                // #XM comes with its flags in MXCSR.
                if let (Obstacle::Exception(_), Some(area)) = (&obstacle, &work.extended) {
                    processor.set_extended(area).map_err(failed)?;
                }
                return Err(obstacle);
            }
        }
    }
    processor.stuck.reset();
    work.finish(processor).map_err(failed)?;
    Ok(if work.settle { Next::Settle } else { Next::Enter })
}

/// A failure of KVM, as an obstacle.
pub(super) fn failed(error: ProcessorError) -> Obstacle {
    Obstacle::Failed(HostFailure::Processor(error.into()))
}

struct Work<'a, M> {
    context: StoreContext<'a, M>,
    at: &'a Interrupted,
    /// STI or MOV SS came before the instruction.
    shadow: bool,
    /// The registers as the guest will have them.
    state: State,
    /// Extended registers, if an instruction used them.
    extended: Option<Box<XsaveArea>>,
    /// A page traps that need not.
    settle: bool,
}

impl<M: GuestMemory> Work<'_, M> {
    /// One store, under the lock.
    fn element(
        &mut self,
        processor: &mut Processor,
        instruction: &GuestInstruction,
        store: &Store,
    ) -> Result<StoreOutcome<Arc<Record>>, Obstacle> {
        if store.uses_extended() && self.extended.is_none() {
            self.extended = Some(processor.extended().map_err(failed)?);
        }
        let mut guard = self.context.guard();
        let mut backend = Backend {
            context: self.context,
            guard: &mut guard,
            processor,
            tables: &self.at.tables,
            before: Before::Known(&self.at.state),
            extended: &mut self.extended,
            settle: false,
        };
        let trapped = Trapped { instruction, store };
        let outcome = carry_out(&mut backend, trapped, &mut self.state);
        self.settle |= backend.settle;
        outcome
    }

    /// Gives the registers back to KVM.
    fn finish(&mut self, processor: &mut Processor) -> Result<(), ProcessorError> {
        if let Some(area) = &self.extended {
            processor.set_extended(area)?;
        }
        if self.state.segments.cs == self.at.state.segments.cs {
            processor.go_on_at_entry(&self.state)?;
        } else {
            processor.go_on_with_segments(&self.state)?;
        }
        end_instruction(processor, self.at, self.shadow)
    }
}

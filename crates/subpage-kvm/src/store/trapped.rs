//! Stores that left the guest before they happened: carried out here, exactly.
//!
//! The decision about every byte and the store itself are made under the guard's lock, by executing
//! the same instruction on the guest's bytes (`subpage-emulate`). All writes of all processors to a
//! page that traps go through this lock, so a locked instruction is atomic among them, and the
//! processor's own lock makes it atomic towards writes that do not trap.

use subpage::domain::{Decision, WriteParts};
use subpage_emulate::guest::State;
use subpage_emulate::{
    Access, Exception, Executor, Extended, Fault, GuestInstruction, MAX_STORE_BYTES, Progress,
    Scratch, Store, Window, XsaveArea,
};

use super::destination::{Wanted, destination, read};
use super::inject::{end_instruction, inject};
use super::obstacle::Obstacle;
use super::report::{Account, Outcome, report};
use super::{Failure, Next, delivery, walk};
use crate::guard::SPACE;
use crate::vcpu::{Interrupted, Processor};
use crate::vm::{Ending, Machine};

/// Elements of a repeated string instruction that are carried out before the processor is let go:
/// each one that traps costs an exit otherwise.
const ELEMENTS: u32 = 256;

/// RFLAGS.TF.
const TRAP_FLAG: u64 = 1 << 8;

/// #UD.
const INVALID_OPCODE: Exception = Exception { vector: 6, error_code: None, address: None };

/// How often the same place may trap without visible progress.
const PATIENCE: u32 = 64;

/// Why KVM did not let an instruction happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
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
pub(crate) fn trapped(
    machine: &Machine,
    processor: &mut Processor,
    cause: Cause,
) -> Result<Next, Failure> {
    let (at, events) = processor.at_exit()?;
    let mut code = None;
    let shadow = events.interrupt.shadow != 0;
    let pending = delivery::pending(&events, cause);
    let result = match (pending, cause) {
        // Nothing is known to be wrong: KVM delivers it.
        (Some(_), Cause::Stuck) => return Ok(Next::Enter),
        (Some(event), _) => delivery::deliver(machine, processor, &at, &event),
        (None, _) => instruction(machine, processor, &at, shadow, cause, &mut code),
    };
    let obstacle = match result {
        Ok(next) => return Ok(next),
        Err(Obstacle::Failed(failure)) => return Err(failure),
        // The processor was looked at without its having complained.
        Err(_) if cause == Cause::Stuck => return Ok(Next::Enter),
        Err(Obstacle::Exception(exception)) => return inject(processor, exception),
        Err(obstacle) => obstacle,
    };
    let visits = visit(machine, processor, &at);
    let reason = match obstacle {
        Obstacle::Again if visits <= PATIENCE => return Ok(Next::Enter),
        Obstacle::Again => "its store traps again and again although it is permitted".to_owned(),
        // What trapped may be a walk over page tables, whatever the instruction is.
        obstacle if cause == Cause::Fault => {
            let stack = pending.and_then(|event| delivery::frame_at(machine, &at, &event));
            if let Some(next) = walk::help(machine, &at, code.as_ref(), stack, visits) {
                return Ok(next);
            }
            match obstacle {
                Obstacle::Cannot(reason) => reason,
                _ => "KVM reports a write to a guarded page that it does not make".to_owned(),
            }
        }
        // The page may have been opened since KVM failed at it.
        Obstacle::NotOurs if visits == 1 => return Ok(Next::Enter),
        // KVM's own answer to a program; a kernel has no business there.
        Obstacle::NotOurs if cause == Cause::Emulation && at.state.cpl == 3 => {
            return inject(processor, INVALID_OPCODE);
        }
        Obstacle::NotOurs if cause == Cause::Delivery => {
            "KVM cannot deliver an interrupt or exception".to_owned()
        }
        Obstacle::Cannot(reason) => reason,
        _ => "KVM cannot emulate the instruction".to_owned(),
    };
    Err(failure(processor, &at, code.as_ref(), &reason))
}

/// How often the processor came here in a row while nothing has changed about what traps.
fn visit(machine: &Machine, processor: &mut Processor, at: &Interrupted) -> u32 {
    let changes = machine.guard().traps().changes();
    processor.stuck.visit(at.state.rip, changes)
}

fn failure(
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
    }
}

/// Carries out the instruction at RIP, if it stores to a page that traps.
fn instruction(
    machine: &Machine,
    processor: &mut Processor,
    at: &Interrupted,
    shadow: bool,
    cause: Cause,
    code: &mut Option<GuestInstruction>,
) -> Result<Next, Obstacle> {
    let mut work = Work { machine, at, shadow, state: at.state, extended: None, settle: false };
    for element in 0..ELEMENTS {
        let found = processor.decode_cache.find(&machine.ram, machine.paging, &work.state);
        let (instruction, store) = match found {
            Ok(found) => found,
            // It cannot even be fetched: KVM finds that out itself, unless it just has.
            Err(Fault::Exception(exception)) if cause == Cause::Emulation => {
                return Err(Obstacle::Exception(exception));
            }
            Err(_) if element == 0 => return Err(Obstacle::NotOurs),
            Err(_) => break,
        };
        *code = Some(instruction);
        match delivery::software_interrupt(&instruction) {
            Some(event) if element == 0 => {
                return delivery::deliver(machine, processor, at, &event);
            }
            // A string store has written it over itself: it is found when the guest gets there.
            Some(_) => break,
            None => {}
        }
        let result = match &store {
            Ok(store) => work.element(processor, &instruction, store),
            Err(refusal) => Err((*refusal).into()),
        };
        match result {
            Ok(Step::Done) => break,
            // The single-step trap comes after each element.
            Ok(Step::Repeats) if at.state.rflags & TRAP_FLAG != 0 => break,
            Ok(Step::Repeats) => {}
            Ok(Step::End(ending)) => {
                work.finish(processor)?;
                return Ok(Next::End(ending));
            }
            // What has been done stays done; the rest is found out when the guest gets there.
            Err(_) if element > 0 => break,
            Err(obstacle) => return Err(obstacle),
        }
    }
    processor.stuck.reset();
    work.finish(processor)?;
    Ok(if work.settle { Next::Settle } else { Next::Enter })
}

/// What came of one store.
enum Step {
    /// The processor is behind the instruction.
    Done,
    /// It is at the same string instruction with elements left.
    Repeats,
    /// A rule stops the guest.
    End(Ending),
}

/// What came of a store that was carried out on a copy of the guest's bytes.
struct DryRun {
    scratch: Scratch,
    before: State,
    after: State,
    extended: Option<Box<XsaveArea>>,
    progress: Progress,
}

struct Work<'a> {
    machine: &'a Machine,
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

impl Work<'_> {
    /// Decides about one store and carries it out: on the guest's bytes if it is permitted, on a copy
    /// of them if not, so that registers and flags are what a ROM would have left.
    fn element(
        &mut self,
        processor: &mut Processor,
        instruction: &GuestInstruction,
        store: &Store,
    ) -> Result<Step, Obstacle> {
        let machine = self.machine;
        if store.substitute().is_some_and(subpage_emulate::Substitute::is_extended)
            && self.extended.is_none()
        {
            self.extended = Some(processor.extended()?);
        }
        let mut guard = machine.guard();
        let access = Access::write_by(&self.state);
        let (linear, length) = (store.linear(), store.length());
        let wanted = Wanted::InTraps;
        let parts = destination(machine, &mut guard, &self.state, linear, length, access, wanted)?;
        guard.ledger_count(&parts);
        machine.metrics.checks(1);
        let considered = guard.domain_mut().consider_write(SPACE, &parts);
        let decision = considered.decision();
        let outcome = match decision {
            Decision::Allowed => None,
            Decision::Reported { rule, at } => Some(Outcome::Reported { rule, at }),
            Decision::Denied { rule, at, stop } => Some(Outcome::Denied { rule, at, stop }),
            Decision::NotEligible { at } | Decision::NotMapped { at } => {
                let at = at.as_u64();
                return Err(Obstacle::Cannot(format!("there is no memory at {at:#x}")));
            }
        };
        let at = self.at;
        // What is reported is reported with its bytes and the registers before it.
        let mut copy = match outcome {
            None => None,
            Some(_) => Some(self.rehearse(processor, store, &parts)?),
        };
        let decision = considered.commit().map_err(|_| {
            Obstacle::Cannot("the engine has no memory left for a record of a write".into())
        })?;
        let progress = if decision.permits() {
            let (state, extended) = (&mut self.state, &mut self.extended);
            machine
                .ram
                .with_window(&parts, |window| {
                    complete(machine, at, processor, store, state, extended, window)
                })
                .map_err(|_| Obstacle::Cannot("the host cannot map the guest's bytes".into()))??
        } else {
            let copy = copy.as_mut().expect("denied writes have a copy");
            self.state = copy.after;
            self.extended = copy.extended.take();
            copy.progress
        };
        let mut ending = None;
        if let (Some(outcome), Some(copy)) = (outcome, &copy) {
            let account = Account {
                vcpu: processor.number,
                state: &copy.before,
                parts: &parts,
                bytes: copy.scratch.bytes(),
                gla: Some(store.linear()),
                instruction: Some((copy.before.rip, instruction.bytes())),
                exact: true,
            };
            let event = report(machine, &mut guard, outcome, &account);
            if let Outcome::Denied { stop: true, .. } = outcome {
                ending = Some(Ending::Stopped { event });
            }
        }
        self.settle |= decision.permits() && guard.after_write(&machine.ram, &parts);
        Ok(match (ending, progress) {
            (Some(ending), _) => Step::End(ending),
            (None, Progress::Done) => Step::Done,
            (None, Progress::Repeats) => Step::Repeats,
        })
    }

    /// Carries a store out on a copy of the guest's bytes. On the heap and apart: most writes do not
    /// need it, and their stack is to be small.
    #[cold]
    fn rehearse(
        &self,
        processor: &mut Processor,
        store: &Store,
        parts: &WriteParts,
    ) -> Result<Box<DryRun>, Obstacle> {
        let mut current = [0; MAX_STORE_BYTES];
        let current = &mut current[..store.length()];
        read(self.machine, parts, current)?;
        let mut scratch = Scratch::new(store.linear(), current);
        let (before, mut after) = (self.state, self.state);
        let mut extended = self.extended.clone();
        let window = &mut scratch.window();
        let progress =
            complete(self.machine, self.at, processor, store, &mut after, &mut extended, window)?;
        Ok(Box::new(DryRun { scratch, before, after, extended, progress }))
    }

    /// Gives the registers back to KVM.
    fn finish(&mut self, processor: &mut Processor) -> Result<(), Obstacle> {
        if let Some(area) = &self.extended {
            processor.set_extended(area)?;
        }
        processor.go_on_at_entry(&self.state)?;
        end_instruction(processor, self.at, self.shadow)?;
        Ok(())
    }
}

/// Carries a store out on `window`. If that fails, nothing has changed.
fn complete(
    machine: &Machine,
    at: &Interrupted,
    processor: &mut Processor,
    store: &Store,
    state: &mut State,
    extended: &mut Option<Box<XsaveArea>>,
    window: &mut Window<'_>,
) -> Result<Progress, Obstacle> {
    let components = processor.xstate;
    let extended = match extended {
        Some(area) if components != 0 => Extended::Xsave { area, components },
        Some(_) => return Err(Obstacle::Cannot("this host has no XSAVE".into())),
        None => Extended::Unused,
    };
    let progress = processor.trampoline.with(|trampoline| {
        let mut executor = Executor {
            memory: &machine.ram,
            paging: machine.paging,
            tables: &at.tables,
            trampoline,
            extended,
        };
        executor.complete(store, state, window)
    });
    progress.map_err(|incomplete| match incomplete.into() {
        Obstacle::Faulted => match processor.trampoline.fault() {
            Some(exception) => Obstacle::Exception(exception),
            None => Obstacle::Cannot("it faults when it is carried out here".into()),
        },
        obstacle => obstacle,
    })
}

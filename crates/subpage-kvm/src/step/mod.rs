//! One instruction with pages open that trap otherwise, executed by the processor itself.
//!
//! What software cannot carry out exactly: walks of the guest's page tables in a page that traps, on
//! processors for which every walk counts as a write, and instructions that the decoder does not know.
//! The processor moves into KVM's [second address space](space), where those pages are
//! [copies](copies), and executes [one instruction](plan). What it has [changed](changes) in them is
//! decided about and done on the guest's memory; denied bytes never get there.
//!
//! All of that under the guard's lock: the copies are what memory holds, and no other processor writes
//! to pages that trap meanwhile. Other processors run on.

mod changes;
mod copies;
mod held;
mod notice;
mod plan;
mod space;
mod tracked;

pub(crate) use held::HeldStep;
pub use notice::{Notice, PageTables};

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VmFd;
use subpage::address::Gpa;
use subpage_emulate::bits::{DR6_BS, RFLAGS_RF, RFLAGS_TF};
use subpage_emulate::guest::{PhysicalMemory as _, Register, State};
use subpage_emulate::{Access, Exception, translate};

use crate::devices::Ports;
use crate::ending::{Ending, Failure};
use crate::exit::{Exit, Next, after_port, enter};
use crate::guard::Guard;
use crate::memory::Ram;
use crate::metrics::ExitKind;
use crate::store::{
    Cause, StoreContext, Unsolved, end_instruction, failure, in_traps, inject, mark_walks,
    write_clock,
};
use crate::vcpu::{Interrupted, Kick, Processor, ProcessorError};
use changes::Made;
use copies::Copies;
use notice::Notices;
use plan::{End, Plan, Refusal, plan};
use tracked::Tracked;

/// Most pages that are open in one step.
const STEP_TABLES: usize = 64;

/// Instructions in a row, at most, before the processor leaves the second address space: closing drops
/// its translations, so where one walk trapped, the next instruction's often does.
const BATCH: u32 = 64;

/// How often the same instruction may find that other pages are needed.
const PATIENCE: u32 = 64;

/// What stepping over an instruction needs of the machine.
#[derive(Clone, Copy)]
pub(crate) struct StepContext<'a> {
    pub(crate) stores: StoreContext<'a, Ram>,
    pub(crate) vm: &'a Arc<VmFd>,
    pub(crate) ports: &'a Mutex<Ports>,
    pub(crate) stepping: &'a Stepping,
    /// Not more than one instruction.
    pub(crate) one: bool,
}

/// What a machine keeps for steps.
#[derive(Debug, Default)]
pub(crate) struct Stepping {
    inner: Mutex<Inner>,
    /// Walks trap though no flag is to be set: they count as writes.
    walks_write: AtomicBool,
    steps: AtomicU64,
    pub(crate) notices: Notices,
}

#[derive(Debug, Default)]
struct Inner {
    /// Whether there is a second address space; what is missing if not.
    space: Option<Result<(), String>>,
    copies: Copies,
    /// Steps for tables that trap for tracking alone.
    tracked: Tracked,
}

impl Stepping {
    /// With what to do about page tables in pages that trap.
    pub(crate) fn new(choice: PageTables) -> Self {
        Self { notices: Notices::new(choice), ..Self::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many instructions were stepped over.
    pub(crate) fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Whether walks were found to count as writes.
    pub(crate) fn walks_write(&self) -> bool {
        self.walks_write.load(Ordering::Relaxed)
    }
}

/// What ended a batch of steps.
enum BatchEnd {
    /// The processor continues as usual.
    GoOn,
    /// It gets an exception; none of the instruction has happened.
    Exception(Exception),
    /// The guest's own single-step trap follows the instruction that began in this state.
    Trap(Box<Interrupted>),
    /// #DB at the next instruction, with DR6 as it is (ICEBP).
    DebugTrap,
    /// Another page is needed.
    Wider,
    /// The guest is to be ended or reset.
    Next(Next),
    /// It is not stepped over, and nothing of it has happened; why, as a sentence without its end.
    Refused(String),
    /// The guest cannot continue; why, as a sentence without its end.
    Cannot(String),
}

/// Steps over the instruction at RIP, which has just trapped, and as many more as is worth it.
pub(crate) fn step(
    context: StepContext<'_>,
    processor: &mut Processor,
    kick: Kick,
    why: &Unsolved,
) -> Result<Next, Failure> {
    let (at, _) = processor.at_exit()?;
    let code = why.code.as_ref();
    let mut guard = context.stores.guard();
    let mut inner = context.stepping.inner();
    if !context.stepping.walks_write() {
        let (set, held) = mark_walks(context.stores, &mut guard, &at, code, None);
        if set && why.visits <= 1 {
            // Perhaps that was all: some processors, and KVM's own walks, only want to set flags.
            return Ok(Next::Enter);
        }
        if !held.is_empty() {
            context.stepping.walks_write.store(true, Ordering::Relaxed);
        }
    }
    let outcome = match try_batch(context, processor, kick, &mut guard, &mut inner, &at, false)? {
        // The decoder does not tell all that it touches.
        BatchEnd::Wider => {
            let (at, _) = processor.at_exit()?;
            try_batch(context, processor, kick, &mut guard, &mut inner, &at, true)?
        }
        outcome => outcome,
    };
    drop(inner);
    drop(guard);
    match outcome {
        BatchEnd::GoOn => {
            processor.stuck.reset();
            Ok(Next::Enter)
        }
        BatchEnd::Exception(exception) => inject(processor, exception).map(Next::from),
        BatchEnd::Trap(before) => {
            processor.stuck.reset();
            end_instruction(processor, &before, false)?;
            Ok(Next::Enter)
        }
        BatchEnd::DebugTrap => {
            let mut state = at.state;
            state.rip = state.rip.wrapping_add(code.map_or(1, |code| code.bytes().len() as u64));
            processor.go_on(&state)?;
            inject(processor, Exception::DEBUG).map(Next::from)
        }
        BatchEnd::Next(next) => Ok(next),
        // Tables in pages that do not trap may have changed on the way.
        BatchEnd::Wider if why.visits < PATIENCE => Ok(Next::Enter),
        // A program must not be able to end the guest.
        BatchEnd::Wider | BatchEnd::Refused(_) if at.state.cpl == 3 => {
            context.stores.metrics.refused();
            processor.stuck.reset();
            inject(processor, Exception::INVALID_OPCODE).map(Next::from)
        }
        BatchEnd::Wider => Err(failure(processor, &at, code, &why.reason)),
        BatchEnd::Refused(reason) | BatchEnd::Cannot(reason) => {
            let reason = format!("{}, and it cannot be stepped over: {reason}", why.reason);
            Err(failure(processor, &at, code, &reason))
        }
    }
}

/// Plans the first step, and makes it and those after it in the second address space.
fn try_batch(
    context: StepContext<'_>,
    processor: &mut Processor,
    kick: Kick,
    guard: &mut Guard,
    inner: &mut Inner,
    at: &Interrupted,
    wide: bool,
) -> Result<BatchEnd, Failure> {
    let made = inner
        .space
        .get_or_insert_with(|| space::make(context.vm, context.stores.ram, guard.traps()));
    if let Err(missing) = made {
        return Ok(BatchEnd::Cannot(missing.clone()));
    }
    let watched = processor.debug_registers()?.dr7;
    let first = match plan(context.stores, guard, processor, at, watched, wide) {
        Ok(plan) => plan,
        Err(refusal) => return Ok(refused(refusal)),
    };
    if let Err(reason) = context.stepping.notices.see(guard, &first.tables) {
        return Ok(BatchEnd::Cannot(reason));
    }
    match inner.tracked.open(context.stores.ram, guard, &first.tables) {
        Ok(false) => {}
        Ok(true) => return Ok(BatchEnd::GoOn),
        Err(reason) => return Ok(BatchEnd::Cannot(reason.into())),
    }
    let twin = context.stores.ram.view().twin().expect("made with the second address space");
    if let Err(error) = inner.copies.open(context.stores.ram, twin, &first.pages()) {
        return Ok(BatchEnd::Cannot(error.to_string()));
    }
    // A debugger stops the guest between two instructions.
    let usual = processor.debugging;
    let alone = usual.control != 0 || context.one || guard.is_watched();
    let most = if alone { 1 } else { BATCH };
    space::go(processor, true)?;
    let mut batch =
        Batch { context, processor, kick, guard, copies: &mut inner.copies, watched, made: 0 };
    let outcome = batch.run(at, first, most);
    let made = batch.made;
    context.stepping.steps.fetch_add(made.into(), Ordering::Relaxed);
    let closed = processor.set_guest_debug(&usual);
    let left = space::go(processor, false);
    closed.and(left)?;
    outcome
}

fn refused(refusal: Refusal) -> BatchEnd {
    match refusal {
        Refusal::Exception(exception) => BatchEnd::Exception(exception),
        Refusal::DebugTrap => BatchEnd::DebugTrap,
        Refusal::Software => {
            BatchEnd::Refused("software interrupts are carried out in IA-32e mode only".into())
        }
        Refusal::Cannot(reason) => BatchEnd::Refused(reason),
    }
}

/// A processor in the second address space.
struct Batch<'a> {
    context: StepContext<'a>,
    processor: &'a mut Processor,
    kick: Kick,
    guard: &'a mut Guard,
    copies: &'a mut Copies,
    /// The guest's DR7.
    watched: u64,
    /// Steps made.
    made: u32,
}

/// What one step came to.
enum Step {
    /// The instruction has happened, or an exception in its place.
    Done,
    /// It has happened, and the guest's own single-step trap follows.
    Trap,
    /// Nothing has happened: somebody wants the processor.
    Nothing,
    /// Nothing has happened: another page is needed, or an event's frame goes to one that traps.
    Trapped {
        /// An event is being delivered.
        delivering: bool,
    },
    /// The guest ends.
    Next(Next),
    /// The processor has run on.
    RanOn(String),
}

impl Batch<'_> {
    /// Steps until something else is to be done, at most `most` times.
    fn run(&mut self, first: &Interrupted, plan: Plan, most: u32) -> Result<BatchEnd, Failure> {
        let (mut at, mut plan) = (*first, plan);
        loop {
            let step = self.one(&at, &plan)?;
            let (now, _) = self.processor.at_exit()?;
            let made = Made {
                context: self.context.stores,
                guard: self.guard,
                copies: self.copies,
                vcpu: self.processor.number,
                at: &at,
                plan: &plan,
            };
            match made.settle() {
                Ok(Some(event)) => return Ok(BatchEnd::Next(Next::End(Ending::Stopped { event }))),
                Ok(None) => {}
                Err(reason) => return Ok(BatchEnd::Cannot(reason.into())),
            }
            match step {
                Step::Done => self.made += 1,
                Step::Trap => {
                    self.made += 1;
                    at.state.rflags |= RFLAGS_TF;
                    return Ok(BatchEnd::Trap(Box::new(at)));
                }
                // What has been done stays done; an event is delivered when the processor gets back.
                Step::Trapped { delivering: false } if self.made == 0 => {
                    return Ok(BatchEnd::Wider);
                }
                Step::Nothing | Step::Trapped { .. } => return Ok(BatchEnd::GoOn),
                Step::Next(next) => return Ok(BatchEnd::Next(next)),
                Step::RanOn(reason) => return Ok(BatchEnd::Cannot(reason)),
            }
            // What such a write asks for is done before the next instruction.
            let told = self.context.stores.events.is_first_program(self.processor.number);
            if plan.last || self.made >= most || told {
                return Ok(BatchEnd::GoOn);
            }
            at = now;
            // Whatever is the matter with the next one, it is found out when it traps.
            plan = match self.next(&at) {
                Some(plan) => plan,
                None => return Ok(BatchEnd::GoOn),
            };
        }
    }

    /// The plan for another step, if its pages are open already and it stores nothing to them that
    /// software would carry out.
    fn next(&self, at: &Interrupted) -> Option<Plan> {
        let plan =
            plan(self.context.stores, self.guard, self.processor, at, self.watched, false).ok()?;
        (plan.targets.is_empty() && self.copies.have(&plan.tables)).then_some(plan)
    }

    /// One step.
    fn one(&mut self, at: &Interrupted, plan: &Plan) -> Result<Step, Failure> {
        self.arm(plan)?;
        loop {
            let exit = enter(self.context.ports, self.processor, self.kick)?;
            return Ok(match exit {
                Exit::Debug { dr6, .. } => self.stopped(plan, dr6)?,
                Exit::Interrupted => {
                    let (now, _) = self.processor.at_exit()?;
                    if now.state.rip == at.state.rip && now.state.registers == at.state.registers {
                        Step::Nothing
                    } else if plan.breakpoints().contains(&now.state.rip) {
                        // An interrupt of the host comes before a breakpoint at the next instruction.
                        self.stopped(plan, 0)?
                    } else {
                        Step::RanOn("it does not come back from its step in time".into())
                    }
                }
                Exit::Trapped(Cause::Fault) => {
                    let (_, events) = self.processor.at_exit()?;
                    let delivering = events.exception.injected != 0
                        || events.interrupt.injected != 0
                        || events.nmi.injected != 0;
                    Step::Trapped { delivering }
                }
                Exit::Trapped(_) => Step::RanOn("KVM cannot emulate it".into()),
                Exit::Store { .. } => {
                    // A device that is not there. KVM forgets the single step of such a store.
                    self.kick.raise();
                    let _ = enter(self.context.ports, self.processor, self.kick)?;
                    Step::Done
                }
                Exit::Port(crate::devices::PortEffect::None) | Exit::Nothing(ExitKind::Mmio) => {
                    continue;
                }
                Exit::Clock(None) => continue,
                Exit::Clock(Some(request)) => {
                    let StepContext { stores, vm, .. } = self.context;
                    match write_clock(stores, self.guard, vm, self.processor, request)?.into() {
                        Next::Enter => continue,
                        next => Step::Next(next),
                    }
                }
                Exit::Port(effect) => Step::Next(after_port(effect)),
                Exit::Nothing(_) => Step::Nothing,
                // KVM on AMD processors has reset it by then: what is known is where the step began.
                Exit::End(Ending::TripleFault { .. }) => {
                    let in_traps = in_traps(self.context.stores, self.guard, at);
                    Step::Next(Next::End(Ending::TripleFault { rip: at.state.rip, in_traps }))
                }
                Exit::End(ending) => Step::Next(Next::End(ending)),
                Exit::Strange(reason) => Step::RanOn(reason),
            });
        }
    }

    /// Lets the processor stop behind the instruction, and at handlers.
    fn arm(&self, plan: &Plan) -> Result<(), ProcessorError> {
        self.processor.set_guest_debug(&plan.debug())
    }

    /// A breakpoint or trap has ended the step.
    fn stopped(&mut self, plan: &Plan, dr6: u64) -> Result<Step, Failure> {
        let (now, _) = self.processor.at_exit()?;
        if dr6 & DR6_BS != 0 {
            if plan.end != End::TrapFlag {
                return Ok(Step::Trap);
            }
            // Between two iterations of a string instruction; a processor has it in frames only.
            if now.state.rflags & RFLAGS_RF != 0 {
                let state = State { rflags: now.state.rflags & !RFLAGS_RF, ..now.state };
                self.processor.go_on(&state)?;
            }
            return Ok(Step::Done);
        }
        let handler = plan.handlers.iter().find(|handler| handler.1 == now.state.rip);
        if let (Some((vector, _)), End::TrapFlag) = (handler, plan.end) {
            self.clear_trap_flag(&now, *vector);
        }
        Ok(Step::Done)
    }

    /// Takes the TF that KVM has set out of the frame of an exception.
    fn clear_trap_flag(&self, handler: &Interrupted, vector: u8) {
        let StoreContext { ram, .. } = self.context.stores;
        let Some(gpa) = flags_in_frame(self.context.stores, &handler.state, vector) else { return };
        let twin = ram.view().twin().expect("a step has been made in it");
        if self.copies.has(gpa.gfn()) {
            let word = usize::from(gpa.page_offset()) / 8;
            twin.set(gpa.gfn(), word, twin.get(gpa.gfn(), word) & !RFLAGS_TF);
            return;
        }
        clear_trap_flag_at(ram, gpa);
    }
}

/// Where the frame of an exception, at whose handler a processor is, has RFLAGS.
fn flags_in_frame(context: StoreContext<'_, Ram>, state: &State, vector: u8) -> Option<Gpa> {
    let has_error_code = matches!(vector, 8 | 10..=14 | 17 | 21);
    let offset = if has_error_code { 24 } else { 16 };
    let linear = state.registers[Register::Rsp].wrapping_add(offset);
    let walk = translate(context.ram, context.paging, state, linear, Access::write_by(state));
    walk.ok().map(|walk| walk.gpa)
}

fn clear_trap_flag_at(ram: &Ram, at: Gpa) {
    let mut flags = [0; 8];
    if ram.read(at, &mut flags).is_ok() {
        let flags = u64::from_le_bytes(flags) & !RFLAGS_TF;
        let _ = ram.write(at, &flags.to_le_bytes());
    }
}

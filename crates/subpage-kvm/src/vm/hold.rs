//! Holding a guest: its processors stay out of it, each at an instruction boundary, until they are let go.
//!
//! A [pause](super::vcpu_pause) belongs to a thread and is short. A guest that is held belongs to nobody:
//! it may be looked at, changed, saved and ended meanwhile, and whoever wants lets it go.
//!
//! A processor's thread that finds itself held first lets KVM complete what is pending of its last exit,
//! so that registers are those between two instructions; then it rests.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use subpage::address::ByteRange;
use subpage_trap::Record;
use thiserror::Error;

use super::vcpu_pause::lock;
use super::{PausableVcpus, Vm, VmShared};
use crate::ending::Ending;
use crate::vcpu::Processor;

/// How long one instruction of a guest may take that is stepped.
const STEP_PATIENCE: Duration = Duration::from_secs(10);

/// Most texts about debuggers that wait.
const MOST_NEWS: usize = 64;

/// What the thread of a processor may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// Run.
    Run = 0,
    /// Execute one instruction, and hold the machine.
    Step = 1,
    /// Rest.
    Held = 2,
}

/// Why a processor has had the machine held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopCause {
    /// A rule with the action `stop` was met.
    Rule(Arc<Record>),
    /// These bytes were written, which a debugger watches.
    Watch(ByteRange),
    /// It is at a breakpoint of a debugger.
    Breakpoint,
    /// It has executed one instruction, or waits for an interrupt in it.
    Step,
}

/// A processor that has had the machine held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// Which.
    pub vcpu: u32,
    /// Why.
    pub cause: StopCause,
}

/// Why a guest is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// Somebody wanted it.
    OnRequest,
    /// A processor has stopped, the first of several.
    By(Stop),
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnRequest => f.write_str("on request"),
            Self::By(stop) => stop.fmt(f),
        }
    }
}

/// Why a guest cannot be held, stepped or let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HoldError {
    /// It runs.
    #[error("the guest runs: pause it first")]
    Runs,
    /// It does not run.
    #[error("the guest is not held")]
    NotHeld,
    /// It has ended.
    #[error("the guest has ended")]
    Ended,
    /// A debugger has it.
    #[error("a debugger is attached, which alone holds the guest and lets it go")]
    Debugged,
    /// It has no such processor.
    #[error("the guest has no processor {0}")]
    NoProcessor(u32),
    /// The instruction takes longer than anybody waits.
    #[error("the processor does not come to its next instruction")]
    Stuck,
}

#[derive(Debug, Default)]
struct State {
    held: bool,
    debugged: bool,
    stops: VecDeque<Stop>,
    /// About debuggers, for whoever asks for it.
    news: Vec<String>,
}

/// Whether a machine is held, and why.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    state: Mutex<State>,
    changed: Condvar,
    /// A rule with the action `stop` holds the guest in place of ending it.
    pub(super) on_stop: AtomicBool,
}

impl Holds {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holds {
    /// Something has changed for those who wait.
    pub(super) fn tell(&self) {
        drop(self.state());
        self.changed.notify_all();
    }
}

impl PausableVcpus {
    /// Whether the thread of processor `number` is to rest.
    pub(crate) fn is_held(&self, number: usize) -> bool {
        self.seats[number].leave.load(Ordering::SeqCst) == Leave::Held as u8
    }

    /// Whether processor `number` is to execute one instruction.
    pub(crate) fn steps(&self, number: usize) -> bool {
        self.seats[number].leave.load(Ordering::SeqCst) == Leave::Step as u8
    }

    /// Whether there is nothing to do for the thread of processor `number`.
    pub(super) fn rests(&self, number: usize) -> bool {
        self.is_held(number) && self.seats[number].settled.load(Ordering::SeqCst)
    }

    /// The thread of processor `number` is about to enter the guest, if it [may](Self::may_run).
    pub(crate) fn set_out(&self, number: usize) {
        self.seats[number].settled.store(false, Ordering::SeqCst);
    }

    /// Nothing is unfinished of processor `number`, which is held.
    pub(crate) fn settle(&self, number: usize) {
        self.seats[number].settled.store(true, Ordering::SeqCst);
        self.tell();
    }

    fn tell(&self) {
        drop(lock(&self.waiting));
        self.opened.notify_all();
    }

    fn leave(&self, number: usize, leave: Leave) {
        self.seats[number].leave.store(leave as u8, Ordering::SeqCst);
    }

    fn hold_all(&self) {
        for number in 0..self.processors() {
            self.leave(number, Leave::Held);
        }
        self.kick_all();
    }

    /// Waits until all processors rest, or the machine has ended. The caller holds no processor.
    fn wait_for_rest(&self) {
        let all_rest = || (0..self.processors()).all(|number| self.rests(number));
        let mut waiting = lock(&self.waiting);
        while !all_rest() && !self.has_ended() {
            waiting = self.opened.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl VmShared {
    /// Holds the guest, if it is not held; all processors rest when it returns.
    pub(crate) fn hold(&self) {
        let mut state = self.holds.state();
        if !state.held {
            state.held = true;
            self.vcpus.hold_all();
        }
        drop(state);
        self.vcpus.wait_for_rest();
    }

    /// A processor has the machine held; to be called by its thread.
    pub(crate) fn stop_here(&self, vcpu: u32, cause: StopCause) {
        let mut state = self.holds.state();
        state.stops.push_back(Stop { vcpu, cause });
        state.held = true;
        self.vcpus.hold_all();
        drop(state);
        self.holds.changed.notify_all();
    }

    /// What becomes of a guest that a rule stops.
    pub(crate) fn stopped_by_rule(&self, vcpu: u32, event: Arc<Record>) {
        if self.holds.on_stop.load(Ordering::SeqCst) {
            self.stop_here(vcpu, StopCause::Rule(event));
        } else {
            self.end(Ending::Stopped { event });
        }
    }

    /// Why the guest is held, if it is.
    pub(crate) fn held(&self) -> Option<Held> {
        let state = self.holds.state();
        let why = || state.stops.front().cloned().map_or(Held::OnRequest, Held::By);
        state.held.then(why)
    }

    /// Lets processors go, each as `leave` says of its number. What they were held for is forgotten.
    pub(crate) fn release(&self, leave: impl Fn(usize) -> Leave) {
        let mut state = self.holds.state();
        state.held = false;
        state.stops.clear();
        for number in 0..self.vcpus.processors() {
            self.vcpus.leave(number, leave(number));
        }
        drop(state);
        self.vcpus.tell();
    }

    /// The processors that have had the machine held, once all rest; waits for one at most so long.
    pub(crate) fn wait_for_stops(&self, at_most: Duration) -> Vec<Stop> {
        let deadline = Instant::now() + at_most;
        let mut state = self.holds.state();
        while state.stops.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.vcpus.has_ended() {
                return Vec::new();
            }
            let waited = self.holds.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        self.vcpus.wait_for_rest();
        self.holds.state().stops.drain(..).collect()
    }

    /// Lets a debugger have the machine, if none has it.
    pub(crate) fn begin_debugging(&self) -> bool {
        !std::mem::replace(&mut self.holds.state().debugged, true)
    }

    /// It has it no more.
    pub(crate) fn end_debugging(&self) {
        self.holds.state().debugged = false;
    }

    /// Takes note of something about debuggers for whoever asks for it.
    pub(crate) fn debugger_says(&self, text: String) {
        let news = &mut self.holds.state().news;
        if news.len() < MOST_NEWS {
            news.push(text);
        }
    }

    /// Takes what there is.
    pub(crate) fn take_debugger_news(&self) -> Vec<String> {
        std::mem::take(&mut self.holds.state().news)
    }

    /// Executes one instruction of a processor of a held guest, which is held afterwards.
    fn step_held(&self, vcpu: u32) -> Result<(), HoldError> {
        let number = vcpu as usize;
        if number >= self.vcpus.processors() {
            return Err(HoldError::NoProcessor(vcpu));
        }
        self.release(|other| if other == number { Leave::Step } else { Leave::Held });
        let stops = self.wait_for_stops(STEP_PATIENCE);
        self.hold();
        if self.vcpus.has_ended() {
            return Err(HoldError::Ended);
        }
        if stops.is_empty() {
            return Err(HoldError::Stuck);
        }
        let others = stops.into_iter().filter(|stop| stop.cause != StopCause::Step);
        self.holds.state().stops.extend(others);
        Ok(())
    }

    /// For everybody but a debugger: the state of the guest is theirs to change.
    fn not_debugged(&self) -> Result<(), HoldError> {
        if self.vcpus.has_ended() {
            return Err(HoldError::Ended);
        }
        if self.holds.state().debugged { Err(HoldError::Debugged) } else { Ok(()) }
    }

    /// Looks at a processor of a held guest.
    pub(super) fn look_at<T>(
        &self,
        vcpu: u32,
        look: impl FnOnce(&Processor) -> T,
    ) -> Result<T, HoldError> {
        if self.vcpus.has_ended() {
            // A guest that has failed is kept to be looked at.
            self.ending.get().filter(Ending::is_failure).ok_or(HoldError::Ended)?;
        } else {
            self.held().ok_or(HoldError::Runs)?;
        }
        let paused = self.vcpus.pause();
        let processor = paused.processors.get(vcpu as usize);
        processor.map(|processor| look(processor)).ok_or(HoldError::NoProcessor(vcpu))
    }

    pub(super) fn pause_on_request(&self) -> Result<(), HoldError> {
        self.not_debugged()?;
        self.hold();
        Ok(())
    }

    pub(super) fn resume_on_request(&self) -> Result<(), HoldError> {
        self.not_debugged()?;
        self.held().ok_or(HoldError::NotHeld)?;
        self.release(|_| Leave::Run);
        Ok(())
    }

    pub(super) fn step_on_request(&self, vcpu: u32) -> Result<(), HoldError> {
        self.not_debugged()?;
        self.held().ok_or(HoldError::Runs)?;
        self.step_held(vcpu)
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vcpu = self.vcpu;
        match &self.cause {
            StopCause::Rule(event) => {
                write!(f, "the rule {:?} has stopped processor {vcpu}", event.rule_or_map())
            }
            StopCause::Watch(range) => {
                let first = range.first().as_u64();
                write!(f, "processor {vcpu} has written watched bytes at {first:#x}")
            }
            StopCause::Breakpoint => write!(f, "processor {vcpu} is at a breakpoint"),
            StopCause::Step => write!(f, "processor {vcpu} has made a step"),
        }
    }
}

impl Vm {
    /// Whether a rule with the action `stop` holds the guest in place of ending it.
    pub fn hold_on_stop(&self, holds: bool) {
        self.machine.holds.on_stop.store(holds, Ordering::SeqCst);
    }

    /// Holds the guest between two instructions of each processor, until it is let go. Before the
    /// [start](Self::start), it then waits before its first instruction.
    pub fn hold(&self) {
        self.machine.hold();
    }

    /// Lets a held guest go on.
    pub fn resume(&self) -> Result<(), HoldError> {
        self.machine.resume_on_request()
    }

    /// Executes one instruction of a processor of a held guest.
    pub fn step(&self, vcpu: u32) -> Result<(), HoldError> {
        self.machine.step_on_request(vcpu)
    }

    /// Why the guest is held, if it is.
    pub fn held(&self) -> Option<Held> {
        self.machine.held()
    }

    /// Ends a guest that a rule has stopped, as it would have without being held.
    pub fn end_stopped(&self, event: Arc<Record>) {
        self.machine.end(Ending::Stopped { event });
    }
}

//! Holding a guest: its processors stay out of it, each at an instruction boundary, until they are let go.
//!
//! A [pause](super::vcpu_pause) belongs to a thread and is short. A guest that is held belongs to nobody:
//! it may be looked at, changed, saved and ended meanwhile, and whoever wants lets it go.
//!
//! A processor's thread that finds itself held first lets KVM complete what is pending of its last exit,
//! so that registers are those between two instructions; then it rests. What it stops for it tells
//! before it rests: once all rest, no stop is still to come.
//!
//! Whoever may let a guest go is decided under the same lock under which it is let go. Order of locks: that
//! one, then those of the processors' threads.

mod requests;

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use subpage_trap::Record;

use super::news::{DebuggerNews, News};
use super::stop::{Held, HoldError, OnRuleStop, Stop, StopCause};
use super::vcpu_pause::lock;
use super::{PausableVcpus, Vm, VmShared};
use crate::ending::Ending;

/// Most stops that wait to be told while nobody takes them.
const MOST_STOPS: usize = 64;

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

/// Who alone may let the guest go now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum User {
    /// Whoever wants.
    #[default]
    Anybody,
    /// Whoever makes a step.
    Stepper,
    Debugger,
    /// A debugger that somebody wants gone.
    UnwantedDebugger,
}

impl User {
    const fn is_debugger(self) -> bool {
        matches!(self, Self::Debugger | Self::UnwantedDebugger)
    }
}

#[derive(Debug, Default)]
struct State {
    held: bool,
    /// The first stop since the guest was last let go.
    why: Option<Stop>,
    /// Stops that were not taken.
    stops: VecDeque<Stop>,
    /// Those by rules, for whoever runs the guest: told whatever a debugger does with them.
    rule_stops: VecDeque<Stop>,
    on_rule_stop: OnRuleStop,
    /// A rule has stopped it for good.
    kept: bool,
    user: User,
    /// About debuggers, for whoever asks for it.
    news: News,
}

/// Whether a machine is held, and why.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    state: Mutex<State>,
    changed: Condvar,
}

impl Holds {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

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

    fn all_rest(&self) -> bool {
        (0..self.processors()).all(|number| self.rests(number))
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

    /// How often they were let go.
    fn releases(&self) -> u64 {
        self.releases.load(Ordering::SeqCst)
    }

    /// Waits until all processors rest, and says whether they do: not if they were let go more often than
    /// `releases` meanwhile, or the machine has ended. The caller holds no processor.
    fn wait_for_rest(&self, releases: u64) -> bool {
        let mut waiting = lock(&self.waiting);
        loop {
            if self.has_ended() || self.releases() != releases {
                return false;
            }
            if self.all_rest() {
                return true;
            }
            waiting = self.opened.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl VmShared {
    /// Holds the guest, if it is not held; all processors rest when it returns, unless somebody has let
    /// them go meanwhile.
    pub(crate) fn hold(&self) {
        self.hold_under(self.holds.state());
    }

    fn hold_under(&self, mut state: MutexGuard<'_, State>) {
        if !state.held {
            state.held = true;
            self.vcpus.hold_all();
        }
        let releases = self.vcpus.releases();
        drop(state);
        self.vcpus.wait_for_rest(releases);
    }

    /// A processor has the machine held; to be called by its thread.
    pub(crate) fn stop_here(&self, vcpu: u32, cause: StopCause) {
        self.stop_under(self.holds.state(), Stop { vcpu, cause });
    }

    fn stop_under(&self, mut state: MutexGuard<'_, State>, stop: Stop) {
        if state.why.is_none() && stop.cause != StopCause::Step {
            state.why = Some(stop.clone());
        }
        state.stops.push_back(stop);
        state.held = true;
        self.vcpus.hold_all();
        drop(state);
        self.holds.changed.notify_all();
    }

    /// What becomes of a guest that a rule stops.
    pub(crate) fn stopped_by_rule(&self, vcpu: u32, event: Arc<Record>) {
        let mut state = self.holds.state();
        if state.on_rule_stop == OnRuleStop::End {
            drop(state);
            return self.end(Ending::Stopped { event });
        }
        let stop = Stop { vcpu, cause: StopCause::Rule(event) };
        state.kept |= state.on_rule_stop == OnRuleStop::Keep;
        if state.rule_stops.len() < MOST_STOPS {
            state.rule_stops.push_back(stop.clone());
        }
        self.stop_under(state, stop);
    }

    /// Why the guest is held, if it is.
    pub(crate) fn held(&self) -> Option<Held> {
        let state = self.holds.state();
        state.held.then(|| state.why.clone().map_or(Held::OnRequest, Held::By))
    }

    /// Lets processors go, each as `leave` says of its number.
    fn let_go(&self, mut state: MutexGuard<'_, State>, leave: impl Fn(usize) -> Leave) {
        state.held = false;
        state.why = None;
        self.vcpus.releases.fetch_add(1, Ordering::SeqCst);
        for number in 0..self.vcpus.processors() {
            self.vcpus.leave(number, leave(number));
        }
        drop(state);
        self.vcpus.tell();
    }

    /// For a debugger: lets processors go, each as `leave` says of its number. Where a stop was not taken,
    /// or a rule has stopped the guest for good, it stays held.
    pub(crate) fn release(&self, leave: impl Fn(usize) -> Leave) {
        let state = self.holds.state();
        if state.stops.is_empty() && !state.kept {
            self.let_go(state, leave);
        }
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
        let releases = self.vcpus.releases();
        drop(state);
        self.vcpus.wait_for_rest(releases);
        self.holds.state().stops.drain(..).collect()
    }

    /// Lets a debugger have the machine, if none has it; a step that is being made ends first.
    pub(crate) fn begin_debugging(&self) -> bool {
        let mut state = self.holds.state();
        while state.user == User::Stepper {
            state = self.holds.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let is_free = state.user == User::Anybody;
        if is_free {
            state.user = User::Debugger;
        }
        is_free
    }

    /// It has it no more. The guest goes on if `goes_on`, unless a rule has stopped it and no debugger
    /// knows; whether it does.
    pub(crate) fn end_debugging(&self, goes_on: bool) -> bool {
        let mut state = self.holds.state();
        state.user = User::Anybody;
        state.stops.retain(|stop| matches!(stop.cause, StopCause::Rule(_)));
        let goes = goes_on && state.stops.is_empty() && !state.kept;
        if goes {
            self.let_go(state, |_| Leave::Run);
        }
        goes
    }

    /// Whether somebody wants the debugger gone.
    pub(crate) fn sends_debugger_away(&self) -> bool {
        self.holds.state().user == User::UnwantedDebugger
    }

    /// Has the debugger go, whether it still answers or not.
    pub(in crate::vm) fn send_debugger_away(&self) -> Result<(), HoldError> {
        let mut state = self.holds.state();
        if !state.user.is_debugger() {
            return Err(HoldError::NotDebugged);
        }
        state.user = User::UnwantedDebugger;
        Ok(())
    }

    pub(in crate::vm) fn add_news(&self, news: DebuggerNews) {
        self.holds.state().news.add(news);
    }

    pub(in crate::vm) fn take_news(&self) -> Vec<DebuggerNews> {
        self.holds.state().news.take()
    }
}

impl Vm {
    /// What becomes of the guest when a rule with the action `stop` stops it.
    pub fn on_rule_stop(&self, what: OnRuleStop) {
        self.machine.holds.state().on_rule_stop = what;
    }

    /// Takes the stops by rules that have held the guest, each once, whatever else has become of it since.
    pub fn take_rule_stops(&self) -> Vec<Stop> {
        self.machine.holds.state().rule_stops.drain(..).collect()
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

    /// Has the debugger go that is attached; its points go, and the guest goes on.
    pub fn send_debugger_away(&self) -> Result<(), HoldError> {
        self.machine.send_debugger_away()
    }

    /// Ends a guest that a rule has stopped, as it would have without being held.
    pub fn end_stopped(&self, event: Arc<Record>) {
        self.machine.end(Ending::Stopped { event });
    }
}

//! What others than a debugger ask of a held guest.

use std::time::Duration;

use super::{Leave, MOST_STOPS, State, User};
use crate::vcpu::Processor;
use crate::vm::VmShared;
use crate::vm::stop::{HoldError, StopCause};

/// How long one instruction of a guest may take that is stepped.
const STEP_PATIENCE: Duration = Duration::from_secs(10);

impl VmShared {
    /// For everybody but a debugger: the state of the guest is theirs to change.
    fn free(&self, state: &State) -> Result<(), HoldError> {
        match state.user {
            _ if self.vcpus.has_ended() => Err(HoldError::Ended),
            User::Debugger | User::UnwantedDebugger => Err(HoldError::Debugged),
            User::Anybody | User::Stepper => Ok(()),
        }
    }

    /// For whoever lets the guest go: so may they.
    fn may_let_go(&self, state: &State, runs: HoldError) -> Result<(), HoldError> {
        self.free(state)?;
        match state {
            State { held: false, .. } => Err(runs),
            State { user: User::Stepper, .. } => Err(HoldError::Stepping),
            State { kept: true, .. } => Err(HoldError::Kept),
            _ => Ok(()),
        }
    }

    pub(in crate::vm) fn pause_on_request(&self) -> Result<(), HoldError> {
        let state = self.holds.state();
        self.free(&state)?;
        self.hold_under(state);
        Ok(())
    }

    pub(in crate::vm) fn resume_on_request(&self) -> Result<(), HoldError> {
        let mut state = self.holds.state();
        self.may_let_go(&state, HoldError::NotHeld)?;
        state.stops.clear();
        self.let_go(state, |_| Leave::Run);
        Ok(())
    }

    /// Executes one instruction of a processor of a held guest, which is held all the time.
    pub(in crate::vm) fn step_on_request(&self, vcpu: u32) -> Result<(), HoldError> {
        let number = vcpu as usize;
        let mut state = self.holds.state();
        self.may_let_go(&state, HoldError::Runs)?;
        if number >= self.vcpus.processors() {
            return Err(HoldError::NoProcessor(vcpu));
        }
        state.user = User::Stepper;
        let releases = self.vcpus.releases();
        drop(state);
        let stepped = self.step_held(number, releases);
        self.holds.state().user = User::Anybody;
        self.holds.tell();
        stepped
    }

    fn step_held(&self, number: usize, releases: u64) -> Result<(), HoldError> {
        if !self.vcpus.wait_for_rest(releases) {
            return Err(HoldError::Ended);
        }
        let mut state = self.holds.state();
        let before = std::mem::take(&mut state.stops);
        state.why = None;
        self.vcpus.leave(number, Leave::Step);
        drop(state);
        self.vcpus.tell();
        let stops = self.wait_for_stops(STEP_PATIENCE);
        let mut state = self.holds.state();
        self.vcpus.hold_all();
        let stepped = !stops.is_empty();
        // A debugger that comes is told of them.
        state.stops = before.into_iter().chain(stops).collect();
        state.stops.retain(|stop| stop.cause != StopCause::Step);
        state.stops.truncate(MOST_STOPS);
        self.hold_under(state);
        if self.vcpus.has_ended() {
            return Err(HoldError::Ended);
        }
        if stepped { Ok(()) } else { Err(HoldError::Stuck) }
    }

    /// Looks at a processor of a held guest, which rests.
    pub(in crate::vm) fn look_at<T>(
        &self,
        vcpu: u32,
        look: impl FnOnce(&Processor) -> T,
    ) -> Result<T, HoldError> {
        let has_failed = || self.ending.get().is_some_and(|ending| ending.is_failure());
        let state = self.holds.state();
        let (held, releases) = (state.held, self.vcpus.releases());
        drop(state);
        if !self.vcpus.has_ended() {
            if !held {
                return Err(HoldError::Runs);
            }
            self.vcpus.wait_for_rest(releases);
        }
        let paused = self.vcpus.pause();
        // A guest that has failed is kept to be looked at.
        match () {
            () if self.vcpus.has_ended() && has_failed() => {}
            () if self.vcpus.has_ended() => return Err(HoldError::Ended),
            () if !self.vcpus.all_rest() => return Err(HoldError::Runs),
            () => {}
        }
        let processor = paused.processors.get(vcpu as usize);
        processor.map(|processor| look(processor)).ok_or(HoldError::NoProcessor(vcpu))
    }
}

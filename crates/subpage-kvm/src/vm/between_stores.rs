//! Waiting for stores that are under way, without stopping any processor.
//!
//! A change of permissions is decided at one moment, and a store may take several: KVM reports more
//! than eight bytes in several exits, and does the part of a store in one page before it finds that
//! the other traps. So a change first closes its pages, then waits until each processor in question has
//! been between two stores, and only then becomes effective. Every processor passes such a place each
//! time before it enters the guest; one that is in the guest is called out of it for that.
//!
//! No processor waits for the change. Each leaves its state behind on the way if somebody waits, so that
//! it can be asked where its page tables are, too.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError, TryLockError};

use subpage_emulate::guest::State;

use super::vcpu_pause::{PausableVcpus, Paused, Seat, lock};
use crate::vcpu::Processor;

/// Nobody else pauses the machine or changes permissions.
pub(crate) struct Exclusive<'a> {
    vcpus: &'a PausableVcpus,
    pause: MutexGuard<'a, ()>,
}

/// Counts those who wait, as long as they do.
struct Waiting<'a>(&'a PausableVcpus);

impl<'a> Waiting<'a> {
    fn new(vcpus: &'a PausableVcpus) -> Self {
        vcpus.waiters.fetch_add(1, Ordering::SeqCst);
        Self(vcpus)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiters.fetch_sub(1, Ordering::SeqCst);
    }
}

impl PausableVcpus {
    /// Waits until nobody else pauses the machine or changes permissions. The caller holds no processor.
    pub(crate) fn exclude(&self) -> Exclusive<'_> {
        Exclusive { vcpus: self, pause: lock(&self.pause) }
    }

    /// The thread of processor `number` has it, and may be in the middle of a store from now on.
    pub(crate) fn enter_turns(&self, number: usize) {
        self.seats[number].inside.store(true, Ordering::SeqCst);
    }

    /// The thread of processor `number` is about to let it go, between two stores.
    pub(crate) fn leave_turns(&self, number: usize) {
        self.seats[number].inside.store(false, Ordering::SeqCst);
        self.pass(number);
    }

    /// Whether somebody waits for processors to pass.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.waiters.load(Ordering::SeqCst) != 0
    }

    /// Processor `number` is between two stores. Called after its kick was cleared: one that comes
    /// later gets it out of the guest.
    pub(crate) fn pass(&self, number: usize) {
        self.seats[number].passed.fetch_add(1, Ordering::SeqCst);
        if self.is_waited_for() {
            drop(lock(&self.waiting));
            self.opened.notify_all();
            // Others that are waited for may be without a processor of the host: theirs is free now.
            std::thread::yield_now();
        }
    }

    /// Leaves the state of processor `number` for the thread that waits.
    pub(crate) fn leave_state(&self, number: usize, state: &State) {
        *lock(&self.seats[number].state) = Some(*state);
    }

    /// Waits until processor `number` has passed since it had `passed` so often, is not in turns, or
    /// the machine has ended.
    fn wait_for(&self, number: usize, passed: u64) {
        let seat = &self.seats[number];
        let is_past =
            || seat.passed.load(Ordering::SeqCst) != passed || !seat.inside.load(Ordering::SeqCst);
        let mut waiting = lock(&self.waiting);
        while !is_past() && !self.has_ended() {
            waiting = self.opened.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<'a> Exclusive<'a> {
    /// Stops all processors; see [`PausableVcpus::pause`].
    pub(crate) fn pause(self) -> Paused<'a> {
        self.vcpus.stop(self.pause)
    }

    /// Waits until each of these processors has been between two stores. The caller holds no guard.
    pub(crate) fn wait_between_stores(&self, numbers: &[usize]) {
        let _waiting = Waiting::new(self.vcpus);
        let seat = |number: usize| &self.vcpus.seats[number];
        let running: Vec<(usize, u64)> = numbers
            .iter()
            .filter(|&&number| seat(number).inside.load(Ordering::SeqCst))
            .map(|&number| (number, seat(number).passed.load(Ordering::SeqCst)))
            .collect();
        for (number, _) in &running {
            self.vcpus.kick(*number);
        }
        for (number, passed) in running {
            self.vcpus.wait_for(number, passed);
        }
    }

    /// The state of each processor at some moment since the call; processors that cannot be asked are
    /// left out: their own exits tell why.
    pub(crate) fn states(&self) -> Vec<State> {
        let _waiting = Waiting::new(self.vcpus);
        for seat in &self.vcpus.seats {
            lock(&seat.state).take();
        }
        // All are asked before the first answer is waited for: the host may have fewer processors than
        // the guest, and then each answer takes as long as its thread waits for one.
        let asked: Vec<Option<u64>> = self.vcpus.seats.iter().map(Self::passed_inside).collect();
        for number in (0..asked.len()).filter(|&number| asked[number].is_some()) {
            self.vcpus.kick(number);
        }
        let answers = asked.into_iter().enumerate();
        answers.filter_map(|(number, passed)| self.state(number, passed)).collect()
    }

    /// How often a processor has passed, if its thread has it.
    fn passed_inside(seat: &Seat) -> Option<u64> {
        let inside = seat.inside.load(Ordering::SeqCst);
        inside.then(|| seat.passed.load(Ordering::SeqCst))
    }

    /// The state of processor `number`, which was asked for it when it had `passed` so often.
    fn state(&self, number: usize, passed: Option<u64>) -> Option<State> {
        let seat = &self.vcpus.seats[number];
        let ask = |processor: &Processor| Some(processor.interrupted().ok()?.state);
        if let Some(passed) = passed {
            self.vcpus.wait_for(number, passed);
        }
        while !self.vcpus.has_ended() {
            if let Some(state) = lock(&seat.state).take() {
                return Some(state);
            }
            match seat.processor.try_lock() {
                Ok(processor) => return ask(&processor),
                Err(TryLockError::Poisoned(broken)) => return ask(broken.get_ref()),
                Err(TryLockError::WouldBlock) => {}
            }
            let passed = seat.passed.load(Ordering::SeqCst);
            self.vcpus.kick(number);
            if seat.inside.load(Ordering::SeqCst) {
                self.vcpus.wait_for(number, passed);
            } else {
                // Its thread has just taken it, or is about to let it go.
                std::thread::yield_now();
            }
        }
        None
    }
}

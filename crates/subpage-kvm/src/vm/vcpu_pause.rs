//! Which thread may use the processors: their own, or the one that has paused the machine.
//!
//! A processor's thread holds the processor while it runs and lets go of it when the gate closes.
//! Pausing closes the gate, kicks the processors out of the guest, and takes them one after the other.
//! So there is no list of who has stopped: a processor that can be held has stopped.
//!
//! A change of permissions that stops nobody holds the pause, too: see
//! [`between_stores`](super::between_stores).
//!
//! Order of locks: first the pause, then processors, then the guard. A thread that holds the guard
//! never waits for a processor.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use subpage_emulate::guest::State;

use crate::vcpu::{Kick, Processor};

/// A processor, and how to get it out of the guest.
pub(crate) struct Seat {
    pub(super) processor: Mutex<Processor>,
    kick: Kick,
    thread: Mutex<Option<Thread>>,
    /// The thread has the processor and may be in the middle of a store.
    pub(super) inside: AtomicBool,
    /// How often it was between two stores.
    pub(super) passed: AtomicU64,
    /// Its state at a moment since somebody wanted to know it.
    pub(super) state: Mutex<Option<State>>,
    /// What the thread may do: a [`Leave`](super::hold::Leave).
    pub(super) leave: AtomicU8,
    /// Nothing of an instruction is unfinished: the thread may rest.
    pub(super) settled: AtomicBool,
}

/// The thread of a processor, to be signalled: a `pthread_t`, which is a number in glibc and a pointer in
/// musl, and not to be followed.
#[derive(Debug, Clone, Copy)]
struct Thread(usize);

impl Thread {
    #[expect(clippy::cast_possible_truncation, reason = "as wide as a pointer in both")]
    fn own() -> Self {
        Self(nix::sys::pthread::pthread_self() as usize)
    }

    /// Not to be called once the thread has ended.
    fn signal(self, signal: nix::sys::signal::Signal) {
        // A thread that is just ending needs no signal.
        let _ = nix::sys::pthread::pthread_kill(self.0 as nix::sys::pthread::Pthread, signal);
    }
}

/// The processors of a machine, and the gate that their threads pass.
pub(crate) struct PausableVcpus {
    pub(super) seats: Vec<Seat>,
    closed: AtomicBool,
    ended: AtomicBool,
    /// How often processors that were held were let go.
    pub(super) releases: AtomicU64,
    /// Held by the thread that has paused the machine, or changes permissions.
    pub(super) pause: Mutex<()>,
    /// Whether the gate is closed, for those who wait for it; and whether processors have passed.
    pub(super) waiting: Mutex<()>,
    pub(super) opened: Condvar,
    /// How many wait until processors have been between two stores.
    pub(super) waiters: AtomicUsize,
}

/// The machine is paused: no processor is in the guest, and all are ours.
pub(crate) struct Paused<'a> {
    pub(crate) processors: Vec<MutexGuard<'a, Processor>>,
    vcpus: &'a PausableVcpus,
    _pause: MutexGuard<'a, ()>,
}

impl PausableVcpus {
    pub(crate) fn new(processors: Vec<(Processor, Kick)>) -> Arc<Self> {
        let seats = processors
            .into_iter()
            .map(|(processor, kick)| Seat {
                processor: Mutex::new(processor),
                kick,
                thread: Mutex::new(None),
                inside: AtomicBool::new(false),
                passed: AtomicU64::new(0),
                state: Mutex::new(None),
                leave: AtomicU8::new(0),
                settled: AtomicBool::new(true),
            })
            .collect();
        Arc::new(Self {
            seats,
            closed: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            releases: AtomicU64::new(0),
            pause: Mutex::new(()),
            waiting: Mutex::new(()),
            opened: Condvar::new(),
            waiters: AtomicUsize::new(0),
        })
    }

    /// How many processors there are.
    pub(crate) fn processors(&self) -> usize {
        self.seats.len()
    }

    /// The calling thread is that of processor `number` from now on.
    pub(crate) fn enlist(&self, number: usize) {
        *lock(&self.seats[number].thread) = Some(Thread::own());
    }

    /// The calling thread ends: it is not to be signalled any more.
    pub(crate) fn delist(&self, number: usize) {
        *lock(&self.seats[number].thread) = None;
    }

    /// Waits until the gate is open, and the processor is not held, and takes it; none when the machine
    /// has ended.
    pub(crate) fn enter(&self, number: usize) -> Option<MutexGuard<'_, Processor>> {
        let barred = || self.closed.load(Ordering::SeqCst) || self.rests(number);
        loop {
            let mut waiting = lock(&self.waiting);
            while barred() && !self.has_ended() {
                waiting = self.opened.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            drop(waiting);
            if self.has_ended() {
                return None;
            }
            let processor = lock(&self.seats[number].processor);
            // A thread that paused in between waits for the processor: it is let go of at once.
            if !barred() {
                return Some(processor);
            }
        }
    }

    /// The byte that gets processor `number` out of the guest.
    pub(crate) fn kick_of(&self, number: usize) -> Kick {
        self.seats[number].kick
    }

    /// Whether the thread that holds processor `number` may continue with it; to be asked before each
    /// `KVM_RUN`.
    pub(crate) fn may_run(&self, number: usize) -> bool {
        // First the byte, then the question: a kick between the two is seen by `KVM_RUN`.
        self.seats[number].kick.clear();
        !self.closed.load(Ordering::SeqCst) && !self.is_held(number) && !self.has_ended()
    }

    /// Gets processor `number` out of the guest for a moment.
    pub(crate) fn kick(&self, number: usize) {
        let seat = &self.seats[number];
        seat.kick.raise();
        // Held while signalling: the thread cannot end meanwhile.
        let thread = lock(&seat.thread);
        if let Some(thread) = *thread {
            thread.signal(super::kick_signal());
        }
    }

    pub(super) fn kick_all(&self) {
        for number in 0..self.seats.len() {
            self.kick(number);
        }
    }

    /// Stops all processors; they continue when the value is dropped. The caller holds no processor.
    pub(crate) fn pause(&self) -> Paused<'_> {
        self.exclude().pause()
    }

    /// Stops all processors, for the holder of the pause.
    pub(super) fn stop<'a>(&'a self, pause: MutexGuard<'a, ()>) -> Paused<'a> {
        self.closed.store(true, Ordering::SeqCst);
        self.kick_all();
        let processors = self.seats.iter().map(|seat| lock(&seat.processor)).collect();
        Paused { processors, vcpus: self, _pause: pause }
    }

    /// Ends the machine: no processor enters the guest again.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        drop(lock(&self.waiting));
        self.opened.notify_all();
        self.kick_all();
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.vcpus.closed.store(false, Ordering::SeqCst);
        self.processors.clear();
        drop(lock(&self.vcpus.waiting));
        self.vcpus.opened.notify_all();
    }
}

/// A lock whose holder has panicked is taken all the same: the machine is ending, and its processors
/// have to be stopped whatever state they are in.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

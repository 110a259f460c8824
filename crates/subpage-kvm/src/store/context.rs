//! What handling a store needs of the machine.

use std::sync::{Mutex, MutexGuard};

use subpage_emulate::PagingFeatures;

use super::Recorder;
use crate::guard::Guard;
use crate::memory::Ram;
use crate::metrics::Metrics;

/// What handling a store needs of the machine.
#[derive(Clone, Copy)]
pub(crate) struct StoreContext<'a> {
    pub(crate) ram: &'a Ram,
    /// What page walks go by.
    pub(crate) paging: PagingFeatures,
    pub(crate) guard: &'a Mutex<Guard>,
    pub(crate) metrics: &'a Metrics,
    pub(crate) events: &'a Recorder,
    /// The processor runs the guest's kernel itself, and walks its page tables.
    pub(crate) native: bool,
}

impl<'a> StoreContext<'a> {
    /// The guard. Everything that happens to guarded memory happens under this lock.
    ///
    /// # Panics
    /// If a thread has panicked with it: what it guards may be half changed.
    pub(crate) fn guard(&self) -> MutexGuard<'a, Guard> {
        self.guard.lock().expect("the guard is whole")
    }
}

//! What handling a store needs of the machine.

use std::sync::{Mutex, MutexGuard};

use subpage_emulate::PagingFeatures;

use super::Recorder;
use crate::guard::Guard;
use crate::metrics::Metrics;

/// What handling a store needs of the machine.
pub struct StoreContext<'a, M> {
    /// The guest's memory.
    pub ram: &'a M,
    /// What page walks go by.
    pub paging: PagingFeatures,
    /// What is guarded.
    pub guard: &'a Mutex<Guard>,
    /// What is counted.
    pub metrics: &'a Metrics,
    /// Where events go.
    pub events: &'a Recorder,
    /// The processor runs the guest's kernel itself, and walks its page tables.
    pub native: bool,
}

impl<M> Clone for StoreContext<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for StoreContext<'_, M> {}

impl<'a, M> StoreContext<'a, M> {
    /// The guard. Everything that happens to guarded memory happens under this lock.
    ///
    /// # Panics
    /// If a thread has panicked with it: what it guards may be half changed.
    pub fn guard(&self) -> MutexGuard<'a, Guard> {
        self.guard.lock().expect("the guard is whole")
    }
}

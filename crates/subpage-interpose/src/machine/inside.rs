//! Whether a thread is inside of this library with a lock held.
//!
//! The library's own calls (`read`, `munmap` of an allocator, ...) reach the names that it takes, like those
//! of the VMM. While a lock is held they are passed on: to look at them would take the lock again.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::sync::MutexGuard;

use super::guard::Core;

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Whether this thread is inside.
#[inline]
pub(crate) fn is_inside() -> bool {
    DEPTH.get() != 0
}

/// This thread is inside as long as the value lives.
pub(super) struct Inside(());

impl Inside {
    pub(super) fn enter() -> Self {
        DEPTH.set(DEPTH.get() + 1);
        Self(())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

/// What is guarded, locked by a thread that is inside.
pub(crate) struct Held<'a> {
    // Fields are dropped in this order: first the lock is given back.
    core: MutexGuard<'a, Core>,
    _inside: Inside,
}

impl<'a> Held<'a> {
    /// `lock` takes the lock, as somebody who is inside.
    pub(super) fn new(lock: impl FnOnce() -> MutexGuard<'a, Core>) -> Self {
        let inside = Inside::enter();
        Self { core: lock(), _inside: inside }
    }
}

impl Deref for Held<'_> {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut Core {
        &mut self.core
    }
}

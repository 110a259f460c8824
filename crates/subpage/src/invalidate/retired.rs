//! Table frames that are unlinked but may still be in some processor's caches.

use alloc::vec::Vec;

use super::Epoch;
use crate::address::Gfn;
use crate::frames::{OutOfFrames, TableFrame};
use crate::level::Level;

/// An unlinked table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RetiredTable {
    pub frame: TableFrame,
    pub epoch: Epoch,
    /// If the table's leaves were merged into a large one: the EPT's root and where the large leaf
    /// stands, so that flags which a processor sets late are not lost.
    pub merged_into: Option<(TableFrame, Level, Gfn)>,
}

/// All tables that wait for an invalidation.
#[derive(Debug, Default)]
pub(crate) struct Retired {
    waiting: Vec<RetiredTable>,
}

impl Retired {
    /// Makes sure that `count` tables can be retired without needing memory.
    pub(crate) fn reserve(&mut self, count: usize) -> Result<(), OutOfFrames> {
        self.waiting.try_reserve(count).map_err(|_| OutOfFrames)
    }

    /// Adds a table.
    ///
    /// # Panics
    /// If no room was reserved: a commit must not allocate.
    pub(crate) fn push(&mut self, table: RetiredTable) {
        assert!(self.waiting.len() < self.waiting.capacity(), "a table is retired without room");
        self.waiting.push(table);
    }

    /// Takes out one table whose epoch has been completed.
    pub(crate) fn take_until(&mut self, epoch: Epoch) -> Option<RetiredTable> {
        let at = self.waiting.iter().position(|table| table.epoch <= epoch)?;
        Some(self.waiting.swap_remove(at))
    }

    /// How many tables wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }
}

//! Page-granular dirty logging alongside sub-page permissions.
//!
//! A page of a logging slot is armed while its bit is 0: its leaf has neither W nor bit 61, so the
//! first permitted write traps, sets the bit, and gives the leaf its rights back. Losing bit 61 is
//! losing a right to write and is invalidated like losing W (D24). A denied write is not dirty.

use super::names::in_page_of;
use super::tables::Tables;
use super::{Domain, DomainError, Observer};
use crate::address::{ByteRange, Gfn, Gpa};
use crate::frames::TableFrames;
use crate::invalidate::{Completed, Epoch, Invalidation};
use crate::level::Level;
use crate::slots::{AddressSpace, DirtyBitmap, SlotError, SlotId};
use crate::track::Arming;

use super::change::Repermit;

/// A harvest that may be read once its re-arming is in force on every processor.
///
/// Until then a processor may still write through an old translation. Such a write belongs to this
/// harvest, so the memory may be copied only after that: hence the wrapper.
#[must_use = "the harvest is lost if it is not read"]
#[derive(Debug)]
pub struct Pending<T> {
    epoch: Epoch,
    value: T,
}

impl<T> Pending<T> {
    pub(super) const fn new(token: &Invalidation, value: T) -> Self {
        Self { epoch: token.epoch, value }
    }

    /// The harvest, if `done` covers its re-arming; otherwise the wrapper back.
    pub fn ready(self, done: &Completed) -> Result<T, Self> {
        if done.epoch >= self.epoch { Ok(self.value) } else { Err(self) }
    }
}

impl<F: TableFrames, O: Observer> Domain<F, O> {
    /// Takes a slot's dirty pages and arms them again.
    ///
    /// Fails if there is no such slot, it does not log, or memory is short (for the bitmap that
    /// takes over).
    pub fn harvest_dirty(
        &mut self,
        space: AddressSpace,
        id: SlotId,
    ) -> Result<(Pending<DirtyBitmap>, Invalidation), DomainError> {
        let slot = self.slots[space.index()].get_mut(id)?;
        let Some(bitmap) = &mut slot.dirty else { return Err(SlotError::NotLogging(id).into()) };
        let fresh = DirtyBitmap::new(bitmap.pages())?;
        let harvest = core::mem::replace(bitmap, fresh);
        let mut tightened = false;
        for gfn in harvest.iter() {
            if let Some(leaves) = self.tables.leaf_table(space, gfn) {
                tightened |= self.tables.refresh_leaf(space, leaves, &self.slots, gfn);
            }
        }
        let token = self.tables.token(tightened);
        Ok((Pending::new(&token, harvest), token))
    }

    /// Notes pages that the processor logged by itself (page-modification logging).
    ///
    /// Pages in no slot or in a slot that does not log are passed over.
    pub fn note_logged(&mut self, space: AddressSpace, pages: impl Iterator<Item = Gfn>) {
        for gfn in pages {
            self.mark_dirty(space, gfn);
        }
    }

    /// Notes that flags of the page-table entry at `entry` are about to be set for the guest's
    /// processor: its page is dirty and its sub-page written. No rule forbids that.
    pub fn note_marked(&mut self, space: AddressSpace, entry: Gpa) -> Result<(), DomainError> {
        // The flags lie in the addressed byte or in another one of the same entry, so of its sub-page.
        self.note_written(space, ByteRange::new(entry, 1).expect("one byte"))
    }

    /// Notes a write that is about to happen: dirty pages, and tracked sub-pages of both.
    ///
    /// The one step that can fail, opening tracked sub-pages, comes first.
    pub(super) fn note_written(
        &mut self,
        space: AddressSpace,
        write: ByteRange,
    ) -> Result<(), DomainError> {
        if self.names.is_empty() || self.tracking.is_empty() {
            self.open_tracked(write)?;
        } else {
            for piece in write.pages() {
                let original = self.names.original(piece.first().gfn());
                self.open_tracked(in_page_of(piece, original))?;
            }
        }
        for gfn in write.gfns().iter() {
            self.mark_dirty(space, gfn);
        }
        Ok(())
    }

    /// Marks a page dirty and opens its 4 KiB leaf as far as its vector allows.
    pub(super) fn mark_dirty(&mut self, space: AddressSpace, gfn: Gfn) {
        let Some(slot) = self.slots[space.index()].find_mut(gfn) else { return };
        if !slot.dirty_armed(gfn) {
            return;
        }
        let Some(bitmap) = &mut slot.dirty else { return };
        bitmap.mark(gfn);
        self.counters.dirtied += 1;
        if let Some(leaves) = self.tables.leaf_table(space, gfn) {
            self.tables.refresh_leaf(space, leaves, &self.slots, gfn);
        }
    }

    /// Notes the tracked sub-pages that a permitted write touches as written, and opens those that
    /// were armed.
    fn open_tracked(&mut self, write: ByteRange) -> Result<(), DomainError> {
        if self.tracking.is_empty() {
            return Ok(());
        }
        let Some(sppt) = self.tables.sppt else { return Ok(()) };
        // A write that a rule lets through may touch a sub-page that is not armed, since it traps
        // anyway; it is written all the same.
        if !write.pages().any(|bytes| self.tracking.is_news(bytes)) {
            return Ok(());
        }
        let ranges = [write.gfns()];
        self.tracking.reserve(write.gfns())?;
        let mut change = Repermit {
            tracking: &mut self.tracking,
            arming: Arming::Written(write),
            permit: |_, old| old,
            keeps: |_| true,
        };
        // Opening takes no right away, so the only thing a token could ask for is that frames of
        // emptied tables wait; they wait for whatever change comes next.
        let tables = (sppt, &self.slots);
        let _opened = self.names.change(&mut self.tables, tables, &ranges, &mut change)?;
        self.counters.tracked += 1;
        Ok(())
    }

    /// Splits the large leaf that maps `gfn`, if there is one, so that one page can become dirty.
    pub(super) fn split_for_dirty(
        &mut self,
        space: AddressSpace,
        gfn: Gfn,
    ) -> Result<(), DomainError> {
        let Some(ept) = self.tables.epts[space.index()] else { return Ok(()) };
        let place = ept.find(&self.tables.frames, gfn);
        let tables = match place.level {
            Level::L3 if place.leaf_size().is_some() => 2,
            Level::L2 if place.leaf_size().is_some() => 1,
            _ => return Ok(()),
        };
        let mut splits = self.tables.take_split_tables(tables)?;
        self.tables.split_to_pages(space, &self.slots, gfn, &mut splits);
        Ok(())
    }
}

impl<F: TableFrames> Tables<F> {
    /// Takes `count` tables for splitting, all or none.
    pub(super) fn take_split_tables(
        &mut self,
        count: usize,
    ) -> Result<alloc::vec::Vec<crate::frames::TableFrame>, DomainError> {
        let mut splits = alloc::vec::Vec::new();
        for _ in 0..count {
            if let Err(error) = self.take_split_table(&mut splits) {
                for frame in splits {
                    self.frames.release(frame);
                }
                return Err(error.into());
            }
        }
        Ok(splits)
    }
}

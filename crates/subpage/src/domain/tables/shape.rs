//! Splitting and merging the leaves that map a region.

use alloc::vec::Vec;

use super::{Slots, Tables};
use crate::address::{Gfn, GfnRange};
use crate::ept::{self, EptEntry, LeafRights, Meaning, Place};
use crate::frames::{ENTRIES, EntryIndex, TableFrame, TableFrames};
use crate::invalidate::RetiredTable;
use crate::level::Level;
use crate::slots::AddressSpace;

impl<F: TableFrames> Tables<F> {
    /// Splits whatever large leaf maps `gfn` until 4 KiB leaves do; takes tables from `splits`.
    pub(in crate::domain) fn split_to_pages(
        &mut self,
        space: AddressSpace,
        slots: &Slots,
        gfn: Gfn,
        splits: &mut Vec<TableFrame>,
    ) {
        let Some(ept) = self.epts[space.index()] else { return };
        loop {
            let place = ept.find(&self.frames, gfn);
            if place.level == Level::L1 || place.leaf_size().is_none() {
                return;
            }
            self.split_once(space, slots, place, place.level.region_start(gfn), splits);
        }
    }

    /// Splits one large leaf, which begins at `start`, into leaves one size smaller.
    pub(in crate::domain) fn split_once(
        &mut self,
        space: AddressSpace,
        slots: &Slots,
        place: Place,
        start: Gfn,
        splits: &mut Vec<TableFrame>,
    ) {
        let table = splits.pop().expect("a table was planned for every split");
        let below = place.level.below().expect("a large leaf stands above the last level");
        // The small leaves are written while the tables are borrowed, so rights are computed first.
        let mut rights = [LeafRights { write: false, sub_page_write: false }; ENTRIES];
        for (index, rights) in (0..).zip(&mut rights) {
            let gfn = Gfn::new(start.as_u64() + index * below.frames());
            *rights = self.rights_at(space, slots, below, gfn, place.entry);
        }
        ept::split(&mut self.frames, place, table, start, |gfn| rights[below.index(gfn).get()]);
    }

    /// Merges small leaves around `gfn` into large ones as far as nothing stands against it.
    ///
    /// Needs room for two retired tables.
    pub(in crate::domain) fn merge(&mut self, space: AddressSpace, slots: &Slots, gfn: Gfn) {
        let Some(ept) = self.epts[space.index()] else { return };
        for level in [Level::L2, Level::L3] {
            let start = level.region_start(gfn);
            let place = ept.find_down_to(&self.frames, start, level);
            let Meaning::Table(table) = place.entry.meaning(place.level) else { return };
            let whole = GfnRange::new(start, level.frames()).expect("a region");
            let slot = slots[space.index()].find(start);
            let one_slot =
                slot.is_some_and(|slot| slot.pages.covers(whole) && slot.dirty.is_none());
            if place.level != level || !one_slot || !self.is_unrestricted(level, start) {
                return;
            }
            let Some(large) = ept::merged(&self.frames, table, level) else { return };
            ept::update(&mut self.frames, place, |link| {
                large.with_accessed(large.accessed() || link.accessed())
            });
            let epoch = self.next_epoch();
            let merged_into = Some((ept.root(), level, start));
            self.retired.push(RetiredTable { frame: table, epoch, merged_into });
        }
    }

    /// Carries accessed and dirty flags that a processor set in a merged-away table, between the
    /// merge and its invalidation, to the leaves that map the same pages now.
    pub(super) fn keep_late_flags(
        &mut self,
        table: TableFrame,
        root: TableFrame,
        level: Level,
        start: Gfn,
    ) {
        let Some(ept) = self.epts.into_iter().flatten().find(|ept| ept.root() == root) else {
            return;
        };
        let below = level.below().expect("only large leaves are merged into");
        for index in EntryIndex::all() {
            let old = EptEntry::from(self.frames.load(table, index));
            if !old.accessed() && !old.dirty() {
                continue;
            }
            let gfn = Gfn::new(start.as_u64() + index.get() as u64 * below.frames());
            let place = ept.find(&self.frames, gfn);
            if place.leaf_size().is_some() {
                ept::update(&mut self.frames, place, |entry| {
                    entry
                        .with_accessed(entry.accessed() || old.accessed())
                        .with_dirty(entry.dirty() || old.dirty())
                });
            }
        }
    }
}

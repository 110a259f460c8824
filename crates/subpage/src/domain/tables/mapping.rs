//! Mapping, unmapping, and visiting the leaves of an EPT.

use alloc::vec::Vec;

use super::{Slots, Tables};
use crate::address::{Gfn, GfnRange, Hpa};
use crate::domain::{DomainError, HostPage};
use crate::ept::{Ept, EptEntry, Meaning, Place};
use crate::frames::{ENTRIES, EntryIndex, TableFrame, TableFrames};
use crate::invalidate::Invalidation;
use crate::level::Level;
use crate::slots::AddressSpace;

impl<F: TableFrames> Tables<F> {
    // Mapping.

    pub(in crate::domain) fn map(
        &mut self,
        space: AddressSpace,
        slots: &Slots,
        gfn: Gfn,
        page: HostPage,
    ) -> Result<(), DomainError> {
        let ept = match self.epts[space.index()] {
            Some(ept) => ept,
            None => Ept::new(&mut self.frames)?,
        };
        let mut fresh = Vec::new();
        let planned =
            self.plan_map(slots, space, Some(ept.root()), Level::L4, gfn, page, &mut fresh);
        if let Err(error) = planned {
            for frame in fresh {
                self.frames.release(frame);
            }
            if self.epts[space.index()].is_none() {
                self.frames.release(ept.root());
            }
            return Err(error);
        }
        self.epts[space.index()] = Some(ept);
        fresh.reverse();
        self.install(slots, space, ept.root(), Level::L4, gfn, page, &mut fresh);
        assert!(fresh.is_empty(), "a mapping uses every frame it planned");
        Ok(())
    }

    /// Whether the region of an entry is mapped by a leaf of its level.
    fn maps_whole(
        &self,
        slots: &Slots,
        space: AddressSpace,
        level: Level,
        gfn: Gfn,
        page: HostPage,
    ) -> bool {
        if level > page.size.level() {
            return false;
        }
        let region = GfnRange::new(gfn, level.frames()).expect("a region of a checked range");
        let one_slot = slots[space.index()].find(gfn).is_some_and(|slot| slot.pages.covers(region));
        level == Level::L1 || (one_slot && self.is_unrestricted(level, gfn))
    }

    /// Indices of a table that a mapping passes, with the frame each begins at.
    fn entries_of(
        level: Level,
        gfn: Gfn,
        page: HostPage,
    ) -> impl Iterator<Item = (EntryIndex, Gfn)> {
        let count = if level >= page.size.level() { 1 } else { ENTRIES };
        let first = level.index(gfn);
        first.onwards().take(count).map(move |index| {
            let offset = (index.get() - first.get()) as u64 * level.frames();
            (index, Gfn::new(gfn.as_u64() + offset))
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn plan_map(
        &mut self,
        slots: &Slots,
        space: AddressSpace,
        table: Option<TableFrame>,
        level: Level,
        gfn: Gfn,
        page: HostPage,
        fresh: &mut Vec<TableFrame>,
    ) -> Result<(), DomainError> {
        let mut stores = 0;
        for (index, gfn) in Self::entries_of(level, gfn, page) {
            let entry =
                table.map_or(EptEntry::new(), |table| self.frames.load(table, index).into());
            let next = match entry.meaning(level) {
                Meaning::Leaf(_) => return Err(DomainError::AlreadyMapped(gfn)),
                Meaning::Table(next) => Some(next),
                Meaning::Absent => {
                    stores += 1;
                    if self.maps_whole(slots, space, level, gfn, page) {
                        continue;
                    }
                    fresh.try_reserve(1).map_err(|_| DomainError::OutOfMemory)?;
                    let frame = self.frames.allocate()?;
                    fresh.push(frame);
                    // A fresh table is planned as if absent; its room is made here.
                    let below = level.below().expect("a 4 KiB entry maps its page");
                    let count = Self::entries_of(below, gfn, page).count();
                    self.frames.make_room(frame, count)?;
                    None
                }
            };
            let below = level.below().expect("a 4 KiB entry is absent or a leaf");
            self.plan_map(slots, space, next, below, gfn, page, fresh)?;
        }
        if let Some(table) = table {
            self.frames.make_room(table, stores)?;
        }
        Ok(())
    }

    /// Builds below `table`; a fresh table is complete before it is linked.
    #[allow(clippy::too_many_arguments)]
    fn install(
        &mut self,
        slots: &Slots,
        space: AddressSpace,
        table: TableFrame,
        level: Level,
        gfn: Gfn,
        page: HostPage,
        fresh: &mut Vec<TableFrame>,
    ) {
        for (index, at) in Self::entries_of(level, gfn, page) {
            let entry = EptEntry::from(self.frames.load(table, index));
            let below = level.below();
            match entry.meaning(level) {
                Meaning::Table(next) => {
                    let below = below.expect("a 4 KiB entry is no table");
                    self.install(slots, space, next, below, at, page, fresh);
                }
                Meaning::Absent if self.maps_whole(slots, space, level, at, page) => {
                    let leaf = self.leaf(slots, space, level, at, page);
                    self.frames.store(table, index, leaf.into());
                }
                Meaning::Absent => {
                    let next = fresh.pop().expect("a frame was planned for every table");
                    let below = below.expect("a 4 KiB entry maps its page");
                    self.install(slots, space, next, below, at, page, fresh);
                    self.frames.store(table, index, EptEntry::link(next).into());
                }
                Meaning::Leaf(_) => unreachable!("the plan refused mapped frames"),
            }
        }
    }

    /// The leaf that maps `at` to its part of the host page, which is mapped at a multiple of its
    /// size.
    fn leaf(
        &self,
        slots: &Slots,
        space: AddressSpace,
        level: Level,
        at: Gfn,
        page: HostPage,
    ) -> EptEntry {
        let offset = at.gpa().as_u64() & (page.size.bytes() - 1);
        let entry = EptEntry::new()
            .with_read(true)
            .with_execute(page.executable)
            // Ignored without mode-based execute control; with it, user-mode fetches need the bit.
            .with_user_execute(page.executable)
            .with_memory_type(page.memory_type as u8)
            .with_hpa(Hpa::new(page.hpa.as_u64() + offset))
            .with_large(level != Level::L1)
            .with_host_writable(page.writable);
        self.rights_at(space, slots, level, at, entry).apply_to(entry)
    }

    // Unmapping.

    pub(in crate::domain) fn unmap(
        &mut self,
        space: AddressSpace,
        slots: &Slots,
        range: GfnRange,
    ) -> Result<Invalidation, DomainError> {
        let Some(ept) = self.epts[space.index()] else { return Ok(Invalidation::none()) };
        let splits = self.take_split_tables(self.splits_at_ends(space, range))?;
        let tables = self.count_tables(ept.root(), Level::L4, Gfn::new(0), range);
        if let Err(error) = self.reserve_retired(tables + splits.len()) {
            for frame in splits {
                self.frames.release(frame);
            }
            return Err(error.into());
        }
        self.split_at_ends(space, slots, range, splits);
        let cleared = self.clear(ept.root(), Level::L4, Gfn::new(0), range);
        Ok(self.token(cleared))
    }

    /// How many tables [`split_at_ends`](Self::split_at_ends) needs, 0 to 4: a caller that frees memory
    /// must not need some first.
    pub(in crate::domain) fn splits_at_ends(&self, space: AddressSpace, range: GfnRange) -> usize {
        let Some(ept) = self.epts[space.index()] else { return 0 };
        let mut count = 0;
        for (end, split_before) in [(range.first(), None), (range.last(), Some(range.first()))] {
            let place = ept.find(&self.frames, end);
            let mut level = Some(place.level).filter(|_| place.leaf_size().is_some());
            while let Some(here) = level {
                let start = here.region_start(end);
                let whole = GfnRange::new(start, here.frames()).expect("a region");
                if range.covers(whole) {
                    break;
                }
                count += usize::from(!split_before.is_some_and(|gfn| whole.contains(gfn)));
                level = here.below();
            }
        }
        count
    }

    /// Splits the large leaves that lie across an end of `range`.
    pub(in crate::domain) fn split_at_ends(
        &mut self,
        space: AddressSpace,
        slots: &Slots,
        range: GfnRange,
        mut splits: Vec<TableFrame>,
    ) {
        let ept = self.epts[space.index()];
        for gfn in [range.first(), range.last()] {
            while let Some(ept) = ept {
                let place = ept.find(&self.frames, gfn);
                let start = place.level.region_start(gfn);
                let whole = GfnRange::new(start, place.level.frames()).expect("a region");
                if place.leaf_size().is_none() || range.covers(whole) {
                    break;
                }
                self.split_once(space, slots, place, start, &mut splits);
            }
        }
        assert!(splits.is_empty(), "every table that was planned for a split is used");
    }

    fn children(
        table_level: Level,
        base: Gfn,
        range: GfnRange,
    ) -> impl Iterator<Item = (EntryIndex, GfnRange)> {
        EntryIndex::all().filter_map(move |index| {
            let first = Gfn::new(base.as_u64() + index.get() as u64 * table_level.frames());
            let child = GfnRange::new(first, table_level.frames()).ok()?;
            child.intersection(range).map(|_| (index, child))
        })
    }

    fn count_tables(&self, table: TableFrame, level: Level, base: Gfn, range: GfnRange) -> usize {
        let Some(below) = level.below() else { return 0 };
        Self::children(level, base, range)
            .map(|(index, child)| {
                match EptEntry::from(self.frames.load(table, index)).meaning(level) {
                    Meaning::Table(next) => {
                        1 + self.count_tables(next, below, child.first(), range)
                    }
                    _ => 0,
                }
            })
            .sum()
    }

    /// Clears the leaves of `range` below `table` and retires tables that hold nothing any more.
    fn clear(&mut self, table: TableFrame, level: Level, base: Gfn, range: GfnRange) -> bool {
        let mut cleared = false;
        for (index, child) in Self::children(level, base, range) {
            match EptEntry::from(self.frames.load(table, index)).meaning(level) {
                Meaning::Absent => {}
                Meaning::Leaf(_) => {
                    self.frames.store(table, index, 0);
                    cleared = true;
                }
                Meaning::Table(next) => {
                    let below = level.below().expect("a 4 KiB entry is no table");
                    cleared |= self.clear(next, below, child.first(), range);
                    if EntryIndex::all().all(|index| self.frames.load(next, index) == 0) {
                        self.frames.store(table, index, 0);
                        self.retire(next);
                        cleared = true;
                    }
                }
            }
        }
        cleared
    }

    // Leaves in bulk.

    /// Visits every leaf that maps a part of `range`, with the first frame it maps.
    pub(in crate::domain) fn for_each_leaf(
        &mut self,
        space: AddressSpace,
        range: GfnRange,
        mut visit: impl FnMut(&mut Self, Place, Gfn),
    ) {
        let Some(ept) = self.epts[space.index()] else { return };
        let mut at = range.first();
        loop {
            let place = ept.find(&self.frames, at);
            let start = place.level.region_start(at);
            if place.leaf_size().is_some() {
                visit(self, place, start);
            }
            match start.checked_add(place.level.frames()) {
                Some(next) if next <= range.last() => at = next,
                _ => return,
            }
        }
    }

    /// Recomputes every leaf of `range`; returns whether one lost a right.
    pub(in crate::domain) fn refresh(
        &mut self,
        space: AddressSpace,
        slots: &Slots,
        range: GfnRange,
    ) -> bool {
        let mut tightened = false;
        self.for_each_leaf(space, range, |tables, place, gfn| {
            let rights = tables.rights_at(space, slots, place.level, gfn, place.entry);
            tightened |= crate::ept::set_rights(&mut tables.frames, place, rights);
        });
        tightened
    }

    /// Makes room for the tables that merging all of `range` would retire.
    pub(in crate::domain) fn reserve_merges(
        &mut self,
        space: AddressSpace,
        range: GfnRange,
    ) -> Result<(), DomainError> {
        let mut tables = 0;
        let mut last = None;
        self.for_each_leaf(space, range, |_, place, _| {
            if last.replace(place.table) != Some(place.table) {
                tables += 2;
            }
        });
        Ok(self.reserve_retired(tables)?)
    }
}

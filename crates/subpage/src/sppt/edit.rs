//! Changing the sub-page permission table: plan everything that can fail, then apply without fail.
//!
//! A change runs in two passes over the same pages. [`SpptPlan::make`] takes every frame that the
//! second pass will link; if one is missing, those taken go back and nothing has happened (C2). The
//! second pass, [`Sppt::link_region`], consumes them in the same order.

use alloc::vec::Vec;

use super::{Sppt, SpptEntry, stored_vector};
use crate::access::SppVector;
use crate::address::{Gfn, GfnRange};
use crate::frames::{ENTRIES, EntryIndex, OutOfFrames, TableFrame, TableFrames};
use crate::level::Level;

/// The pages of a call that lie in one 2 MiB region.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Region<'a> {
    /// First frame of the region, a multiple of 512.
    pub start: Gfn,
    /// The call's ranges that reach into the region, ascending and disjoint.
    ranges: &'a [GfnRange],
}

impl<'a> Region<'a> {
    /// The region's 512 frames.
    pub(crate) fn whole(self) -> GfnRange {
        GfnRange::new(self.start, Level::L2.frames()).expect("a region lies in the address space")
    }

    /// Whether the call has all pages of the region, in one range.
    pub(crate) fn is_whole(self) -> bool {
        self.ranges.iter().any(|range| range.covers(self.whole()))
    }

    /// The call's pages in the region as ranges, ascending and disjoint.
    pub(crate) fn pieces(self) -> impl Iterator<Item = GfnRange> + 'a {
        let whole = self.whole();
        self.ranges.iter().filter_map(move |range| range.intersection(whole))
    }

    /// The call's pages in the region, ascending.
    pub(crate) fn pages(self) -> impl Iterator<Item = Gfn> + 'a {
        self.pieces().flat_map(GfnRange::iter)
    }

    fn count(self) -> usize {
        let pages: u64 = self.pieces().map(GfnRange::pages).sum();
        usize::try_from(pages).expect("a region has 512 pages")
    }
}

/// Cuts ascending, disjoint ranges into the 2 MiB regions they reach into.
pub(crate) fn regions(ranges: &[GfnRange]) -> impl Iterator<Item = Region<'_>> {
    let mut at = 0;
    let mut next_region = 0;
    core::iter::from_fn(move || {
        let order = Level::L2.order();
        while ranges.get(at).is_some_and(|r| r.last().as_u64() >> order < next_region) {
            at += 1;
        }
        let first = ranges.get(at)?;
        let number = (first.first().as_u64() >> order).max(next_region);
        next_region = number + 1;
        let start = Gfn::new(number << order);
        let beyond = next_region << order;
        let reach = ranges[at..].iter().take_while(|r| r.first().as_u64() < beyond).count();
        Some(Region { start, ranges: &ranges[at..at + reach] })
    })
}

/// Frames taken for tables that a change will link, in the order in which it will link them.
#[derive(Debug, Default)]
pub(crate) struct SpptPlan {
    fresh: Vec<TableFrame>,
    used: usize,
    edited: usize,
}

/// The table of one upper level that the plan is passing through, and how many entries of it the
/// change will link.
#[derive(Clone, Copy)]
struct Passing {
    table: TableFrame,
    region: u64,
    links: usize,
}

impl SpptPlan {
    /// Takes the frames; on failure gives all of them back.
    ///
    /// `new` must be the function that the second pass will follow, and `uniform` what it will do with
    /// whole regions.
    pub(crate) fn make<F: TableFrames>(
        sppt: Sppt,
        frames: &mut F,
        ranges: &[GfnRange],
        new: &impl Fn(Gfn, SppVector) -> SppVector,
        uniform: &impl Fn(GfnRange, SppVector) -> Option<SppVector>,
    ) -> Result<Self, OutOfFrames> {
        let mut plan = Self::default();
        match plan.fill(sppt, frames, ranges, new, uniform) {
            Ok(()) => Ok(plan),
            Err(error) => {
                plan.release(frames);
                Err(error)
            }
        }
    }

    /// Gives back the frames that were not used.
    pub(crate) fn release<F: TableFrames>(self, frames: &mut F) {
        for frame in &self.fresh[self.used..] {
            frames.release(*frame);
        }
    }

    /// How many regions have an L1 table already.
    pub(crate) const fn edited(&self) -> usize {
        self.edited
    }

    /// Whether some region gets an L1 table.
    pub(crate) const fn links_any(&self) -> bool {
        !self.fresh.is_empty()
    }

    fn take<F: TableFrames>(&mut self, frames: &mut F) -> Result<TableFrame, OutOfFrames> {
        self.fresh.try_reserve(1).map_err(|_| OutOfFrames)?;
        let frame = frames.allocate()?;
        self.fresh.push(frame);
        Ok(frame)
    }

    fn fill<F: TableFrames>(
        &mut self,
        sppt: Sppt,
        frames: &mut F,
        ranges: &[GfnRange],
        new: &impl Fn(Gfn, SppVector) -> SppVector,
        uniform: &impl Fn(GfnRange, SppVector) -> Option<SppVector>,
    ) -> Result<(), OutOfFrames> {
        let mut passing: [Option<Passing>; 3] = [None; 3];
        for region in regions(ranges) {
            let as_one = |old| region.is_whole().then(|| uniform(region.whole(), old)).flatten();
            if let Some(table) = sppt.leaf_table(frames, region.start) {
                self.edited += 1;
                if uniform_vector(frames, table).and_then(as_one).is_none() {
                    frames.make_room(table, region.count())?;
                }
                continue;
            }
            let as_one = as_one(SppVector::ALL);
            let stays = match as_one {
                Some(vector) => vector.is_unrestricted(),
                None => region.pages().all(|gfn| new(gfn, SppVector::ALL).is_unrestricted()),
            };
            if stays {
                continue;
            }
            let mut table = sppt.root();
            for (at, level) in [Level::L4, Level::L3, Level::L2].into_iter().enumerate() {
                let of = region.start.as_u64() >> level.order() >> 9;
                if passing[at].is_none_or(|here| here.region != of)
                    && let Some(done) = passing[at].replace(Passing { table, region: of, links: 0 })
                {
                    frames.make_room(done.table, done.links)?;
                }
                let linked = SpptEntry::from(frames.load(table, level.index(region.start))).table();
                let below = passing.get(at + 1).copied().flatten();
                let planned = below.filter(|p| p.region == region.start.as_u64() >> level.order());
                table = match (linked, planned) {
                    (Some(next), _) => next,
                    (None, Some(next)) => next.table,
                    (None, None) => {
                        if let Some(here) = &mut passing[at] {
                            here.links += 1;
                        }
                        self.take(frames)?
                    }
                };
            }
            frames.fill(table, SppVector::ALL.bits());
            if as_one.is_none() {
                frames.make_room(table, region.count())?;
            }
        }
        for here in passing.into_iter().flatten() {
            frames.make_room(here.table, here.links)?;
        }
        Ok(())
    }

    fn next(&mut self) -> TableFrame {
        let frame = self.fresh[self.used];
        self.used += 1;
        frame
    }
}

impl Sppt {
    /// Gives the region an L1 table, unless it has one.
    ///
    /// `write` is called with the new table, in which every page is unrestricted, before it is
    /// linked: a table is complete before a processor can see it (D18).
    pub(crate) fn link_region<F: TableFrames>(
        self,
        frames: &mut F,
        plan: &mut SpptPlan,
        start: Gfn,
        write: impl FnOnce(&mut F, TableFrame),
    ) {
        let mut path = [self.root(); 3];
        let mut fresh_from = None;
        let mut table = self.root();
        for (at, level) in [Level::L4, Level::L3, Level::L2].into_iter().enumerate() {
            path[at] = table;
            let linked = SpptEntry::from(frames.load(table, level.index(start))).table();
            // A fresh table links nothing yet, so that all below the first one are fresh, too.
            table = if let Some(next) = linked {
                next
            } else {
                fresh_from.get_or_insert(at);
                plan.next()
            };
        }
        let Some(first_fresh) = fresh_from else { return };
        write(frames, table);
        let mut below = table;
        for (at, level) in [Level::L4, Level::L3, Level::L2].into_iter().enumerate().rev() {
            if at < first_fresh {
                break;
            }
            frames.store(path[at], level.index(start), SpptEntry::link(below).into());
            below = path[at];
        }
    }

    /// Unlinks the tables of a region in which no page is restricted any more; the callback
    /// receives each frame, which a processor may still be reading.
    ///
    /// `witness` is where a restricted page was found before: it is looked at first, since where one
    /// page of a region is opened and closed again and again the others stay as they are.
    pub(crate) fn unlink_if_empty<F: TableFrames>(
        self,
        frames: &mut F,
        start: Gfn,
        witness: &mut EntryIndex,
        mut retire: impl FnMut(TableFrame),
    ) -> bool {
        let mut path = [self.root(); 4];
        for (at, level) in [Level::L4, Level::L3, Level::L2].into_iter().enumerate() {
            match SpptEntry::from(frames.load(path[at], level.index(start))).table() {
                Some(next) => path[at + 1] = next,
                None => return false,
            }
        }
        if let Some(other) = find_other(frames, path[3], SppVector::ALL.bits(), *witness) {
            *witness = other;
            return false;
        }
        for (at, level) in [Level::L4, Level::L3, Level::L2].into_iter().enumerate().rev() {
            frames.store(path[at], level.index(start), SpptEntry::new().into());
            retire(path[at + 1]);
            // Restricted regions often adjoin.
            let neighbour = EntryIndex::truncate(level.index(start).get() as u64 ^ 1);
            if at == 0 || find_other(frames, path[at], 0, neighbour).is_some() {
                break;
            }
        }
        true
    }

    /// Stores one vector in a region's L1 table.
    pub(crate) fn store_vector<F: TableFrames>(
        frames: &mut F,
        table: TableFrame,
        gfn: Gfn,
        vector: SppVector,
    ) {
        frames.store(table, Level::L1.index(gfn), vector.bits());
    }
}

/// The vector of all pages of an L1 table, where that is one and can be seen at a glance.
pub(crate) fn uniform_vector<F: TableFrames>(frames: &F, table: TableFrame) -> Option<SppVector> {
    frames.uniform(table).map(stored_vector)
}

/// An entry of a table that does not hold `value`, if there is one; `likely` if it is that one.
fn find_other<F: TableFrames>(
    frames: &F,
    table: TableFrame,
    value: u64,
    likely: EntryIndex,
) -> Option<EntryIndex> {
    if frames.load(table, likely) != value {
        return Some(likely);
    }
    if frames.uniform(table) == Some(value) {
        return None;
    }
    let mut entries = [0; 64];
    (0..ENTRIES).step_by(entries.len()).find_map(|first| {
        frames.load_run(table, EntryIndex::truncate(first as u64), &mut entries);
        let at = entries.iter().position(|entry| *entry != value)?;
        Some(EntryIndex::truncate((first + at) as u64))
    })
}

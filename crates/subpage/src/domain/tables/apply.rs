//! Applying a planned change: nothing here can fail.

use zerocopy::{FromBytes as _, IntoBytes as _};

use super::plan::{Change, Plan, RETIRED_PER_REGION};
use super::{Slots, Tables};
use crate::access::SppVector;
use crate::address::{Gfn, GfnRange};
use crate::frames::{OutOfFrames, TableFrame, TableFrames};
use crate::invalidate::{Invalidation, RetiredTable};
use crate::level::Level;
use crate::slots::{AddressSpace, Slot};
use crate::sppt::{Region, Sppt, regions, stored_vector, uniform_vector};

/// Pages that are changed at a time where a call has so many: their vectors stay in the first-level
/// cache, and the compiler uses whole vector registers.
const RUN: usize = 32;

/// A region with an L1 table while a change goes through it.
struct Edit {
    /// The L1 table.
    table: TableFrame,
    /// The EPT tables that hold the region's leaves, once somebody has asked for them: most changes
    /// take one partial vector for another, and no leaf has to say anything else.
    leaves: Option<[Option<TableFrame>; 2]>,
    /// A page or a leaf lost a right.
    tightened: bool,
    /// A page that was restricted became unrestricted.
    opened: bool,
}

/// The kinds of vector that leaves of the EPT tell apart: nothing, everything, or "ask the SPPT".
const fn same_kind(old: u64, new: u64) -> bool {
    let none = (old == SppVector::NONE.bits()) == (new == SppVector::NONE.bits());
    let all = (old == SppVector::ALL.bits()) == (new == SppVector::ALL.bits());
    none & all
}

/// Whether some vector permits nothing or everything; now and then true where none does.
///
/// Looks at halves of vectors: every processor compares these with one instruction for four of them,
/// but whole vectors with several.
#[allow(clippy::needless_bitwise_bool)] // A branch at each half costs more than both comparisons.
fn any_is_whole(vectors: &[u64]) -> bool {
    #[allow(clippy::cast_possible_truncation)] // A half.
    const ALL: u32 = SppVector::ALL.bits() as u32;
    let halves = <[u32]>::ref_from_bytes(vectors.as_bytes()).expect("two halves each, aligned");
    halves.iter().fold(false, |any, &half| any | (half == 0) | (half == ALL))
}

/// The vectors whose kind changes, one bit each, the lowest for the first.
fn kind_changes<const N: usize>(old: &[u64; N], new: &[u64; N]) -> u32 {
    const { assert!(N <= 32, "one bit each") };
    old.iter()
        .zip(new)
        .rev()
        .fold(0, |changes, (old, new)| changes << 1 | u32::from(!same_kind(*old, *new)))
}

impl<F: TableFrames> Tables<F> {
    /// Plans and applies a change; on failure nothing has changed.
    #[inline]
    pub(crate) fn change(
        &mut self,
        sppt: Sppt,
        slots: &Slots,
        ranges: &[GfnRange],
        change: &mut impl Change,
    ) -> Result<Invalidation, OutOfFrames> {
        if let [range] = ranges
            && Level::L2.region_start(range.first()) == Level::L2.region_start(range.last())
            && let Some(table) = sppt.leaf_table(&self.frames, range.first())
        {
            return self.change_in_table(sppt, table, slots, *range, change);
        }
        let plan = self.plan(sppt, ranges, change)?;
        Ok(self.apply(sppt, plan, slots, ranges, change))
    }

    /// Changes pages of one region that has an L1 table: the common call, whose plan is nothing but
    /// room.
    fn change_in_table(
        &mut self,
        sppt: Sppt,
        table: TableFrame,
        slots: &Slots,
        range: GfnRange,
        change: &mut impl Change,
    ) -> Result<Invalidation, OutOfFrames> {
        let pages = usize::try_from(range.pages()).expect("a region has 512 pages");
        self.frames.make_room(table, pages)?;
        self.reserve_retired(RETIRED_PER_REGION)?;
        let retired_before = self.retired.len();
        let mut edit = Edit { table, leaves: None, tightened: false, opened: false };
        self.edit_piece(&mut edit, slots, range, change);
        if edit.opened {
            self.release_region(sppt, slots, Level::L2.region_start(range.first()));
        }
        Ok(self.token(edit.tightened || self.retired.len() > retired_before))
    }

    /// Applies a planned change; cannot fail.
    fn apply(
        &mut self,
        sppt: Sppt,
        mut plan: Plan,
        slots: &Slots,
        ranges: &[GfnRange],
        change: &mut impl Change,
    ) -> Invalidation {
        let retired_before = self.retired.len();
        let mut tightened = false;
        let mut opened = false;
        for region in regions(ranges) {
            if let Some(table) = sppt.leaf_table(&self.frames, region.start) {
                let edited = self.edit_region(table, slots, region, change);
                tightened |= edited.tightened;
                opened |= edited.opened;
            } else {
                tightened |= self.fill_region(sppt, &mut plan, slots, region, change);
            }
        }
        self.drop_plan(plan);
        if opened {
            // Only now: a table that one region no longer needs may be on the way of another, whose
            // plan counts on it.
            for region in regions(ranges) {
                self.release_region(sppt, slots, region.start);
            }
        }
        self.token(tightened || self.retired.len() > retired_before)
    }

    /// Changes a region that has no restricted page yet.
    fn fill_region(
        &mut self,
        sppt: Sppt,
        plan: &mut Plan,
        slots: &Slots,
        region: Region<'_>,
        change: &mut impl Change,
    ) -> bool {
        let uniform = region.is_whole().then(|| change.uniform(region.whole(), SppVector::ALL));
        let uniform = uniform.flatten();
        let any = match uniform {
            Some(vector) => !vector.is_unrestricted(),
            None => region.pages().any(|gfn| !change.vector(gfn, SppVector::ALL).is_unrestricted()),
        };
        if any {
            sppt.link_region(&mut self.frames, &mut plan.sppt, region.start, |frames, table| {
                if let Some(vector) = uniform {
                    return frames.fill(table, vector.bits());
                }
                for gfn in region.pages() {
                    let new = change.vector(gfn, SppVector::ALL);
                    if !new.is_unrestricted() {
                        Sppt::store_vector(frames, table, gfn, new);
                    }
                }
            });
            for space in AddressSpace::BOTH {
                self.split_to_pages(space, slots, region.start, &mut plan.splits);
                if let Some(leaves) = self.leaf_table(space, region.start) {
                    for gfn in region.pages() {
                        self.refresh_leaf(space, leaves, slots, gfn);
                    }
                }
            }
        }
        if uniform.is_none() {
            for gfn in region.pages() {
                let new = change.vector(gfn, SppVector::ALL);
                change.applied(gfn, SppVector::ALL, new);
            }
        }
        any
    }

    /// Changes a region that has an L1 table.
    fn edit_region(
        &mut self,
        table: TableFrame,
        slots: &Slots,
        region: Region<'_>,
        change: &mut impl Change,
    ) -> Edit {
        let mut edit = Edit { table, leaves: None, tightened: false, opened: false };
        let uniform = uniform_vector(&self.frames, table).filter(|_| region.is_whole());
        if let Some((old, new)) =
            uniform.and_then(|old| Some((old, change.uniform(region.whole(), old)?)))
        {
            self.edit_uniform(&mut edit, slots, region, old, new);
            return edit;
        }
        for piece in region.pieces() {
            self.edit_piece(&mut edit, slots, piece, change);
        }
        edit
    }

    /// Changes all pages of a region from one vector to another.
    fn edit_uniform(
        &mut self,
        edit: &mut Edit,
        slots: &Slots,
        region: Region<'_>,
        old: SppVector,
        new: SppVector,
    ) {
        edit.tightened |= old.without(new) != SppVector::NONE;
        edit.opened |= new.is_unrestricted() && !old.is_unrestricted();
        self.frames.fill(edit.table, new.bits());
        for space in AddressSpace::BOTH {
            if let Some(leaves) = self.leaf_table(space, region.start) {
                for gfn in region.pages() {
                    let slot = slots[space.index()].find(gfn);
                    edit.tightened |= self.set_leaf(leaves, slot, gfn, new);
                }
            }
        }
    }

    /// Changes consecutive pages of a region that has an L1 table.
    fn edit_piece(
        &mut self,
        edit: &mut Edit,
        slots: &Slots,
        piece: GfnRange,
        change: &mut impl Change,
    ) {
        let mut at = piece.first();
        let mut rest = piece.pages();
        while rest != 0 {
            let pages = if rest < RUN as u64 {
                self.edit_run::<1>(edit, slots, at, change);
                1
            } else {
                self.edit_run::<RUN>(edit, slots, at, change);
                RUN as u64
            };
            rest -= pages;
            at = at.checked_add(pages).unwrap_or(at);
        }
    }

    /// Unlinks the tables of a region without a restricted page, and merges what maps it.
    fn release_region(&mut self, sppt: Sppt, slots: &Slots, start: Gfn) {
        let epoch = self.next_epoch();
        let retired = &mut self.retired;
        let witness = &mut self.witness;
        let unlinked = sppt.unlink_if_empty(&mut self.frames, start, witness, |frame| {
            retired.push(RetiredTable { frame, epoch, merged_into: None });
        });
        if unlinked {
            for space in AddressSpace::BOTH {
                self.merge(space, slots, start);
            }
        }
    }

    /// Changes `N` consecutive pages that have a common L1 table.
    #[inline]
    fn edit_run<const N: usize>(
        &mut self,
        edit: &mut Edit,
        slots: &Slots,
        start: Gfn,
        change: &mut impl Change,
    ) {
        let first = Level::L1.index(start);
        let (mut copy, mut new) = ([0; N], [0; N]);
        let old: &[u64; N] = if let Some(entries) = self.frames.plain(edit.table) {
            entries[first.get()..].first_chunk().expect("a run lies in one table")
        } else {
            self.frames.load_run(edit.table, first, &mut copy);
            &copy
        };
        change.vectors(start, old, &mut new);
        edit.tightened |= old.iter().zip(&new).fold(0, |taken, (old, new)| taken | old & !new) != 0;
        let mut leaf_changes = 0;
        if any_is_whole(old) | any_is_whole(&new) {
            leaf_changes = kind_changes(old, &new);
        }
        change.applied_run(start, old, &new);
        if leaf_changes == 0 {
            // Each leaf says the same before and after.
            self.frames.store_run(edit.table, first, &new);
            return;
        }
        // Before a leaf that asks the table, after one that does not. Either order shows a processor
        // the old permission or the new one; this one causes no needless exit.
        let mut before = new;
        let mut after = 0_u32;
        for at in bits(leaf_changes) {
            if new[at] == SppVector::NONE.bits() || new[at] == SppVector::ALL.bits() {
                before[at] = old[at];
                after |= 1 << at;
            }
        }
        if before != *old {
            self.frames.store_run(edit.table, first, &before);
        }
        self.edit_leaves(edit, slots, start, &new, leaf_changes);
        for at in bits(after) {
            let gfn = Gfn::new(start.as_u64() + at as u64);
            Sppt::store_vector(&mut self.frames, edit.table, gfn, stored_vector(new[at]));
        }
    }

    /// Changes the leaves of the pages whose bits are set in `changes`, bit 0 for `start`.
    fn edit_leaves(
        &mut self,
        edit: &mut Edit,
        slots: &Slots,
        start: Gfn,
        new: &[u64],
        changes: u32,
    ) {
        let leaves = *edit
            .leaves
            .get_or_insert_with(|| AddressSpace::BOTH.map(|space| self.leaf_table(space, start)));
        for space in AddressSpace::BOTH {
            let Some(leaves) = leaves[space.index()] else { continue };
            let mut slot = None;
            for at in bits(changes) {
                let gfn = Gfn::new(start.as_u64() + at as u64);
                if slot.is_none_or(|slot: &Slot| !slot.pages.contains(gfn)) {
                    slot = slots[space.index()].find(gfn);
                }
                edit.tightened |= self.set_leaf(leaves, slot, gfn, stored_vector(new[at]));
            }
        }
        edit.opened |= bits(changes).any(|at| new[at] == SppVector::ALL.bits());
    }
}

/// The numbers of the bits that are set, ascending.
fn bits(mut set: u32) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let at = set.trailing_zeros();
        set = set.checked_sub(1)? & set;
        Some(at as usize)
    })
}

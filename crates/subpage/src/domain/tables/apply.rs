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

/// A vector in half the width, each bit at a place of its own: odd bits of vectors are 0. Every
/// processor compares four of these with one instruction, but whole vectors with several.
#[allow(clippy::cast_possible_truncation)] // The upper half is moved down.
const fn folded(vector: u64) -> u32 {
    vector as u32 | ((vector >> 32) as u32) << 1
}

/// Which vectors of a run change their kind, and which become whole by that; one bit each, the
/// lowest for the first. The leaves of the EPT tell three kinds apart: nothing, everything, or "ask
/// the SPPT".
struct KindChanges {
    changed: u32,
    become_whole: u32,
}

/// Compares a run's vectors before and after.
#[allow(clippy::needless_bitwise_bool)] // Branches would keep the compiler from vector registers.
fn kind_changes<const N: usize>(old: &[u64; N], new: &[u64; N]) -> KindChanges {
    const { assert!(N <= 32, "one bit each") };
    let (mut changed, mut become_whole) = ([0; N], [0; N]);
    for at in 0..N {
        let (old, new) = (folded(old[at]), folded(new[at]));
        let (none, all) = (new == 0, new == u32::MAX);
        let change = ((old == 0) ^ none) | ((old == u32::MAX) ^ all);
        changed[at] = u8::from(change);
        become_whole[at] = u8::from(change & (none | all));
    }
    KindChanges { changed: gather(&changed), become_whole: gather(&become_whole) }
}

/// The bits of a run, from one byte each: 0 or 1.
fn gather<const N: usize>(flags: &[u8; N]) -> u32 {
    // Byte n of eight goes to bit n of the top byte, and no two sums meet.
    const TO_TOP: u64 = 0x0102_0408_1020_4080;
    let eight = |flags: &[u8; 8]| (u64::from_le_bytes(*flags).wrapping_mul(TO_TOP) >> 56) as u32;
    let (eights, rest) = flags.as_chunks::<8>();
    let of_rest = rest.iter().rev().fold(0, |bits, flag| bits << 1 | u32::from(*flag));
    eights.iter().rev().fold(of_rest, |bits, flags| bits << 8 | eight(flags))
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
        edit.opened |= new.is_unrestricted();
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
        let mut kinds = KindChanges { changed: 0, become_whole: 0 };
        if any_is_whole(old) | any_is_whole(&new) {
            kinds = kind_changes(old, &new);
        }
        change.applied_run(start, old, &new);
        if kinds.become_whole == 0 {
            // No leaf stops asking the table: all are told what it is to answer first.
            self.frames.store_run(edit.table, first, &new);
            if kinds.changed != 0 {
                self.edit_leaves(edit, slots, start, &new, kinds.changed);
            }
            return;
        }
        // Before a leaf that asks the table, after one that does not. Either order shows a processor
        // the old permission or the new one; this one causes no needless exit.
        let mut before = new;
        for at in 0..N {
            let later = 0_u64.wrapping_sub(u64::from(kinds.become_whole >> at & 1));
            before[at] = old[at] & later | new[at] & !later;
        }
        if before != *old {
            self.frames.store_run(edit.table, first, &before);
        }
        self.edit_leaves(edit, slots, start, &new, kinds.changed);
        for at in bits(kinds.become_whole) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::AccessMap;

    const KINDS: [u64; 6] = [
        SppVector::NONE.bits(),
        SppVector::ALL.bits(),
        SppVector::from_map(AccessMap::from_bits(1)).bits(),
        SppVector::from_map(AccessMap::from_bits(0xffff)).bits(),
        SppVector::from_map(AccessMap::from_bits(0xffff_0000)).bits(),
        SppVector::from_map(AccessMap::from_bits(!(1 << 31))).bits(),
    ];

    fn kind(vector: u64) -> u8 {
        match vector {
            0 => 0,
            bits if bits == SppVector::ALL.bits() => 1,
            _ => 2,
        }
    }

    /// Every pair of vectors at every place of a run, among neighbours that change and that do not.
    #[test]
    fn changes_of_kind_have_the_bit_of_their_place() {
        for (old, new) in KINDS.iter().flat_map(|old| KINDS.map(|new| (*old, new))) {
            let changes = kind(old) != kind(new);
            let whole = changes && kind(new) != 2;
            let one = kind_changes(&[old], &[new]);
            assert_eq!((one.changed, one.become_whole), (changes.into(), whole.into()));
            for place in 0..RUN {
                for (around, others) in [([0, 0], 0), ([1 << 2, 0], !(1 << place))] {
                    let (mut before, mut after) = ([around[0]; RUN], [around[1]; RUN]);
                    (before[place], after[place]) = (old, new);
                    let found = kind_changes(&before, &after);
                    assert_eq!(found.changed, others | u32::from(changes) << place);
                    assert_eq!(found.become_whole, others | u32::from(whole) << place);
                }
            }
        }
    }
}

//! Applying a planned change: nothing here can fail.

use super::plan::{Change, Plan};
use super::{Slots, Tables};
use crate::access::SppVector;
use crate::address::{Gfn, GfnRange};
use crate::frames::{TableFrame, TableFrames};
use crate::invalidate::{Invalidation, RetiredTable};
use crate::level::Level;
use crate::slots::AddressSpace;
use crate::sppt::{Region, Sppt, regions, stored_vector};

/// Binary logarithm of [`RUN`].
const RUN_ORDER: u32 = 5;

/// Most pages that are changed at a time: their vectors fit the first-level cache with room to spare.
const RUN: usize = 1 << RUN_ORDER;

/// What a change has done so far.
#[derive(Default)]
struct Effect {
    /// A page or a leaf lost a right.
    tightened: bool,
    /// A page that was restricted became unrestricted.
    opened: bool,
}

/// Whether a vector permits some sub-pages and not others, so that a leaf consults the SPPT.
const fn is_partial(vector: u64) -> bool {
    (vector != SppVector::NONE.bits()) & (vector != SppVector::ALL.bits())
}

/// Whether all vectors are partial; looks at all of them, which vector units do at once.
fn all_partial(vectors: &[u64]) -> bool {
    vectors.iter().fold(true, |all, vector| all & is_partial(*vector))
}

impl<F: TableFrames> Tables<F> {
    /// Applies a planned change; cannot fail.
    pub(crate) fn apply(
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
        let any = region.pages().any(|gfn| !change.vector(gfn, SppVector::ALL).is_unrestricted());
        if any {
            sppt.link_region(&mut self.frames, &mut plan.sppt, region.start, |frames, table| {
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
        for gfn in region.pages() {
            let new = change.vector(gfn, SppVector::ALL);
            change.applied(gfn, SppVector::ALL, new);
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
    ) -> Effect {
        let leaves = AddressSpace::BOTH.map(|space| self.leaf_table(space, region.start));
        let mut effect = Effect::default();
        for piece in region.pieces() {
            for run in piece.aligned_pieces(RUN_ORDER) {
                self.edit_run(table, leaves, slots, run, change, &mut effect);
            }
        }
        effect
    }

    /// Unlinks the tables of a region without a restricted page, and merges what maps it.
    fn release_region(&mut self, sppt: Sppt, slots: &Slots, start: Gfn) {
        let epoch = self.next_epoch();
        let retired = &mut self.retired;
        let unlinked = sppt.unlink_if_empty(&mut self.frames, start, |frame| {
            retired.push(RetiredTable { frame, epoch, merged_into: None });
        });
        if unlinked {
            for space in AddressSpace::BOTH {
                self.merge(space, slots, start);
            }
        }
    }

    /// Changes a run of pages that have a common L1 table.
    fn edit_run(
        &mut self,
        table: TableFrame,
        leaves: [Option<TableFrame>; 2],
        slots: &Slots,
        run: GfnRange,
        change: &mut impl Change,
        effect: &mut Effect,
    ) {
        let first = Level::L1.index(run.first());
        let pages = usize::try_from(run.pages()).expect("a run is short");
        let (mut old, mut new) = ([0; RUN], [0; RUN]);
        let (old, new) = (&mut old[..pages], &mut new[..pages]);
        self.frames.load_run(table, first, old);
        new.copy_from_slice(old);
        change.vectors(run.first(), new);
        let taken = old.iter().zip(&*new).fold(0, |taken, (old, new)| taken | old & !new);
        effect.tightened |= taken != 0;
        // First the pages whose leaf changes. Any other leaf says "ask the SPPT" before and after.
        let mut leaf_changes = if all_partial(old) && all_partial(new) {
            0
        } else {
            old.iter().zip(&*new).rev().fold(0_u32, |changes, (old, new)| {
                let asks = is_partial(*old) & is_partial(*new);
                changes << 1 | u32::from(old != new && !asks)
            })
        };
        while leaf_changes != 0 {
            let at = leaf_changes.trailing_zeros();
            leaf_changes &= leaf_changes - 1;
            let gfn = Gfn::new(run.first().as_u64() + u64::from(at));
            let new = stored_vector(new[at as usize]);
            effect.opened |= new.is_unrestricted();
            if is_partial(new.bits()) {
                Sppt::store_vector(&mut self.frames, table, gfn, new);
            }
            for (space, leaves) in AddressSpace::BOTH.into_iter().zip(leaves) {
                if let Some(leaves) = leaves {
                    effect.tightened |= self.set_leaf(space, leaves, slots, gfn, new);
                }
            }
        }
        self.frames.store_run(table, first, new);
        change.applied_run(run.first(), old, new);
    }
}

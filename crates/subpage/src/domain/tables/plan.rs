//! Planning a change: everything of it that can fail.

use alloc::vec::Vec;

use super::Tables;
use crate::access::SppVector;
use crate::address::{Gfn, GfnRange};
use crate::frames::{ENTRIES, OutOfFrames, TableFrame, TableFrames};
use crate::level::Level;
use crate::sppt::{Sppt, SpptPlan, regions, stored_vector};

/// A change of permission over some pages.
pub(crate) trait Change {
    /// The new vector of a page whose vector is `old`. Asked while planning and while applying, and
    /// must answer the same both times.
    fn vector(&self, gfn: Gfn, old: SppVector) -> SppVector;

    /// The same for consecutive pages from `first`; the two slices have the same length.
    fn vectors(&self, first: Gfn, old: &[u64], new: &mut [u64]) {
        // The run comes first: no frame beyond its last one is made, which need not exist.
        for ((old, new), gfn) in old.iter().zip(new).zip((first.as_u64()..).map(Gfn::new)) {
            *new = self.vector(gfn, stored_vector(*old)).bits();
        }
    }

    /// The new vector of each of `pages`, which are a whole region and all have the vector `old`, if
    /// it is one and the same and no page has to be [told](Self::applied).
    ///
    /// Asked while planning and while applying, and must answer the same both times.
    fn uniform(&self, pages: GfnRange, old: SppVector) -> Option<SppVector> {
        let _ = (pages, old);
        None
    }

    /// Told once for every page, in ascending order, while its new vector is put in the tables.
    fn applied(&mut self, gfn: Gfn, old: SppVector, new: SppVector) {
        let _ = (gfn, old, new);
    }

    /// The same for consecutive pages from `first`.
    fn applied_run(&mut self, first: Gfn, old: &[u64], new: &[u64]) {
        for ((old, new), gfn) in old.iter().zip(new).zip((first.as_u64()..).map(Gfn::new)) {
            self.applied(gfn, stored_vector(*old), stored_vector(*new));
        }
    }
}

/// Most tables that one region leaves behind: an L1, L2 and L3 table of the SPPT, and two tables merged
/// away in each EPT.
pub(super) const RETIRED_PER_REGION: usize = 7;

/// Frames taken for a change.
pub(crate) struct Plan {
    pub(super) sppt: SpptPlan,
    pub(super) splits: Vec<TableFrame>,
}

impl<F: TableFrames> Tables<F> {
    /// Takes what the change needs; on failure nothing has changed.
    pub(super) fn plan(
        &mut self,
        sppt: Sppt,
        ranges: &[GfnRange],
        change: &impl Change,
    ) -> Result<Plan, OutOfFrames> {
        let spp = SpptPlan::make(
            sppt,
            &mut self.frames,
            ranges,
            &|gfn, old| change.vector(gfn, old),
            &|region, old| change.uniform(region, old),
        )?;
        let mut plan = Plan { sppt: spp, splits: Vec::new() };
        match self.plan_ept(sppt, &mut plan, ranges, change) {
            Ok(()) => Ok(plan),
            Err(error) => {
                self.drop_plan(plan);
                Err(error)
            }
        }
    }

    /// Gives back what a plan did not use.
    pub(crate) fn drop_plan(&mut self, plan: Plan) {
        plan.sppt.release(&mut self.frames);
        for frame in plan.splits {
            self.frames.release(frame);
        }
    }

    fn plan_ept(
        &mut self,
        sppt: Sppt,
        plan: &mut Plan,
        ranges: &[GfnRange],
        change: &impl Change,
    ) -> Result<(), OutOfFrames> {
        self.retired.reserve(RETIRED_PER_REGION * plan.sppt.edited())?;
        if !plan.sppt.links_any() || self.epts.iter().all(Option::is_none) {
            return Ok(());
        }
        let mut giant_split = [None; 2];
        for region in regions(ranges) {
            if sppt.leaf_table(&self.frames, region.start).is_some() {
                continue;
            }
            let uniform = region.is_whole().then(|| change.uniform(region.whole(), SppVector::ALL));
            let stays = match uniform.flatten() {
                Some(vector) => vector.is_unrestricted(),
                None => {
                    region.pages().all(|gfn| change.vector(gfn, SppVector::ALL).is_unrestricted())
                }
            };
            if stays {
                continue;
            }
            for (ept, giant) in self.epts.into_iter().zip(&mut giant_split) {
                let Some(ept) = ept else { continue };
                let place = ept.find_down_to(&self.frames, region.start, Level::L2);
                if place.leaf_size().is_none() {
                    continue;
                }
                let number = Level::L3.region_start(region.start);
                if place.level == Level::L3 && giant.replace(number) != Some(number) {
                    self.take_split_table(&mut plan.splits)?;
                }
                self.take_split_table(&mut plan.splits)?;
            }
        }
        Ok(())
    }

    /// Takes an unlinked table with room for 512 leaves.
    pub(in crate::domain) fn take_split_table(
        &mut self,
        splits: &mut Vec<TableFrame>,
    ) -> Result<(), OutOfFrames> {
        splits.try_reserve(1).map_err(|_| OutOfFrames)?;
        let frame = self.frames.allocate()?;
        splits.push(frame);
        self.frames.make_room(frame, ENTRIES)
    }
}

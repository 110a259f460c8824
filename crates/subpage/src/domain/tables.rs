//! The tables of a domain and the one mechanism by which permissions change.
//!
//! Every change of permission (an access map set, a rule added or removed, tracking armed, state
//! imported) is a function from a page's old vector to its new one over some ranges. It is planned,
//! which may fail, and then applied, which may not (design decision 5):
//!
//! 1. [`Tables::plan`] takes every frame that new L1 tables and splits of large pages need;
//! 2. [`Tables::apply`] goes region by region. A new L1 table is complete before it is linked; a
//!    leaf is computed once and stored once; where the new leaf consults the SPPT the vector is
//!    stored first, where it does not the leaf comes first. Whatever order a processor sees, it
//!    sees the old permission or the new one, never more than both.

use alloc::vec::Vec;

use crate::access::SppVector;
use crate::address::{Gfn, GfnRange, PhysicalWidth};
use crate::ept::{self, Ept, EptEntry, LeafRights, Meaning, Place, WriteGate, leaf_rights};
use crate::frames::{ENTRIES, EntryIndex, OutOfFrames, TableFrame, TableFrames};
use crate::invalidate::{Completed, Epoch, Invalidation, Retired, RetiredTable};
use crate::level::Level;
use crate::slots::{AddressSpace, SlotSet};
use crate::sppt::{Region, Sppt, SpptPlan, regions, stored_vector};

/// A change of permission over some pages.
pub(crate) trait Change {
    /// The new vector of a page whose vector is `old`. Asked while planning and while applying, and
    /// must answer the same both times.
    fn vector(&self, gfn: Gfn, old: SppVector) -> SppVector;

    /// The same for consecutive pages from `first`: replaces old vectors by new ones.
    fn vectors(&self, first: Gfn, vectors: &mut [u64]) {
        // The run comes first: no frame beyond its last one is made, which need not exist.
        for (vector, gfn) in vectors.iter_mut().zip((first.as_u64()..).map(Gfn::new)) {
            *vector = self.vector(gfn, stored_vector(*vector)).bits();
        }
    }

    /// Told once for every page, in ascending order, when its new vector is in the tables.
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

/// The slots of both address spaces, by [`AddressSpace`].
pub(crate) type Slots = [SlotSet; 2];

/// Everything that lives in table frames.
pub(crate) struct Tables<F> {
    pub(crate) frames: F,
    pub(crate) width: PhysicalWidth,
    /// The SPPT, once sub-page permissions are enabled: "no root" is a state of its own (D1).
    pub(crate) sppt: Option<Sppt>,
    /// The EPT of each address space, from its first mapping on.
    pub(crate) epts: [Option<Ept>; 2],
    retired: Retired,
    epoch: u64,
}

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

/// Frames taken for a change.
pub(crate) struct Plan {
    sppt: SpptPlan,
    splits: Vec<TableFrame>,
}

impl<F: TableFrames> Tables<F> {
    pub(crate) fn new(frames: F, width: PhysicalWidth) -> Self {
        Self { frames, width, sppt: None, epts: [None; 2], retired: Retired::default(), epoch: 0 }
    }

    /// A page's vector; unrestricted while sub-page permissions are not enabled.
    pub(crate) fn vector(&self, gfn: Gfn) -> SppVector {
        self.sppt.map_or(SppVector::ALL, |sppt| sppt.vector(&self.frames, gfn))
    }

    /// Whether no page of the region that one entry of `level` stands for is restricted.
    pub(crate) fn is_unrestricted(&self, level: Level, gfn: Gfn) -> bool {
        self.sppt.is_none_or(|sppt| sppt.is_unrestricted(&self.frames, level, gfn))
    }

    /// How many frames wait for an invalidation.
    pub(crate) fn retired(&self) -> usize {
        self.retired.len()
    }

    // Planning.

    /// Takes what the change needs; on failure nothing has changed.
    pub(crate) fn plan(
        &mut self,
        sppt: Sppt,
        ranges: &[GfnRange],
        change: &impl Change,
    ) -> Result<Plan, OutOfFrames> {
        let spp =
            SpptPlan::make(sppt, &mut self.frames, ranges, &|gfn, old| change.vector(gfn, old))?;
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
        // An L1, L2 and L3 table of the SPPT, and two tables merged away in each EPT.
        self.retired.reserve(7 * plan.sppt.edited())?;
        if !plan.sppt.links_any() {
            return Ok(());
        }
        let mut giant_split = [None; 2];
        for region in regions(ranges) {
            if sppt.leaf_table(&self.frames, region.start).is_some() {
                continue;
            }
            if region.pages().all(|gfn| change.vector(gfn, SppVector::ALL).is_unrestricted()) {
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
    pub(super) fn take_split_table(
        &mut self,
        splits: &mut Vec<TableFrame>,
    ) -> Result<(), OutOfFrames> {
        splits.try_reserve(1).map_err(|_| OutOfFrames)?;
        let frame = self.frames.allocate()?;
        splits.push(frame);
        self.frames.make_room(frame, ENTRIES)
    }

    // Applying.

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
        let mut stored = 0;
        while leaf_changes != 0 {
            let at = leaf_changes.trailing_zeros();
            leaf_changes &= leaf_changes - 1;
            let gfn = Gfn::new(run.first().as_u64() + u64::from(at));
            let new = stored_vector(new[at as usize]);
            effect.opened |= new.is_unrestricted();
            if is_partial(new.bits()) {
                Sppt::store_vector(&mut self.frames, table, gfn, new);
                stored += 1;
            }
            for (space, leaves) in AddressSpace::BOTH.into_iter().zip(leaves) {
                if let Some(leaves) = leaves {
                    effect.tightened |= self.set_leaf(space, leaves, slots, gfn, new);
                }
            }
        }
        if stored < pages {
            self.frames.store_run(table, first, new);
        }
        change.applied_run(run.first(), old, new);
    }

    // Leaves.

    /// The EPT table that holds the 4 KiB leaves of a region, if the region is mapped by such.
    pub(super) fn leaf_table(&self, space: AddressSpace, gfn: Gfn) -> Option<TableFrame> {
        let place = self.epts[space.index()]?.find_down_to(&self.frames, gfn, Level::L2);
        match place.entry.meaning(place.level) {
            Meaning::Table(table) if place.level == Level::L2 => Some(table),
            _ => None,
        }
    }

    /// What the host and the slot allow for a page mapped by `entry`.
    pub(super) fn gate(space: AddressSpace, slots: &Slots, gfn: Gfn, entry: EptEntry) -> WriteGate {
        let slot = slots[space.index()].find(gfn);
        WriteGate {
            host_writable: entry.host_writable(),
            slot_read_only: slot.is_none_or(|slot| slot.read_only),
            dirty_armed: slot.is_some_and(|slot| slot.dirty_armed(gfn)),
        }
    }

    /// Gives a page's leaf, if there is one, the rights that follow from `vector`.
    pub(super) fn set_leaf(
        &mut self,
        space: AddressSpace,
        leaves: TableFrame,
        slots: &Slots,
        gfn: Gfn,
        vector: SppVector,
    ) -> bool {
        let index = Level::L1.index(gfn);
        let entry = EptEntry::from(self.frames.load(leaves, index));
        if !entry.is_present() {
            return false;
        }
        let rights = leaf_rights(Self::gate(space, slots, gfn, entry), vector);
        let place = Place { level: Level::L1, table: leaves, index, entry };
        ept::set_rights(&mut self.frames, place, rights)
    }

    /// Recomputes a page's leaf from the tables as they are.
    pub(super) fn refresh_leaf(
        &mut self,
        space: AddressSpace,
        leaves: TableFrame,
        slots: &Slots,
        gfn: Gfn,
    ) -> bool {
        let vector = self.vector(gfn);
        self.set_leaf(space, leaves, slots, gfn, vector)
    }

    /// Rights of a leaf of any size that starts at `gfn`.
    ///
    /// A large leaf has no restricted page, and in a logging slot it is always armed: the first
    /// write splits it, so that one page becomes dirty and not 512.
    pub(super) fn rights_at(
        &self,
        space: AddressSpace,
        slots: &Slots,
        level: Level,
        gfn: Gfn,
        entry: EptEntry,
    ) -> LeafRights {
        let gate = Self::gate(space, slots, gfn, entry);
        if level == Level::L1 {
            return leaf_rights(gate, self.vector(gfn));
        }
        let logging = slots[space.index()].find(gfn).is_some_and(|slot| slot.dirty.is_some());
        leaf_rights(WriteGate { dirty_armed: logging, ..gate }, SppVector::ALL)
    }

    // Shape.

    /// Splits whatever large leaf maps `gfn` until 4 KiB leaves do; takes tables from `splits`.
    pub(super) fn split_to_pages(
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
    pub(super) fn split_once(
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
    pub(super) fn merge(&mut self, space: AddressSpace, slots: &Slots, gfn: Gfn) {
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

    // Invalidation.

    pub(super) const fn next_epoch(&self) -> Epoch {
        Epoch(self.epoch + 1)
    }

    pub(super) fn retire(&mut self, frame: TableFrame) {
        let epoch = self.next_epoch();
        self.retired.push(RetiredTable { frame, epoch, merged_into: None });
    }

    pub(super) fn reserve_retired(&mut self, count: usize) -> Result<(), OutOfFrames> {
        self.retired.reserve(count)
    }

    /// The token of the change that has just been applied.
    pub(super) fn token(&mut self, required: bool) -> Invalidation {
        if !required {
            return Invalidation::none();
        }
        self.epoch += 1;
        Invalidation { epoch: Epoch(self.epoch), required: true }
    }

    /// Frees the tables that no processor can reach any more.
    pub(crate) fn finish(&mut self, done: &Completed) {
        while let Some(table) = self.retired.take_until(done.epoch) {
            if let Some((root, level, start)) = table.merged_into {
                self.keep_late_flags(table.frame, root, level, start);
            }
            self.frames.release(table.frame);
        }
    }

    /// Carries accessed and dirty flags that a processor set in a merged-away table, between the
    /// merge and its invalidation, to the leaves that map the same pages now.
    fn keep_late_flags(&mut self, table: TableFrame, root: TableFrame, level: Level, start: Gfn) {
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

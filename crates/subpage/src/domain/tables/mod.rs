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

mod apply;
mod mapping;
mod plan;
mod shape;

pub(crate) use plan::Change;

use crate::access::SppVector;
use crate::address::{Gfn, PhysicalWidth};
use crate::ept::{self, Ept, EptEntry, LeafRights, Meaning, Place, WriteGate, leaf_rights};
use crate::frames::{EntryIndex, OutOfFrames, TableFrame, TableFrames};
use crate::invalidate::{Completed, Epoch, Invalidation, Retired, RetiredTable};
use crate::level::Level;
use crate::slots::{AddressSpace, Slot, SlotSet};
use crate::sppt::Sppt;

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
    /// Where the table that was last looked through for a restricted page had one.
    witness: EntryIndex,
}

impl<F: TableFrames> Tables<F> {
    pub(crate) fn new(frames: F, width: PhysicalWidth) -> Self {
        Self {
            frames,
            width,
            sppt: None,
            epts: [None; 2],
            retired: Retired::default(),
            epoch: 0,
            witness: EntryIndex::truncate(0),
        }
    }

    /// A page's vector; unrestricted while sub-page permissions are not enabled.
    #[inline]
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

    // Leaves.

    /// The EPT table that holds the 4 KiB leaves of a region, if the region is mapped by such.
    pub(in crate::domain) fn leaf_table(
        &self,
        space: AddressSpace,
        gfn: Gfn,
    ) -> Option<TableFrame> {
        let place = self.epts[space.index()]?.find_down_to(&self.frames, gfn, Level::L2);
        // Above L2 the walk ends at a leaf or where nothing is, never at a table.
        match place.entry.meaning(place.level) {
            Meaning::Table(table) => Some(table),
            _ => None,
        }
    }

    /// What the host and the slot of a page allow for it where it is mapped by `entry`.
    pub(in crate::domain) fn gate(slot: Option<&Slot>, gfn: Gfn, entry: EptEntry) -> WriteGate {
        WriteGate {
            host_writable: entry.host_writable(),
            slot_read_only: slot.is_none_or(|slot| slot.read_only),
            dirty_armed: slot.is_some_and(|slot| slot.dirty_armed(gfn)),
        }
    }

    /// Gives a page's leaf, if there is one, the rights that follow from `vector` and its slot.
    pub(in crate::domain) fn set_leaf(
        &mut self,
        leaves: TableFrame,
        slot: Option<&Slot>,
        gfn: Gfn,
        vector: SppVector,
    ) -> bool {
        let index = Level::L1.index(gfn);
        let entry = EptEntry::from(self.frames.load(leaves, index));
        if !entry.is_present() {
            return false;
        }
        let rights = leaf_rights(Self::gate(slot, gfn, entry), vector);
        let place = Place { level: Level::L1, table: leaves, index, entry };
        ept::set_rights(&mut self.frames, place, rights)
    }

    /// Recomputes a page's leaf from the tables as they are.
    pub(in crate::domain) fn refresh_leaf(
        &mut self,
        space: AddressSpace,
        leaves: TableFrame,
        slots: &Slots,
        gfn: Gfn,
    ) -> bool {
        let vector = self.vector(gfn);
        self.set_leaf(leaves, slots[space.index()].find(gfn), gfn, vector)
    }

    /// Rights of a leaf of any size that starts at `gfn`.
    ///
    /// A large leaf has no restricted page, and in a logging slot it is always armed: the first
    /// write splits it, so that one page becomes dirty and not 512.
    pub(in crate::domain) fn rights_at(
        &self,
        space: AddressSpace,
        slots: &Slots,
        level: Level,
        gfn: Gfn,
        entry: EptEntry,
    ) -> LeafRights {
        let slot = slots[space.index()].find(gfn);
        let gate = Self::gate(slot, gfn, entry);
        if level == Level::L1 {
            return leaf_rights(gate, self.vector(gfn));
        }
        let logging = slot.is_some_and(|slot| slot.dirty.is_some());
        leaf_rights(WriteGate { dirty_armed: logging, ..gate }, SppVector::ALL)
    }

    // Invalidation.

    pub(in crate::domain) const fn next_epoch(&self) -> Epoch {
        Epoch(self.epoch + 1)
    }

    pub(in crate::domain) fn retire(&mut self, frame: TableFrame) {
        let epoch = self.next_epoch();
        self.retired.push(RetiredTable { frame, epoch, merged_into: None });
    }

    pub(in crate::domain) fn reserve_retired(&mut self, count: usize) -> Result<(), OutOfFrames> {
        self.retired.reserve(count)
    }

    /// The token of the change that has just been applied.
    pub(in crate::domain) fn token(&mut self, required: bool) -> Invalidation {
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
}

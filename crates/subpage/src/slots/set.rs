//! The slots of one address space, sorted by address.

use alloc::vec::Vec;

use thiserror::Error;

use super::DirtyBitmap;
use crate::address::{Gfn, GfnRange};
use crate::frames::OutOfFrames;

/// Which of the two guest-physical address spaces an access or a slot belongs to.
///
/// As in KVM, system-management mode may see other memory at the same addresses. A vector binds a
/// guest-physical address in both: entering system-management mode must not open what is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddressSpace {
    /// Ordinary execution (KVM's address space 0).
    Normal,
    /// System-management mode (KVM's address space 1).
    Smm,
}

impl AddressSpace {
    /// Both, in KVM's order.
    pub const BOTH: [Self; 2] = [Self::Normal, Self::Smm];

    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

/// Number of a slot, unique within its address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u16);

/// What a slot allows and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SlotFlags {
    /// The guest may not write the memory at all; writes go to the VMM.
    pub read_only: bool,
    /// The first write of each page since the last harvest is logged.
    pub log_dirty: bool,
}

/// Why a slot cannot be added or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SlotError {
    /// The number is taken in this address space.
    #[error("slot {0:?} exists already")]
    Exists(SlotId),
    /// There is no such slot in this address space.
    #[error("there is no slot {0:?}")]
    Missing(SlotId),
    /// Some of the frames belong to another slot of this address space.
    #[error("the frames overlap slot {0:?}")]
    Overlaps(SlotId),
    /// The slot does not log dirty pages.
    #[error("slot {0:?} does not log dirty pages")]
    NotLogging(SlotId),
    /// The slot names memory that has another name, which the call cannot do with.
    #[error("slot {0:?} shares its memory with frames of the call or of another slot")]
    Alias(SlotId),
}

/// A run of guest frames that exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    pub(crate) id: SlotId,
    pub(crate) pages: GfnRange,
    pub(crate) read_only: bool,
    pub(crate) dirty: Option<DirtyBitmap>,
}

impl Slot {
    /// The slot's number.
    pub const fn id(&self) -> SlotId {
        self.id
    }

    /// The slot's frames.
    pub const fn pages(&self) -> GfnRange {
        self.pages
    }

    /// What it allows and logs.
    pub const fn flags(&self) -> SlotFlags {
        SlotFlags { read_only: self.read_only, log_dirty: self.dirty.is_some() }
    }

    /// Whether the next write of `gfn` has to trap for the dirty log.
    pub(crate) fn dirty_armed(&self, gfn: Gfn) -> bool {
        self.dirty.as_ref().is_some_and(|dirty| !dirty.is_dirty(gfn))
    }
}

/// The slots of one address space, ascending and disjoint.
#[derive(Debug, Default)]
pub struct SlotSet {
    slots: Vec<Slot>,
}

impl SlotSet {
    /// The slot that holds a frame.
    #[inline]
    pub fn find(&self, gfn: Gfn) -> Option<&Slot> {
        self.position(gfn).map(|at| &self.slots[at])
    }

    pub(crate) fn find_mut(&mut self, gfn: Gfn) -> Option<&mut Slot> {
        self.position(gfn).map(|at| &mut self.slots[at])
    }

    #[inline]
    fn position(&self, gfn: Gfn) -> Option<usize> {
        let after = self.slots.partition_point(|slot| slot.pages.first() <= gfn);
        let at = after.checked_sub(1)?;
        self.slots[at].pages.contains(gfn).then_some(at)
    }

    /// The slot with a number.
    pub fn get(&self, id: SlotId) -> Result<&Slot, SlotError> {
        self.slots.iter().find(|slot| slot.id == id).ok_or(SlotError::Missing(id))
    }

    pub(crate) fn get_mut(&mut self, id: SlotId) -> Result<&mut Slot, SlotError> {
        self.slots.iter_mut().find(|slot| slot.id == id).ok_or(SlotError::Missing(id))
    }

    /// All slots by ascending address.
    pub fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter()
    }

    /// The first frame of `range` that no slot holds.
    pub fn first_gap(&self, range: GfnRange) -> Option<Gfn> {
        let mut at = range.first();
        loop {
            let Some(slot) = self.find(at) else { return Some(at) };
            if slot.pages.last() >= range.last() {
                return None;
            }
            at = slot.pages.last().checked_add(1).expect("a frame below another has a successor");
        }
    }

    /// The slot that a new or moved slot would collide with.
    pub(crate) fn overlap(&self, range: GfnRange, but: Option<SlotId>) -> Result<(), SlotError> {
        let collides =
            |slot: &&Slot| slot.pages.intersection(range).is_some() && Some(slot.id) != but;
        match self.slots.iter().find(collides) {
            Some(slot) => Err(SlotError::Overlaps(slot.id)),
            None => Ok(()),
        }
    }

    pub(crate) fn reserve_one(&mut self) -> Result<(), OutOfFrames> {
        self.slots.try_reserve(1).map_err(|_| OutOfFrames)
    }

    /// Adds a slot for which room was reserved and which collides with none.
    pub(crate) fn insert(&mut self, slot: Slot) {
        assert!(self.slots.len() < self.slots.capacity(), "a slot is added without room");
        let at = self.slots.partition_point(|other| other.pages.first() < slot.pages.first());
        self.slots.insert(at, slot);
    }

    pub(crate) fn take(&mut self, id: SlotId) -> Option<Slot> {
        let at = self.slots.iter().position(|slot| slot.id == id)?;
        Some(self.slots.remove(at))
    }
}

//! A direct-mapped array of translations, so that a replay finds its page in one look.

use subpage::access::AccessMap;
use subpage::address::{Gfn, Hpa};

use super::Mapping;
use crate::decision::{Demand, PageRights};
use crate::rights::Rights;
use subpage::level::PageSize;

/// Slots, a power of two; 16 bytes each.
const SLOTS: usize = 4096;

/// A translation in 16 bytes.
///
/// `bits` holds the page's host-physical address in bits 51:12 and the flags below bit 12.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    /// Frame number above the slot's index, plus one; 0 if the slot is empty.
    tag: u32,
    /// The page's vector, meaningful with [`VECTOR`].
    vector: AccessMap,
    bits: u64,
}

const READ: u64 = 1;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
/// Bit 61 of a 4 KiB leaf.
const SUB_PAGE: u64 = 1 << 3;
/// The vector is known.
const VECTOR: u64 = 1 << 4;
/// The dirty flag is known to be set, or there is none.
const DIRTY: u64 = 1 << 5;
/// `WRITE` and `DIRTY`: a write needs nothing more.
const WRITE_NOW: u64 = 1 << 6;
/// `SUB_PAGE`, `VECTOR`, `DIRTY`, `READ` and not `WRITE`: the vector decides a write at once.
const VECTOR_NOW: u64 = 1 << 7;
const USER_EXECUTE: u64 = 1 << 10;

const FLAGS: u64 = 0xFFF;

const EMPTY: Slot = Slot { tag: 0, vector: AccessMap::NONE, bits: 0 };

impl Slot {
    fn pack(gfn: Gfn, mapping: &Mapping) -> Self {
        let rights = mapping.page.rights;
        let flag = |set: bool, flag: u64| if set { flag } else { 0 };
        let write_now = rights.write() && mapping.dirty;
        // In larger leaves bit 61 is ignored.
        let sub_page = mapping.page.sub_page_write && mapping.page.size == PageSize::Size4K;
        let vector_now = sub_page
            && mapping.vector.is_some()
            && mapping.dirty
            && rights.read()
            && !rights.write();
        let flags = flag(rights.read(), READ)
            | flag(rights.write(), WRITE)
            | flag(rights.execute(), EXECUTE)
            | flag(rights.user_execute(), USER_EXECUTE)
            | flag(sub_page, SUB_PAGE)
            | flag(mapping.vector.is_some(), VECTOR)
            | flag(mapping.dirty, DIRTY)
            | flag(write_now, WRITE_NOW)
            | flag(vector_now, VECTOR_NOW);
        Self {
            tag: tag(gfn),
            vector: mapping.vector.unwrap_or(AccessMap::NONE),
            bits: mapping.frame.as_u64() | flags,
        }
    }

    /// The translation as it was put in; a page of any size comes back as its one 4 KiB frame.
    fn unpack(self) -> Mapping {
        let has = |flag: u64| self.bits & flag != 0;
        Mapping {
            frame: self.frame(),
            page: PageRights {
                // READ, WRITE, EXECUTE and USER_EXECUTE stand where an EPT entry has them.
                rights: Rights::of_entry(self.bits),
                size: PageSize::Size4K,
                sub_page_write: has(SUB_PAGE),
            },
            dirty: has(DIRTY),
            vector: has(VECTOR).then_some(self.vector),
        }
    }

    #[inline]
    pub(crate) fn frame(self) -> Hpa {
        Hpa::new(self.bits & ((1 << 52) - 1) & !FLAGS)
    }

    /// Whether the slot alone shows that the access may continue and sets no flag.
    #[inline]
    pub(crate) const fn allows(self, demand: Demand) -> bool {
        let flag = match demand {
            Demand::Read => READ,
            Demand::Write => WRITE_NOW,
            Demand::Execute => EXECUTE,
            Demand::UserExecute => USER_EXECUTE,
        };
        self.bits & flag != 0
    }

    /// The vector, if an eligible write is decided by it and sets no flag.
    #[inline]
    pub(crate) fn deciding_vector(self) -> Option<AccessMap> {
        (self.bits & VECTOR_NOW != 0).then_some(self.vector)
    }
}

#[allow(clippy::cast_possible_truncation)]
const fn tag(gfn: Gfn) -> u32 {
    // 36 bits of frame number less 12 of index: 24 bits.
    (gfn.as_u64() / SLOTS as u64) as u32 + 1
}

#[allow(clippy::cast_possible_truncation)]
const fn index(gfn: Gfn) -> usize {
    gfn.as_u64() as usize % SLOTS
}

/// The array.
#[derive(Debug, Clone)]
pub(crate) struct Front {
    slots: Box<[Slot; SLOTS]>,
    /// Whether a slot may be in use, so that clearing an empty array costs nothing.
    used: bool,
}

impl Front {
    pub(crate) fn new() -> Self {
        let slots = vec![EMPTY; SLOTS].into_boxed_slice().try_into().expect("SLOTS slots");
        Self { slots, used: false }
    }

    #[inline]
    pub(crate) fn slot(&self, gfn: Gfn) -> Option<Slot> {
        let slot = self.slots[index(gfn)];
        (slot.tag == tag(gfn)).then_some(slot)
    }

    pub(crate) fn get(&self, gfn: Gfn) -> Option<Mapping> {
        self.slot(gfn).map(Slot::unpack)
    }

    pub(crate) fn insert(&mut self, gfn: Gfn, mapping: &Mapping) {
        self.slots[index(gfn)] = Slot::pack(gfn, mapping);
        self.used = true;
    }

    pub(crate) fn remove(&mut self, gfn: Gfn) {
        if self.slot(gfn).is_some() {
            self.slots[index(gfn)] = EMPTY;
        }
    }

    pub(crate) fn clear(&mut self) {
        if self.used {
            self.slots.fill(EMPTY);
            self.used = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every combination of rights, bit 61, dirty and vector: what comes out is what went in, and
    /// the two shortcuts are exactly what they stand for.
    #[test]
    fn slots_lose_nothing() {
        let gfn = Gfn::MAX;
        for case in 0..128_u64 {
            let bit = |at: u32| case >> at & 1 == 1;
            let mapping = Mapping {
                frame: Hpa::new(0x000F_EDCB_A987_6000),
                page: PageRights {
                    rights: Rights::of_entry(case & 7 | (case >> 3 & 1) << 10),
                    size: PageSize::Size4K,
                    sub_page_write: bit(4),
                },
                dirty: bit(5),
                vector: bit(6).then_some(AccessMap::from_bits(0x8000_0001)),
            };
            let mut front = Front::new();
            front.insert(gfn, &mapping);
            assert_eq!(front.get(gfn), Some(mapping));
            let slot = front.slot(gfn).expect("inserted");
            assert_eq!(slot.allows(Demand::Read), bit(0));
            assert_eq!(slot.allows(Demand::Write), bit(1) && bit(5));
            assert_eq!(slot.allows(Demand::Execute), bit(2));
            assert_eq!(slot.allows(Demand::UserExecute), bit(3));
            let decides = bit(0) && !bit(1) && bit(4) && bit(5) && bit(6);
            assert_eq!(slot.deciding_vector().is_some(), decides);
            let neighbour = Gfn::new(gfn.as_u64() - SLOTS as u64);
            assert_eq!(front.get(neighbour), None);
            front.remove(neighbour);
            assert!(front.get(gfn).is_some());
            front.remove(gfn);
            assert_eq!(front.get(gfn), None);
        }
    }
}

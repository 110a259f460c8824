//! Enable, get, set, and what the next write costs.

use std::cell::Cell;
use std::ops::Range;

use super::slots::{ALL, MemSlot, MemSlots};
use super::tables::{DenseTables, VALID};
use crate::guest::FlushRequests;

/// Bits of an EPT leaf.
const READ: u64 = 1;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
/// Bit 61: the SPPT judges writes.
const SUB_PAGE_WRITE: u64 = 1 << 61;

/// Pages in a region that one L2 entry stands for.
const REGION: u64 = 512;

/// A guest under the algorithm of the series.
pub(crate) struct Dense {
    slots: MemSlots,
    ept: DenseTables,
    sppt: DenseTables,
    processor: FlushRequests,
}

/// A frame of a call belongs to no slot, or permissions are not enabled.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoMap;

impl Dense {
    /// A guest with these slots; permissions are not enabled, nothing is mapped.
    pub(crate) fn new(frames: &[Range<u64>]) -> Self {
        Self {
            slots: MemSlots::new(frames),
            ept: DenseTables::new(READ | WRITE | EXECUTE),
            sppt: DenseTables::new(0),
            processor: FlushRequests::default(),
        }
    }

    /// Allocates one map for every page of the guest.
    pub(crate) fn enable(&mut self) {
        self.slots.iter_mut().for_each(MemSlot::enable);
    }

    /// Maps a page by a writable 4 KiB leaf to the same frame of the host.
    pub(crate) fn map_page(&mut self, gfn: u64) {
        let leaf = self.ept.walk_or_create(gfn);
        self.ept.store(leaf, gfn << 12 | READ | WRITE | EXECUTE);
    }

    /// Reads the maps of consecutive pages.
    pub(crate) fn get_access(&self, first: u64, maps: &mut [u32]) -> Result<(), NoMap> {
        for (gfn, map) in (first..).zip(maps) {
            let slot = self.slots.of_gfn(gfn).ok_or(NoMap)?;
            *map = slot.map(gfn).ok_or(NoMap)?.get();
        }
        Ok(())
    }

    /// Sets the maps of consecutive pages.
    pub(crate) fn set_access(&mut self, first: u64, maps: &[u32]) -> Result<(), NoMap> {
        let end = first + maps.len() as u64;
        for region in first / REGION..end.div_ceil(REGION) {
            if let Some(entry) = self.sppt.walk(region * REGION, 2) {
                self.sppt.store(entry, self.sppt.load(entry) & !VALID);
            }
        }
        self.processor.request_flush();
        for (gfn, map) in (first..).zip(maps) {
            let slot = self.slots.of_gfn(gfn).ok_or(NoMap)?;
            slot.map(gfn).ok_or(NoMap)?.set(*map);
        }
        for (gfn, map) in (first..).zip(maps) {
            let Some(leaf) = self.ept.walk(gfn, 1) else { continue };
            let entry = self.ept.load(leaf) & !(WRITE | SUB_PAGE_WRITE);
            let right = if *map == ALL { WRITE } else { SUB_PAGE_WRITE };
            self.ept.store(leaf, entry | right);
        }
        self.processor.request_flush();
        Ok(())
    }

    /// Whether a write to a sub-page (0..32) of a mapped frame takes effect, decided by the tables
    /// as the processor does it. An SPP miss is handled and the write tried again.
    pub(crate) fn write(&mut self, gfn: u64, sub_page: u32) -> bool {
        let Some(leaf) = self.ept.walk(gfn, 1) else { return false };
        let entry = self.ept.load(leaf);
        if entry & WRITE != 0 || entry & SUB_PAGE_WRITE == 0 {
            return entry & WRITE != 0;
        }
        loop {
            if let Some(vector) = self.sppt.walk(gfn, 1) {
                return self.sppt.load(vector) >> (2 * sub_page) & 1 == 1;
            }
            self.handle_miss(gfn);
        }
    }

    /// Builds the vectors of all restricted pages of the region.
    #[cold]
    fn handle_miss(&mut self, gfn: u64) {
        let start = gfn / REGION * REGION;
        for gfn in start..start + REGION {
            let map = self.slots.of_gfn(gfn).and_then(|slot| slot.map(gfn)).map_or(ALL, Cell::get);
            if map != ALL {
                let leaf = self.sppt.walk_or_create(gfn);
                self.sppt.store(leaf, spread(map));
                self.processor.request_flush();
            }
        }
    }
}

/// Moves bit i of a map to bit 2i.
const fn spread(map: u32) -> u64 {
    let mut bits = map as u64;
    bits = (bits | bits << 16) & 0x0000_FFFF_0000_FFFF;
    bits = (bits | bits << 8) & 0x00FF_00FF_00FF_00FF;
    bits = (bits | bits << 4) & 0x0F0F_0F0F_0F0F_0F0F;
    bits = (bits | bits << 2) & 0x3333_3333_3333_3333;
    (bits | bits << 1) & 0x5555_5555_5555_5555
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> Dense {
        let mut guest = Dense::new(&[0..600, 1024..2048]);
        guest.enable();
        for gfn in (0..600).chain(1024..2048) {
            guest.map_page(gfn);
        }
        guest
    }

    #[test]
    fn writes_follow_the_maps() {
        let mut guest = guest();
        assert!(guest.write(5, 0));
        guest.set_access(5, &[0b10, 0, ALL]).expect("frames of a slot");
        for (gfn, sub_page, permitted) in
            [(5, 0, false), (5, 1, true), (6, 31, false), (7, 9, true), (8, 0, true)]
        {
            assert_eq!(guest.write(gfn, sub_page), permitted, "{gfn}.{sub_page}");
        }
        guest.set_access(5, &[ALL, 1]).expect("frames of a slot");
        assert!(guest.write(5, 0));
        assert!(guest.write(6, 0));
        assert!(!guest.write(6, 1));
        let mut maps = [0; 4];
        guest.get_access(4, &mut maps).expect("frames of a slot");
        assert_eq!(maps, [ALL, ALL, 1, ALL]);
    }

    /// D43, D45: what makes the series slow is what is measured. One changed page rebuilds every
    /// restricted page of its region at the next write, with a flush for each.
    #[test]
    fn one_changed_page_rebuilds_its_region() {
        let mut guest = guest();
        guest.set_access(1024, &[0; 512]).expect("frames of a slot");
        let before = guest.processor.requests();
        assert!(!guest.write(1024, 0));
        assert_eq!(guest.processor.requests() - before, 512);
        assert!(!guest.write(1025, 0));
        assert_eq!(guest.processor.requests() - before, 512);
        guest.set_access(1030, &[1]).expect("frames of a slot");
        assert!(guest.write(1030, 0));
        assert_eq!(guest.processor.requests() - before, 512 + 2 + 512);
    }

    #[test]
    fn frames_without_a_map_are_refused() {
        let mut guest = guest();
        assert_eq!(guest.get_access(599, &mut [0; 2]), Err(NoMap));
        assert_eq!(guest.set_access(700, &[0]), Err(NoMap));
        assert_eq!(Dense::new(&[0..9, 10..19]).get_access(0, &mut [0]), Err(NoMap));
    }
}

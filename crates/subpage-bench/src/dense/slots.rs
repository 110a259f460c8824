//! Memory slots with a dense array of access maps each.

use std::cell::Cell;
use std::ops::Range;

/// The map of an unrestricted page.
pub(super) const ALL: u32 = u32::MAX;

/// A memory slot.
pub(super) struct MemSlot {
    frames: Range<u64>,
    /// One map a page; empty until permissions are enabled.
    maps: Box<[Cell<u32>]>,
}

impl MemSlot {
    /// The map of a frame of the slot.
    pub(super) fn map(&self, gfn: u64) -> Option<&Cell<u32>> {
        self.maps.get(usize::try_from(gfn - self.frames.start).ok()?)
    }

    /// Allocates the array.
    pub(super) fn enable(&mut self) {
        let pages = usize::try_from(self.frames.end - self.frames.start);
        let pages = pages.expect("a slot's array fits the address space");
        self.maps = vec![Cell::new(ALL); pages].into_boxed_slice();
    }
}

/// The slots of a guest, highest address first, as KVM keeps them.
pub(super) struct MemSlots {
    slots: Vec<MemSlot>,
    last_used: Cell<usize>,
}

impl MemSlots {
    pub(super) fn new(frames: &[Range<u64>]) -> Self {
        let mut slots: Vec<MemSlot> = frames
            .iter()
            .map(|frames| MemSlot { frames: frames.clone(), maps: Box::default() })
            .collect();
        slots.sort_unstable_by_key(|slot| std::cmp::Reverse(slot.frames.start));
        Self { slots, last_used: Cell::new(0) }
    }

    /// The slot that holds a frame: the one used last, or by binary search.
    ///
    /// Never inlined: in KVM the function is exported and called for every page.
    #[inline(never)]
    pub(super) fn of_gfn(&self, gfn: u64) -> Option<&MemSlot> {
        if let Some(slot) = self.slots.get(self.last_used.get())
            && slot.frames.contains(&gfn)
        {
            return Some(slot);
        }
        let at = self.slots.partition_point(|slot| slot.frames.start > gfn);
        let slot = self.slots.get(at).filter(|slot| slot.frames.contains(&gfn))?;
        self.last_used.set(at);
        Some(slot)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut MemSlot> {
        self.slots.iter_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_found_whatever_was_used_last() {
        let slots = MemSlots::new(&[0..10, 20..30, 30..31]);
        for _ in 0..2 {
            for (gfn, start) in
                [(30, Some(30)), (9, Some(0)), (10, None), (29, Some(20)), (31, None), (0, Some(0))]
            {
                assert_eq!(slots.of_gfn(gfn).map(|slot| slot.frames.start), start, "{gfn}");
            }
        }
    }

    #[test]
    fn maps_exist_from_enabling_on() {
        let mut slots = MemSlots::new(&[4..6, 8..9]);
        assert!(slots.of_gfn(5).and_then(|slot| slot.map(5)).is_none());
        slots.iter_mut().for_each(MemSlot::enable);
        assert_eq!(slots.of_gfn(5).and_then(|slot| slot.map(5)).map(Cell::get), Some(ALL));
    }
}

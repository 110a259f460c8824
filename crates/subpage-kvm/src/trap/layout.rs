//! Which memory slots there should be.

use subpage::address::{GfnRange, PAGE_BYTES};

use super::PageSet;

/// A memory slot as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedSlot {
    /// Its pages.
    pub pages: GfnRange,
    /// Offset of the first in the memory's file.
    pub offset: u64,
    /// `KVM_MEM_READONLY`.
    pub read_only: bool,
}

/// The fewest slots for the memory of `slots`, which ascend, after `pages` of it have become
/// read-only or writable.
///
/// Slots are cut where that changes and joined where it no longer does, so a caller that wants the fewest of
/// all gives the neighbours of what changes, too.
pub fn replan(
    slots: impl Iterator<Item = PlannedSlot>,
    pages: &PageSet,
    read_only: bool,
) -> Vec<PlannedSlot> {
    let mut planned: Vec<PlannedSlot> = Vec::new();
    let mut add = |slot: PlannedSlot| match planned.last_mut() {
        Some(last)
            if last.read_only == slot.read_only
                && last.pages.last().checked_add(1) == Some(slot.pages.first()) =>
        {
            let pages = last.pages.pages() + slot.pages.pages();
            last.pages = GfnRange::new(last.pages.first(), pages).expect("memory is a range");
        }
        _ => planned.push(slot),
    };
    for slot in slots {
        let part = |pages: GfnRange, read_only: bool| {
            let before = pages.first().as_u64() - slot.pages.first().as_u64();
            PlannedSlot { pages, offset: slot.offset + before * PAGE_BYTES, read_only }
        };
        let mut parts: Vec<_> = pages
            .runs_in(slot.pages)
            .map(|run| part(run, read_only))
            .chain(pages.gaps_in(slot.pages).map(|run| part(run, slot.read_only)))
            .collect();
        parts.sort_unstable_by_key(|part| part.pages.first());
        parts.into_iter().for_each(&mut add);
    }
    planned
}

#[cfg(test)]
mod tests {
    use subpage::address::Gfn;

    use super::*;

    fn pages(first: u64, count: u64) -> GfnRange {
        GfnRange::new(Gfn::new(first), count).expect("pages")
    }

    fn memory() -> Vec<PlannedSlot> {
        [(0, 100, 0), (1000, 50, 100)]
            .map(|(first, count, offset)| PlannedSlot {
                pages: pages(first, count),
                offset: offset * PAGE_BYTES,
                read_only: false,
            })
            .into()
    }

    fn shape(slots: &[PlannedSlot]) -> Vec<(u64, u64, bool)> {
        slots
            .iter()
            .map(|slot| (slot.pages.first().as_u64(), slot.pages.pages(), slot.read_only))
            .collect()
    }

    #[test]
    fn exactly_the_read_only_pages_are_read_only() {
        let closed: PageSet =
            [pages(0, 1), pages(7, 2), pages(99, 1), pages(1049, 1)].into_iter().collect();
        let slots = replan(memory().into_iter(), &closed, true);
        assert_eq!(
            shape(&slots),
            [
                (0, 1, true),
                (1, 6, false),
                (7, 2, true),
                (9, 90, false),
                (99, 1, true),
                (1000, 49, false),
                (1049, 1, true)
            ]
        );
        assert_eq!(slots[6].offset, (100 + 49) * PAGE_BYTES);
    }

    #[test]
    fn what_is_open_again_is_one_slot_with_its_neighbours() {
        let closed: PageSet = [pages(7, 2), pages(20, 3)].into_iter().collect();
        let slots = replan(memory().into_iter(), &closed, true);
        let opened: PageSet = [pages(8, 1), pages(20, 3)].into_iter().collect();
        let slots = replan(slots.into_iter(), &opened, false);
        assert_eq!(shape(&slots), [(0, 7, false), (7, 1, true), (8, 92, false), (1000, 50, false)]);
        let slots = replan(slots.into_iter(), &[pages(7, 1)].into_iter().collect(), false);
        assert_eq!(slots, memory());
    }
}

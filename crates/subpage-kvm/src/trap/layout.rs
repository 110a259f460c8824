//! Which memory slots there should be.

use subpage::address::{GfnRange, PAGE_BYTES};

use super::PageSet;
use crate::memory::Region;

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

/// The fewest slots in which exactly `read_only` is read-only: each region is cut at the ends of
/// the runs, and nowhere else.
pub fn plan(regions: &[Region], read_only: &PageSet) -> Vec<PlannedSlot> {
    let mut slots = Vec::new();
    for region in regions {
        let all: PageSet = [region.pages].into_iter().collect();
        let closed = read_only.intersection(&all);
        let open = all.difference(&closed);
        let mut of_region: Vec<_> = open
            .runs()
            .iter()
            .map(|run| (*run, false))
            .chain(closed.runs().iter().map(|run| (*run, true)))
            .map(|(pages, read_only)| {
                let before = pages.first().as_u64() - region.pages.first().as_u64();
                PlannedSlot { pages, offset: region.offset + before * PAGE_BYTES, read_only }
            })
            .collect();
        of_region.sort_unstable_by_key(|slot| slot.pages.first());
        slots.append(&mut of_region);
    }
    slots
}

#[cfg(test)]
mod tests {
    use subpage::address::Gfn;

    use super::*;

    fn pages(first: u64, count: u64) -> GfnRange {
        GfnRange::new(Gfn::new(first), count).expect("pages")
    }

    fn regions() -> Vec<Region> {
        vec![
            Region { pages: pages(0, 100), offset: 0 },
            Region { pages: pages(1000, 50), offset: 100 * PAGE_BYTES },
        ]
    }

    #[test]
    fn without_read_only_pages_each_region_is_one_slot() {
        let slots = plan(&regions(), &PageSet::new());
        assert_eq!(slots.len(), 2);
        assert!(slots.iter().all(|slot| !slot.read_only));
    }

    #[test]
    fn exactly_the_read_only_pages_are_read_only() {
        let closed: PageSet =
            [pages(0, 1), pages(7, 2), pages(99, 1), pages(1049, 1)].into_iter().collect();
        let slots = plan(&regions(), &closed);
        let shape: Vec<_> = slots
            .iter()
            .map(|slot| (slot.pages.first().as_u64(), slot.pages.pages(), slot.read_only))
            .collect();
        assert_eq!(
            shape,
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
        let merged = plan(&regions(), &[pages(7, 2)].into_iter().collect());
        assert_eq!(merged.len(), 4, "what is open again is one slot with its neighbours");
    }
}

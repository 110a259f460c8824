//! Pages in which hot data stands next to cold data.

use std::cmp::Reverse;

use subpage::access::AccessMap;
use subpage::address::{ByteRange, GfnRange};

use super::counts::PageCounts;
use crate::policy::Names;

/// Most names that are listed for a page.
const MAX_NAMES: usize = 4;

/// A page with at least one hot and at least one cold sub-page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MixedPage {
    /// The writes to it.
    pub counts: PageCounts,
    /// Sub-pages with at least 1 % of the page's writes.
    pub hot: AccessMap,
    /// The other sub-pages: what could be guarded cheaply.
    pub cold: AccessMap,
    /// Exits when the whole page is protected: every write to it.
    pub exits_page: u64,
    /// Exits, at most, when its cold sub-pages are protected: the writes that touch them.
    pub exits_sub_page: u64,
    /// Names of things with bytes in cold sub-pages, shortest things first, at most four.
    pub cold_names: Vec<String>,
}

impl MixedPage {
    /// Exits that sub-pages avoid, at least.
    pub fn avoided(&self) -> u64 {
        self.exits_page - self.exits_sub_page
    }

    fn of(counts: &PageCounts) -> Option<Self> {
        let mut hot = 0_u32;
        let mut cold_writes = 0_u64;
        for (index, writes) in counts.sub_pages.iter().enumerate() {
            if counts.is_hot(index) {
                hot |= 1 << index;
            } else {
                cold_writes += writes;
            }
        }
        let hot = AccessMap::from_bits(hot);
        if hot.is_empty() || hot.is_unrestricted() {
            return None;
        }
        Some(Self {
            counts: counts.clone(),
            hot,
            cold: !hot,
            exits_page: counts.writes,
            // A write that touches two cold sub-pages counts in both, and exits once.
            exits_sub_page: cold_writes.min(counts.writes),
            cold_names: Vec::new(),
        })
    }

    fn name(&mut self, names: &Names) {
        let page = ByteRange::of_pages(GfnRange::one(self.counts.gfn));
        let (start, end) = (page.first().as_u64(), page.last().as_u64() + 1);
        let mut found: Vec<(u64, &str)> = Vec::new();
        for named in names.iter() {
            let named_end = named.start.saturating_add(named.length);
            let (from, to) = (named.start.max(start), named_end.min(end));
            if from < to {
                let (first, last) = ((from - start) / 128, (to - 1 - start) / 128);
                let touched = (u32::MAX << first) & (u32::MAX >> (31 - last));
                if touched & self.cold.bits() != 0 {
                    found.push((named.length, &named.name));
                }
            }
        }
        found.sort_unstable();
        self.cold_names =
            found.into_iter().take(MAX_NAMES).map(|(_, name)| name.to_owned()).collect();
    }
}

/// The `top` mixed pages with the most avoided exits, best first, and how many are mixed in all.
pub fn mixed_pages(pages: &[PageCounts], names: &Names, top: usize) -> (Vec<MixedPage>, usize) {
    let mut mixed: Vec<MixedPage> = pages.iter().filter_map(MixedPage::of).collect();
    let count = mixed.len();
    mixed.sort_by_key(|page| (Reverse(page.avoided()), page.counts.gfn));
    mixed.truncate(top);
    for page in &mut mixed {
        page.name(names);
    }
    (mixed, count)
}

#[cfg(test)]
mod tests {
    use subpage::address::Gfn;

    use super::*;
    use crate::policy::NamedRange;

    fn page(gfn: u64, sub_pages: &[(usize, u64)]) -> PageCounts {
        let mut counts = PageCounts { gfn: Gfn::new(gfn), writes: 0, sub_pages: [0; 32] };
        for (index, writes) in sub_pages {
            counts.sub_pages[*index] = *writes;
            counts.writes += writes;
        }
        counts
    }

    #[test]
    fn one_percent_is_hot_and_less_is_cold() {
        let mixed = MixedPage::of(&page(1, &[(0, 9890), (1, 100), (2, 10)])).expect("mixed");
        assert_eq!(mixed.hot.bits(), 0b11);
        assert_eq!((mixed.exits_page, mixed.exits_sub_page, mixed.avoided()), (10_000, 10, 9_990));
        let even: Vec<_> = (0..32).map(|index| (index, 5)).collect();
        assert_eq!(MixedPage::of(&page(1, &even)), None, "all hot");
    }

    #[test]
    fn pages_are_ranked_by_what_is_avoided_and_named() {
        let pages = [page(1, &[(0, 10)]), page(2, &[(0, 1000)]), page(3, &[(5, 10)])];
        let names = Names::new(vec![
            NamedRange { name: "hot".to_owned(), start: 0x2000, length: 0x80 },
            NamedRange { name: "cold".to_owned(), start: 0x2100, length: 4 },
            NamedRange { name: "all".to_owned(), start: 0, length: u64::MAX },
        ]);
        let (mixed, count) = mixed_pages(&pages, &names, 2);
        assert_eq!(count, 3);
        let order: Vec<_> = mixed.iter().map(|page| page.counts.gfn.as_u64()).collect();
        assert_eq!(order, [2, 1]);
        assert_eq!(mixed[0].cold_names, ["cold", "all"]);
    }
}

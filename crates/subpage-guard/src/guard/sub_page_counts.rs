//! Decided writes by sub-page: what a heat map shows.

use std::collections::HashMap;

use subpage::access::AccessMap;
use subpage::address::Gfn;
use subpage::domain::WriteParts;

/// Sub-pages of a page, as the length of an array.
const CELLS: usize = 32;

/// Most pages with counts of their own: 8 MiB, and all pages of most policies.
const MAX_PAGES: usize = 1 << 14;

/// The writes to one page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageCounts {
    /// Decided writes that touched the page.
    pub writes: u64,
    /// Of these, those that touched each sub-page; a write may touch several.
    pub sub_pages: [u64; CELLS],
    /// Of these, those that had no effect.
    pub denied: [u64; CELLS],
}

/// Decided writes by page and sub-page, under the address that each had.
///
/// At most 16,384 pages have counts, the first that were written.
#[derive(Debug, Clone, Default)]
pub struct SubPageCounts {
    pages: HashMap<Gfn, Box<PageCounts>>,
    omitted: u64,
}

impl SubPageCounts {
    /// Pages with counts, in no order.
    pub fn pages(&self) -> impl ExactSizeIterator<Item = (Gfn, &PageCounts)> {
        self.pages.iter().map(|(gfn, counts)| (*gfn, &**counts))
    }

    /// Touches of pages that have no counts, because too many have.
    pub const fn omitted(&self) -> u64 {
        self.omitted
    }

    /// The pages that were written most, at most so many, in descending order.
    pub fn hottest(&self, most: usize) -> Vec<(Gfn, &PageCounts)> {
        let mut pages: Vec<_> = self.pages().collect();
        // Of equally hot ones always the same come first.
        let order = |(gfn, counts): &(Gfn, &PageCounts)| (std::cmp::Reverse(counts.writes), *gfn);
        if most < pages.len() {
            pages.select_nth_unstable_by_key(most, order);
            pages.truncate(most);
        }
        pages.sort_unstable_by_key(order);
        pages
    }

    /// A write was decided about.
    pub(super) fn decided(&mut self, write: &WriteParts) {
        each_page(write, |gfn, touched| match self.page(gfn) {
            None => self.omitted += 1,
            Some(page) => {
                page.writes += 1;
                add(&mut page.sub_pages, touched);
            }
        });
    }

    /// The write that was just [decided](Self::decided) about was denied.
    pub(super) fn denied(&mut self, write: &WriteParts) {
        each_page(write, |gfn, touched| {
            if let Some(page) = self.pages.get_mut(&gfn) {
                add(&mut page.denied, touched);
            }
        });
    }

    fn page(&mut self, gfn: Gfn) -> Option<&mut PageCounts> {
        let room = self.pages.len() < MAX_PAGES;
        if !room && !self.pages.contains_key(&gfn) {
            return None;
        }
        Some(self.pages.entry(gfn).or_default())
    }
}

fn add(counts: &mut [u64; CELLS], touched: AccessMap) {
    for sub_page in touched.iter() {
        counts[usize::from(sub_page.index())] += 1;
    }
}

/// Each page that a write touches, once, with the sub-pages.
fn each_page(write: &WriteParts, mut found: impl FnMut(Gfn, AccessMap)) {
    write.with_written(|runs| {
        let mut last: Option<(Gfn, AccessMap)> = None;
        for piece in runs.iter().flat_map(|run| run.pages()) {
            let (gfn, map) = (piece.first().gfn(), AccessMap::touched_by(piece));
            match &mut last {
                Some((page, touched)) if *page == gfn => *touched = *touched | map,
                _ => {
                    if let Some((page, touched)) = last.replace((gfn, map)) {
                        found(page, touched);
                    }
                }
            }
        }
        if let Some((page, touched)) = last {
            found(page, touched);
        }
    });
}

#[cfg(test)]
mod tests {
    use subpage::address::{ByteRange, Gpa, PAGE_BYTES};

    use super::*;

    fn write(start: u64, length: u64) -> WriteParts {
        WriteParts::one(ByteRange::new(Gpa::new(start), length).expect("a range"))
    }

    #[test]
    fn each_touched_sub_page_counts_once_for_each_write() {
        let mut counts = SubPageCounts::default();
        counts.decided(&write(0x107f, 2));
        counts.denied(&write(0x107f, 2));
        // Over the page end.
        counts.decided(&write(0x1ff8, 16));
        // Two runs of one sub-page, of a write under a mask.
        counts.decided(&write(0x2000, 64).under_mask(0xff00_0000_0000_00ff));
        let hottest = counts.hottest(10);
        let told: Vec<_> = hottest.iter().map(|(gfn, page)| (gfn.as_u64(), page.writes)).collect();
        assert_eq!(told, [(1, 2), (2, 2)]);
        let [first, second] = [0, 1].map(|index| hottest[index].1);
        assert_eq!((&first.sub_pages[..3], first.sub_pages[31]), (&[1, 1, 0][..], 1));
        assert_eq!((&first.denied[..3], first.denied[31]), (&[1, 1, 0][..], 0));
        assert_eq!(second.sub_pages[..2], [2, 0]);
        assert_eq!(counts.hottest(1)[0].0, Gfn::new(1));
        assert_eq!(counts.hottest(0), []);
    }

    /// A guest chooses which pages it writes.
    #[test]
    fn a_guest_that_writes_everywhere_takes_bounded_memory() {
        let mut counts = SubPageCounts::default();
        let most = u64::try_from(MAX_PAGES).expect("a number");
        for page in 0..most + 3 {
            counts.decided(&write(page * PAGE_BYTES, 8));
            counts.denied(&write(page * PAGE_BYTES, 8));
        }
        counts.decided(&write(0, 8));
        assert_eq!((counts.pages().len(), counts.omitted()), (MAX_PAGES, 3));
        assert_eq!(counts.hottest(2)[0].1.writes, 2);
    }
}

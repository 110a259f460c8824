//! Writes per sub-page of every written page.

use std::collections::HashMap;

use subpage::access::AccessMap;
use subpage::address::{ByteRange, Gfn};
use thiserror::Error;

use crate::heat::CELLS;

/// Most written pages that are counted: a million, which take 264 MiB.
pub const MAX_PAGES: usize = 1 << 20;

/// A sub-page is hot with at least one in this many of its page's writes, and cold with fewer.
const HOT_SHARE: u64 = 100;

/// Entries of the cache in front of the map.
const CACHE: usize = 1024;

/// The guest wrote to more pages than are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "the trace writes to more than {limit} pages, which this program does not count; record a \
     shorter run, or give `--range` alone with `--top 0`"
)]
pub struct TooManyPages {
    /// How many are counted.
    pub limit: usize,
}

/// The writes to one page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageCounts {
    /// The page.
    pub gfn: Gfn,
    /// Writes that touched the page.
    pub writes: u64,
    /// Writes that touched each sub-page.
    pub sub_pages: [u64; CELLS],
}

impl PageCounts {
    /// Whether the sub-page with this index, 0 to 31, has at least 1 % of the page's writes.
    ///
    /// # Panics
    /// If the index is 32 or more.
    pub fn is_hot(&self, index: usize) -> bool {
        let writes = self.sub_pages[index];
        writes > 0 && u128::from(writes) * u128::from(HOT_SHARE) >= u128::from(self.writes)
    }
}

/// The writes to every page.
#[derive(Debug)]
pub struct WriteCounts {
    pages: Vec<PageCounts>,
    index: HashMap<u64, usize>,
    /// Direct-mapped by the frame number's low bits: index of the page last seen there.
    cache: Box<[usize; CACHE]>,
    limit: usize,
}

impl WriteCounts {
    /// Counts of no write; at most `limit` pages will be counted.
    pub fn new(limit: usize) -> Self {
        let cache = Box::new([usize::MAX; CACHE]);
        Self { pages: Vec::new(), index: HashMap::new(), cache, limit }
    }

    /// Counts a write. After an error the counts are those of the writes before.
    pub fn count(&mut self, bytes: ByteRange) -> Result<(), TooManyPages> {
        let (first, last) = (bytes.first().gfn(), bytes.last().gfn());
        let first_page = self.page(first)?;
        if first == last {
            self.add(first_page, bytes);
            return Ok(());
        }
        // Both pages before either counts: a write is counted whole or not at all.
        self.page(last)?;
        for piece in bytes.pages() {
            let page = self.page(piece.first().gfn())?;
            self.add(page, piece);
        }
        Ok(())
    }

    fn add(&mut self, page: usize, piece: ByteRange) {
        let page = &mut self.pages[page];
        page.writes += 1;
        for sub_page in AccessMap::touched_by(piece).iter() {
            page.sub_pages[usize::from(sub_page.index())] += 1;
        }
    }

    fn page(&mut self, gfn: Gfn) -> Result<usize, TooManyPages> {
        #[allow(clippy::cast_possible_truncation)]
        let slot = gfn.as_u64() as usize % CACHE;
        let cached = self.cache[slot];
        if self.pages.get(cached).is_some_and(|page| page.gfn == gfn) {
            return Ok(cached);
        }
        let page = match self.index.get(&gfn.as_u64()) {
            Some(page) => *page,
            None if self.pages.len() == self.limit => {
                return Err(TooManyPages { limit: self.limit });
            }
            None => {
                let page = self.pages.len();
                self.pages.push(PageCounts { gfn, writes: 0, sub_pages: [0; CELLS] });
                self.index.insert(gfn.as_u64(), page);
                page
            }
        };
        self.cache[slot] = page;
        Ok(page)
    }

    /// The written pages, in the order of their first writes.
    pub fn pages(&self) -> &[PageCounts] {
        &self.pages
    }
}

#[cfg(test)]
mod tests {
    use subpage::address::Gpa;

    use super::*;

    fn range(start: u64, length: u64) -> ByteRange {
        ByteRange::new(Gpa::new(start), length).expect("a range")
    }

    #[test]
    fn a_write_counts_once_in_each_thing_it_touches() {
        let mut counts = WriteCounts::new(MAX_PAGES);
        counts.count(range(0x1000, 8)).expect("room");
        counts.count(range(0x107c, 8)).expect("room");
        counts.count(range(0x1ffc, 8)).expect("room");
        // Same place in the cache as page 1.
        counts.count(range(0x1000 + (CACHE as u64) * 4096, 1)).expect("room");
        counts.count(range(0x1000, 1)).expect("room");
        let pages = counts.pages();
        assert_eq!(pages.len(), 3);
        assert_eq!((pages[0].gfn.as_u64(), pages[0].writes), (1, 4));
        assert_eq!(pages[0].sub_pages[..2], [3, 1]);
        assert_eq!(pages[0].sub_pages[31], 1);
        assert_eq!((pages[1].gfn.as_u64(), pages[1].writes), (2, 1));
    }

    #[test]
    fn too_many_pages_are_an_error_and_leave_no_half_write() {
        let mut counts = WriteCounts::new(2);
        counts.count(range(0x1000, 1)).expect("room");
        counts.count(range(0x2000, 1)).expect("room");
        let before = counts.pages().to_vec();
        assert_eq!(counts.count(range(0x2fff, 2)), Err(TooManyPages { limit: 2 }));
        assert_eq!(counts.count(range(0x5000, 1)), Err(TooManyPages { limit: 2 }));
        assert_eq!(counts.pages(), before);
        counts.count(range(0x1fff, 2)).expect("both are known");
    }
}

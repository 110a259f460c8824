//! What is armed and written in the pages of one tracked range.
//!
//! Most pages are as they were when tracking began: every tracked sub-page is armed, none is written.
//! Nothing is stored for those. Memory is taken in blocks of pages, for blocks in which some page
//! differs, so tracking a range that nobody writes costs the same whatever its size.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::ranges::WrittenPage;
use crate::access::AccessMap;
use crate::address::{ByteRange, Gfn, GfnRange};
use crate::frames::OutOfFrames;

/// Pages of a block. Blocks begin at multiples of it, so a block lies in one 2 MiB region.
const BLOCK_PAGES: usize = 64;

/// Blocks of a group.
const GROUP_BLOCKS: usize = 512;

/// Pages of a group.
const GROUP_PAGES: u64 = (BLOCK_PAGES * GROUP_BLOCKS) as u64;

/// One tracked page. `armed` and `written` are disjoint, and both lie in the tracked range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TrackedPage {
    pub(super) armed: AccessMap,
    pub(super) written: AccessMap,
}

type Block = Box<[TrackedPage; BLOCK_PAGES]>;

/// The blocks of 128 MiB.
#[derive(Debug, Default)]
struct Group {
    /// Empty until one of them is needed.
    blocks: Vec<Option<Block>>,
    /// The blocks that have a page with written sub-pages, one bit each.
    written: [u64; GROUP_BLOCKS / 64],
}

/// The records of a range.
#[derive(Debug)]
pub(super) struct Records {
    range: ByteRange,
    groups: Vec<Group>,
}

/// Where the record of a page is.
#[derive(Clone, Copy)]
struct Place {
    group: usize,
    block: usize,
    page: usize,
}

impl Records {
    /// Every tracked sub-page of `range` is armed.
    pub(super) fn new(range: ByteRange) -> Result<Self, OutOfFrames> {
        let pages = range.gfns();
        let first = pages.first().as_u64() / GROUP_PAGES;
        let count = pages.last().as_u64() / GROUP_PAGES - first + 1;
        let count = usize::try_from(count).map_err(|_| OutOfFrames)?;
        let mut groups = Vec::new();
        groups.try_reserve_exact(count).map_err(|_| OutOfFrames)?;
        groups.resize_with(count, Group::default);
        Ok(Self { range, groups })
    }

    /// The tracked sub-pages of a page.
    pub(super) fn tracked(&self, gfn: Gfn) -> AccessMap {
        self.range.in_page(gfn).map_or(AccessMap::NONE, AccessMap::touched_by)
    }

    #[allow(clippy::cast_possible_truncation)] // Remainders, and a group that exists.
    fn place(&self, gfn: Gfn) -> Place {
        let (page, first) = (gfn.as_u64(), self.range.first().gfn().as_u64());
        let group = (page / GROUP_PAGES - first / GROUP_PAGES) as usize;
        let in_group = (page % GROUP_PAGES) as usize;
        Place { group, block: in_group / BLOCK_PAGES, page: in_group % BLOCK_PAGES }
    }

    fn block(&self, place: Place) -> Option<&Block> {
        self.groups[place.group].blocks.get(place.block)?.as_ref()
    }

    fn initial(&self, gfn: Gfn) -> TrackedPage {
        TrackedPage { armed: self.tracked(gfn), written: AccessMap::NONE }
    }

    /// The record of a page of the range.
    pub(super) fn page(&self, gfn: Gfn) -> TrackedPage {
        let place = self.place(gfn);
        self.block(place).map_or_else(|| self.initial(gfn), |block| block[place.page])
    }

    /// Makes room for any record of the pages of `range` that are tracked.
    pub(super) fn reserve(&mut self, range: GfnRange) -> Result<(), OutOfFrames> {
        let Some(pages) = self.range.gfns().intersection(range) else { return Ok(()) };
        for piece in pages.aligned_pieces(BLOCK_PAGES.trailing_zeros()) {
            let place = self.place(piece.first());
            if self.block(place).is_some() {
                continue;
            }
            let mut block = Vec::new();
            block.try_reserve_exact(BLOCK_PAGES).map_err(|_| OutOfFrames)?;
            let start = piece.first().as_u64() & !(BLOCK_PAGES as u64 - 1);
            let gfns = (start..).map(Gfn::new).take(BLOCK_PAGES);
            block.extend(gfns.map(|gfn| self.initial(gfn)));
            let block = block.into_boxed_slice().try_into().map_err(|_| OutOfFrames)?;
            let blocks = &mut self.groups[place.group].blocks;
            if blocks.is_empty() {
                blocks.try_reserve_exact(GROUP_BLOCKS).map_err(|_| OutOfFrames)?;
                blocks.resize_with(GROUP_BLOCKS, || None);
            }
            blocks[place.block] = Some(block);
        }
        Ok(())
    }

    /// Stores the record of a page.
    ///
    /// # Panics
    /// If the record is not the one of the beginning and no room was made for it.
    pub(super) fn set(&mut self, gfn: Gfn, record: TrackedPage) {
        let place = self.place(gfn);
        let initial = self.initial(gfn);
        let group = &mut self.groups[place.group];
        let Some(block) = group.blocks.get_mut(place.block).and_then(Option::as_mut) else {
            assert!(record == initial, "a record of tracking without room made for it");
            return;
        };
        block[place.page] = record;
        let any = !record.written.is_empty() || block.iter().any(|page| !page.written.is_empty());
        let (word, bit) = (place.block / 64, 1 << (place.block % 64));
        if any {
            group.written[word] |= bit;
        } else {
            group.written[word] &= !bit;
        }
    }

    /// Whether all of `pages` is tracked, armed, and without a record.
    pub(super) fn is_initial(&self, pages: GfnRange) -> bool {
        let bytes = ByteRange::of_pages(pages);
        self.range.first() <= bytes.first()
            && bytes.last() <= self.range.last()
            && pages
                .aligned_pieces(BLOCK_PAGES.trailing_zeros())
                .all(|piece| self.block(self.place(piece.first())).is_none())
    }

    /// The pages with written sub-pages, ascending. Costs what was written, and a little for each
    /// 128 MiB.
    pub(super) fn written(&self) -> impl Iterator<Item = WrittenPage> + '_ {
        let first = self.range.first().gfn().as_u64() / GROUP_PAGES * GROUP_PAGES;
        let starts = (first..).step_by(BLOCK_PAGES * GROUP_BLOCKS);
        self.groups.iter().zip(starts).flat_map(|(group, start)| {
            let words = group.written.iter().enumerate();
            let blocks = words.flat_map(|(at, word)| bits(*word).map(move |bit| at * 64 + bit));
            blocks.flat_map(move |at| {
                let first = start + (at * BLOCK_PAGES) as u64;
                let pages = group.blocks[at].iter().flat_map(|block| block.iter());
                pages
                    .zip(first..)
                    .filter(|(page, _)| !page.written.is_empty())
                    .map(|(page, gfn)| WrittenPage { gfn: Gfn::new(gfn), written: page.written })
            })
        })
    }
}

/// The places of the bits that are 1, ascending.
fn bits(word: u64) -> impl Iterator<Item = usize> {
    let nonzero = |word: u64| (word != 0).then_some(word);
    core::iter::successors(nonzero(word), move |rest| nonzero(rest & (rest - 1)))
        .map(|rest| rest.trailing_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Gpa;

    /// Of three pages far apart each is told until its own record is empty again.
    #[test]
    fn what_is_forgotten_in_one_block_is_kept_in_the_others() {
        let range = ByteRange::new(Gpa::new(0x10_0000), 1 << 30).expect("a range");
        let mut records = Records::new(range).expect("memory");
        let pages = [0x100, 0x100 + 64, 0x100 + 70 * 64].map(Gfn::new);
        let page = |gfn, written| WrittenPage { gfn, written };
        let (one, none) = (AccessMap::from_bits(8), AccessMap::NONE);
        for gfn in pages {
            records.reserve(GfnRange::new(gfn, 1).expect("a range")).expect("memory");
            records.set(gfn, TrackedPage { armed: !one, written: one });
        }
        assert!(records.written().eq(pages.map(|gfn| page(gfn, one))));
        for gone in 0..pages.len() {
            records.set(pages[gone], TrackedPage { armed: AccessMap::ALL, written: none });
            let left = pages[gone + 1..].iter().map(|gfn| page(*gfn, one));
            assert!(records.written().eq(left), "{gone} is forgotten");
        }
    }

    /// The beginning is that all of the pages is tracked, and that no record was made in their block.
    #[test]
    fn only_whole_pages_without_a_record_are_as_in_the_beginning() {
        let range = ByteRange::new(Gpa::new(0x10_0080), 0x10_0000).expect("a range");
        let mut records = Records::new(range).expect("memory");
        let initial = |records: &Records, first, pages| {
            records.is_initial(GfnRange::new(Gfn::new(first), pages).expect("a range"))
        };
        // The first page is tracked but for a sub-page, the last with one alone.
        for (first, pages, expected) in
            [(0x101, 255, true), (0x100, 2, false), (0x101, 256, false), (0x200, 1, false)]
        {
            assert_eq!(initial(&records, first, pages), expected, "{pages} from {first:#x}");
        }
        let record = GfnRange::new(Gfn::new(0x150), 1).expect("a range");
        records.reserve(record).expect("memory");
        for (first, pages, expected) in
            [(0x101, 63, true), (0x101, 64, false), (0x180, 128, true), (0x17f, 1, false)]
        {
            assert_eq!(initial(&records, first, pages), expected, "{pages} from {first:#x}");
        }
    }
}

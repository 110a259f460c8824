//! Which pages of a slot have been written since they were last harvested.

use alloc::vec::Vec;

use crate::address::{Gfn, GfnRange};
use crate::frames::OutOfFrames;

/// One bit a page: 1 = written since the last harvest; 0 = armed, the next write traps.
///
/// Armed is not stored apart: a page of a logging slot is armed exactly while its bit is 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirtyBitmap {
    pages: GfnRange,
    words: Vec<u64>,
}

impl DirtyBitmap {
    /// A bitmap for `pages` in which no page is dirty. Costs one bit a page.
    pub(crate) fn new(pages: GfnRange) -> Result<Self, OutOfFrames> {
        let mut words = Vec::new();
        let count = usize::try_from(pages.pages().div_ceil(64)).map_err(|_| OutOfFrames)?;
        words.try_reserve_exact(count).map_err(|_| OutOfFrames)?;
        words.resize(count, 0);
        Ok(Self { pages, words })
    }

    #[allow(clippy::cast_possible_truncation)]
    fn position(&self, gfn: Gfn) -> (usize, u64) {
        assert!(self.pages.contains(gfn), "a page outside the bitmap");
        let offset = gfn.as_u64() - self.pages.first().as_u64();
        ((offset / 64) as usize, 1 << (offset % 64))
    }

    /// Whether the page was written.
    ///
    /// # Panics
    /// If the page is not one of the bitmap's.
    pub fn is_dirty(&self, gfn: Gfn) -> bool {
        let (word, bit) = self.position(gfn);
        self.words[word] & bit != 0
    }

    pub(crate) fn mark(&mut self, gfn: Gfn) {
        let (word, bit) = self.position(gfn);
        self.words[word] |= bit;
    }

    /// Follows a slot that moved; the length must be the same.
    pub(crate) const fn rebase(&mut self, pages: GfnRange) {
        assert!(pages.pages() == self.pages.pages(), "a slot keeps its length when it moves");
        self.pages = pages;
    }

    /// The frames that the bitmap is about.
    pub const fn pages(&self) -> GfnRange {
        self.pages
    }

    /// The dirty pages, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Gfn> + '_ {
        self.words.iter().enumerate().flat_map(move |(at, word)| {
            let base = self.pages.first().as_u64() + at as u64 * 64;
            // Most words are 0 in a large slot; such a word costs one comparison.
            let nonzero = |word: u64| (word != 0).then_some(word);
            core::iter::successors(nonzero(*word), move |rest| nonzero(rest & (rest - 1)))
                .map(move |rest| Gfn::new(base + u64::from(rest.trailing_zeros())))
        })
    }
}

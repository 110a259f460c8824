//! The 128-byte piece of a page that one permission bit stands for.

use crate::address::Gpa;

/// Bytes in a sub-page: 128.
pub const SUB_PAGE_BYTES: u64 = 128;

/// Sub-pages in a page: 32.
pub const SUB_PAGES: u32 = 32;

/// Index of a sub-page in its page, 0..32: bits 11:7 of the address.
///
/// SDM Vol. 3C, "Determining an Access's Sub-Page Write Permission"; `docs/spp.md` 1.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubPage(u8);

impl SubPage {
    /// Takes an index; `None` at 32 or more.
    pub const fn new(index: u8) -> Option<Self> {
        if index < 32 { Some(Self(index)) } else { None }
    }

    /// The sub-page that holds a byte.
    #[allow(clippy::cast_possible_truncation)]
    pub const fn of(gpa: Gpa) -> Self {
        Self((gpa.as_u64() / SUB_PAGE_BYTES % SUB_PAGES as u64) as u8)
    }

    /// The index, 0..32.
    pub const fn index(self) -> u8 {
        self.0
    }

    /// All 32 in ascending order.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> {
        (0..32).map(Self)
    }
}

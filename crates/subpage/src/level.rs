//! The four levels of EPT and SPPT, and the page sizes that a leaf can have.

use crate::address::{Gfn, PAGE_BYTES};
use crate::frames::EntryIndex;

/// A level of a paging structure; the number is the one the SDM gives SPPT levels (L4 is the root).
///
/// The EPT's names for the same levels are PML4E, PDPTE, PDE and PTE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Leaf level: an entry stands for 4 KiB. Index from address bits 20:12.
    L1,
    /// An entry stands for 2 MiB. Index from bits 29:21.
    L2,
    /// An entry stands for 1 GiB. Index from bits 38:30.
    L3,
    /// Root: an entry stands for 512 GiB. Index from bits 47:39.
    L4,
}

impl Level {
    /// The level whose tables the entries of this level point to.
    pub const fn below(self) -> Option<Self> {
        match self {
            Self::L4 => Some(Self::L3),
            Self::L3 => Some(Self::L2),
            Self::L2 => Some(Self::L1),
            Self::L1 => None,
        }
    }

    /// Binary logarithm of the frames that one entry stands for: 0, 9, 18 or 27.
    pub const fn order(self) -> u32 {
        9 * self as u32
    }

    /// Frames that one entry stands for.
    pub const fn frames(self) -> u64 {
        1 << self.order()
    }

    /// Index of the entry that a frame's walk uses at this level.
    pub const fn index(self, gfn: Gfn) -> EntryIndex {
        EntryIndex::truncate(gfn.as_u64() >> self.order())
    }

    /// The first frame of the region that one entry of this level stands for.
    pub const fn region_start(self, gfn: Gfn) -> Gfn {
        Gfn::new(gfn.as_u64() & !(self.frames() - 1))
    }
}

/// Size of the page that an EPT leaf maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KiB: an L1 entry.
    Size4K,
    /// 2 MiB: an L2 entry with bit 7 set.
    Size2M,
    /// 1 GiB: an L3 entry with bit 7 set.
    Size1G,
}

impl PageSize {
    /// The level at which a leaf of this size stands.
    pub const fn level(self) -> Level {
        match self {
            Self::Size4K => Level::L1,
            Self::Size2M => Level::L2,
            Self::Size1G => Level::L3,
        }
    }

    /// The size of a leaf at `level`; none at the root.
    pub const fn at(level: Level) -> Option<Self> {
        match level {
            Level::L1 => Some(Self::Size4K),
            Level::L2 => Some(Self::Size2M),
            Level::L3 => Some(Self::Size1G),
            Level::L4 => None,
        }
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.frames() * PAGE_BYTES
    }

    /// The size in frames: 1, 512 or 262,144.
    pub const fn frames(self) -> u64 {
        self.level().frames()
    }
}

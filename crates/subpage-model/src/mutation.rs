//! Known wrong behaviours, of other implementations and close to them, to judge the judge by: whoever
//! compares the model with a processor has to contradict each.
//!
//! Only with the feature `mutations`, which is for tests: no ordinary build has any of it.

use subpage::access::AccessMap;
use subpage::level::PageSize;

use crate::access::{Access, AccessKind, Piece};
use crate::decision::PageRights;
use crate::features::Roots;
use crate::sppt_walk::SpptOutcome;

/// One wrong behaviour.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// A bit of the vector that is 1 denies.
    InvertedBits,
    /// A write passes if any sub-page from its first on is writable.
    AnyWritableFromHere,
    /// The first sub-page decides for the whole page.
    OffsetIgnored,
    /// Every write is taken for one of 8 bytes.
    LengthUnchecked,
    /// The sub-page of the last byte alone decides.
    LastByteOnly,
    /// A sub-page is decided by its neighbour's bit.
    NextSubPage,
    /// Bit 31 belongs to the first sub-page.
    BitsReversed,
    /// A bit stands for 256 bytes.
    CoarseSubPages,
    /// Of a write across a page end only the first page is judged.
    PartialPages,
    /// Leaves without bit 61 are eligible.
    Bit61Ignored,
    /// Leaves that map large pages are eligible.
    LargePages,
    /// The writes of a guest page walk are eligible.
    PageWalks,
    /// Where the SPPT has no valid entry, a write passes.
    MissAllows,
    /// A misconfiguration is reported as a miss.
    MisconfigurationIsMiss,
    /// A write that the SPPT permits leaves the dirty flag as it is.
    NoDirtyFlag,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::InvertedBits,
        Self::AnyWritableFromHere,
        Self::OffsetIgnored,
        Self::LengthUnchecked,
        Self::LastByteOnly,
        Self::NextSubPage,
        Self::BitsReversed,
        Self::CoarseSubPages,
        Self::PartialPages,
        Self::Bit61Ignored,
        Self::LargePages,
        Self::PageWalks,
        Self::MissAllows,
        Self::MisconfigurationIsMiss,
        Self::NoDirtyFlag,
    ];

    /// What it is called on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvertedBits => "inverted-bits",
            Self::AnyWritableFromHere => "any-writable-from-here",
            Self::OffsetIgnored => "offset-ignored",
            Self::LengthUnchecked => "length-unchecked",
            Self::LastByteOnly => "last-byte-only",
            Self::NextSubPage => "next-sub-page",
            Self::BitsReversed => "bits-reversed",
            Self::CoarseSubPages => "coarse-sub-pages",
            Self::PartialPages => "partial-pages",
            Self::Bit61Ignored => "bit-61-ignored",
            Self::LargePages => "large-pages",
            Self::PageWalks => "page-walks",
            Self::MissAllows => "miss-allows",
            Self::MisconfigurationIsMiss => "misconfiguration-is-miss",
            Self::NoDirtyFlag => "no-dirty-flag",
        }
    }

    /// In place of [`sub_pages_permit`](crate::decision::sub_pages_permit), if it is that which is wrong.
    pub(crate) fn permits(self, vector: AccessMap, piece: Piece) -> Option<bool> {
        let offset = u32::from(piece.gpa().page_offset());
        let bits = vector.bits();
        let bit = |of: u32, sub_page: u32| of >> (sub_page % 32) & 1 == 1;
        let first = offset / 128;
        let permitted = match self {
            Self::InvertedBits => bit(!bits, first),
            Self::AnyWritableFromHere => bits >> first != 0,
            Self::OffsetIgnored => bit(bits, 0),
            Self::LengthUnchecked => (first..=(offset + 7) / 128).all(|at| bit(bits, at)),
            Self::LastByteOnly => bit(bits, (offset + u32::from(piece.length()) - 1) / 128),
            Self::NextSubPage => bit(bits, first + 1),
            Self::BitsReversed => bit(bits.reverse_bits(), first),
            Self::CoarseSubPages => bit(bits, offset / 256),
            _ => return None,
        };
        Some(permitted)
    }

    /// What becomes of the answer of [`is_eligible`](crate::decision::is_eligible).
    pub(crate) fn is_eligible(
        self,
        eligible: bool,
        roots: &Roots,
        access: &Access,
        page: PageRights,
    ) -> bool {
        let small = page.size == PageSize::Size4K;
        let write = matches!(access.kind(), AccessKind::Write | AccessKind::ReadModifyWrite);
        let rights = page.rights.read() && !page.rights.write() && access.has_linear();
        let wrong = match self {
            Self::Bit61Ignored => write && small,
            Self::LargePages => write && page.sub_page_write,
            Self::PageWalks => access.kind().is_page_walk() && small && page.sub_page_write,
            _ => false,
        };
        eligible || wrong && rights && roots.sppt.is_some()
    }

    /// What becomes of the answer of the SPPT.
    pub(crate) const fn outcome(self, outcome: SpptOutcome) -> SpptOutcome {
        match (self, outcome) {
            (Self::MissAllows, SpptOutcome::Miss) => SpptOutcome::Vector(AccessMap::ALL),
            (Self::MisconfigurationIsMiss, SpptOutcome::Misconfiguration) => SpptOutcome::Miss,
            _ => outcome,
        }
    }
}

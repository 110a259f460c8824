//! The 32-bit access map of the KVM interface.

use core::fmt;
use core::ops::{BitAnd, BitOr, Not};

use super::SubPage;
use crate::address::ByteRange;

/// Which sub-pages of one page may be written: bit i = 1 means sub-page i is writable.
///
/// Every 32-bit value is a map. The initial value of every page is [`AccessMap::ALL`]
/// (`docs/spp.md` 2.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct AccessMap(u32);

impl AccessMap {
    /// Every sub-page writable: the page is unrestricted.
    pub const ALL: Self = Self(u32::MAX);
    /// No sub-page writable.
    pub const NONE: Self = Self(0);

    /// Takes the 32 bits as the interface carries them.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The 32 bits as the interface carries them.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The map in which exactly the sub-pages touched by `bytes` are set.
    ///
    /// # Panics
    /// If `bytes` does not lie within one page; callers cut at page ends first.
    pub fn touched_by(bytes: ByteRange) -> Self {
        assert!(bytes.first().gfn() == bytes.last().gfn(), "bytes of two pages in one map");
        let first = u32::from(SubPage::of(bytes.first()).index());
        let last = u32::from(SubPage::of(bytes.last()).index());
        Self((u32::MAX << first) & (u32::MAX >> (31 - last)))
    }

    /// Whether sub-page `sub` is set.
    pub const fn contains(self, sub: SubPage) -> bool {
        self.0 >> sub.index() & 1 == 1
    }

    /// Whether every sub-page of `other` is set here.
    pub const fn covers(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// Whether no sub-page is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the page needs no protection at all.
    pub const fn is_unrestricted(self) -> bool {
        self.0 == u32::MAX
    }

    /// How many sub-pages are set, 0..=32.
    pub const fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// The set sub-pages in ascending order.
    pub fn iter(self) -> impl Iterator<Item = SubPage> {
        SubPage::all().filter(move |sub| self.contains(*sub))
    }
}

impl BitAnd for AccessMap {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitOr for AccessMap {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl Not for AccessMap {
    type Output = Self;
    fn not(self) -> Self {
        Self(!self.0)
    }
}

impl fmt::Debug for AccessMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

impl fmt::Display for AccessMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_are_those_of_the_bits() {
        let [one, other] = [0b0011, 0b0101].map(AccessMap::from_bits);
        assert_eq!((one | other).bits(), 0b0111);
        assert_eq!((one & other).bits(), 0b0001);
        assert_eq!((!one).bits(), !0b0011);
    }
}

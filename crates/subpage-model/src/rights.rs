//! The rights that a walk of the EPT accumulates.

use std::ops::BitAnd;

/// Rights of one EPT entry, or the AND of those of several, as bits 2:0 and 10 of an entry.
///
/// SDM Vol. 3C, "EPT Violations": an access needs its right in every entry of the walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rights(u16);

impl Rights {
    /// Every right: where a walk starts.
    pub const ALL: Self = Self(Self::MASK);
    /// No right: what an entry that is not present gives.
    pub const NONE: Self = Self(0);

    const MASK: u16 = 1 << 10 | 0b111;

    /// The rights in an entry; every other bit is dropped.
    #[allow(clippy::cast_possible_truncation)]
    pub const fn of_entry(bits: u64) -> Self {
        Self(bits as u16 & Self::MASK)
    }

    /// Bit 0.
    pub const fn read(self) -> bool {
        self.0 & 1 != 0
    }

    /// Bit 1.
    pub const fn write(self) -> bool {
        self.0 & 1 << 1 != 0
    }

    /// Bit 2: fetches; under mode-based execute control those from supervisor-mode addresses.
    pub const fn execute(self) -> bool {
        self.0 & 1 << 2 != 0
    }

    /// Bit 10: fetches from user-mode addresses under mode-based execute control.
    pub const fn user_execute(self) -> bool {
        self.0 & 1 << 10 != 0
    }
}

impl BitAnd for Rights {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

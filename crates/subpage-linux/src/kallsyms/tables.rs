//! Little-endian words in a table.

/// Every table begins at a multiple of so many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alignment {
    /// Up to 7.0 or so: with 64-bit numbers among the tables.
    Eight,
    /// Since all numbers have 32 bits.
    Four,
}

impl Alignment {
    pub(super) const ALL: [Self; 2] = [Self::Eight, Self::Four];

    pub(super) const fn bytes(self) -> usize {
        match self {
            Self::Eight => 8,
            Self::Four => 4,
        }
    }

    pub(super) const fn up(self, at: usize) -> usize {
        at.next_multiple_of(self.bytes())
    }
}

pub(super) fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|half| u16::from_le_bytes(*half))
}

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

pub(super) fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|long| u64::from_le_bytes(*long))
}

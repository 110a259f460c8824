//! The 64-bit SPP vector: the leaf of the sub-page permission table.

use core::fmt;

use thiserror::Error;

use super::{AccessMap, SubPage};
use crate::address::ByteRange;

/// The odd bits of a vector are reserved and must be 0 (`docs/spp.md` 1.4).
const RESERVED: u64 = 0xAAAA_AAAA_AAAA_AAAA;

/// A vector read from outside has reserved (odd) bits set; the processor would take an
/// SPP misconfiguration exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("SPP vector {bits:#018x} has reserved bits {reserved:#018x} set")]
pub struct ReservedBitsSet {
    /// The whole entry.
    pub bits: u64,
    /// The odd bits that are set.
    pub reserved: u64,
}

/// An L1 entry of the SPPT: bit 2i = 1 means sub-page i may be written; odd bits are always 0.
///
/// SDM Vol. 3C, "Sub-Page Permission Table" (format of L1 entries); `docs/spp.md` 1.4. There is no
/// valid bit: zero denies all 32 sub-pages, it never means "absent".
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SppVector(u64);

impl SppVector {
    /// All sub-pages writable: the page is unrestricted.
    pub const ALL: Self = Self(!RESERVED);
    /// No sub-page writable.
    pub const NONE: Self = Self(0);

    /// Takes an entry from a table or a file; fails if a reserved bit is set.
    pub const fn try_from_bits(bits: u64) -> Result<Self, ReservedBitsSet> {
        let reserved = bits & RESERVED;
        if reserved != 0 {
            return Err(ReservedBitsSet { bits, reserved });
        }
        Ok(Self(bits))
    }

    /// Spreads a map: bit i to bit 2i.
    pub const fn from_map(map: AccessMap) -> Self {
        let mut bits = map.bits() as u64;
        bits = (bits | bits << 16) & 0x0000_FFFF_0000_FFFF;
        bits = (bits | bits << 8) & 0x00FF_00FF_00FF_00FF;
        bits = (bits | bits << 4) & 0x0F0F_0F0F_0F0F_0F0F;
        bits = (bits | bits << 2) & 0x3333_3333_3333_3333;
        bits = (bits | bits << 1) & 0x5555_5555_5555_5555;
        Self(bits)
    }

    /// Gathers the even bits: bit 2i to bit i.
    pub const fn to_map(self) -> AccessMap {
        AccessMap::from_bits(gather(self.0))
    }

    /// The 64 bits as they stand in the table.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether sub-page `sub` may be written.
    pub const fn permits(self, sub: SubPage) -> bool {
        self.0 >> (2 * sub.index()) & 1 == 1
    }

    /// The vector in which exactly the sub-pages touched by `bytes` are set.
    ///
    /// # Panics
    /// If `bytes` does not lie within one page; callers cut at page ends first.
    #[inline]
    pub fn touched_by(bytes: ByteRange) -> Self {
        assert!(bytes.first().gfn() == bytes.last().gfn(), "bytes of two pages in one vector");
        let first = 2 * u32::from(SubPage::of(bytes.first()).index());
        let last = 2 * u32::from(SubPage::of(bytes.last()).index());
        Self((u64::MAX << first) & (u64::MAX >> (63 - last)) & !RESERVED)
    }

    /// The sub-pages that are set here and not in `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether every sub-page may be written.
    pub const fn is_unrestricted(self) -> bool {
        self.0 == Self::ALL.0
    }
}

/// Gathers bits 0, 2, .. 62 of `bits`; odd bits must be 0.
#[allow(clippy::cast_possible_truncation)]
const fn gather(mut bits: u64) -> u32 {
    bits = (bits | bits >> 1) & 0x3333_3333_3333_3333;
    bits = (bits | bits >> 2) & 0x0F0F_0F0F_0F0F_0F0F;
    bits = (bits | bits >> 4) & 0x00FF_00FF_00FF_00FF;
    bits = (bits | bits >> 8) & 0x0000_FFFF_0000_FFFF;
    (bits | bits >> 16) as u32
}

/// Entries that [`compress_into`] and [`expand_into`] convert at a time: few enough to stay in the
/// first-level cache, enough for the compiler to use whole vector registers.
const CHUNK: usize = 32;

/// Gathers a run of raw L1 entries into maps, as fast as memory gives them.
///
/// The entries must come from a table this engine wrote (odd bits 0); they are not checked here,
/// because the engine stores vectors only as [`SppVector`].
///
/// # Panics
/// If the two slices differ in length.
pub fn compress_into(entries: &[u64], maps: &mut [AccessMap]) {
    assert_eq!(entries.len(), maps.len(), "one map per entry");
    let (entries, last_entries) = entries.as_chunks::<CHUNK>();
    let (maps, last_maps) = maps.as_chunks_mut::<CHUNK>();
    for (entries, maps) in entries.iter().zip(maps) {
        gather_chunk(entries, maps);
    }
    for (entry, map) in last_entries.iter().zip(last_maps) {
        *map = AccessMap::from_bits(gather(*entry));
    }
}

/// Gathers in lanes of 16 bits, which give 8 each: three steps instead of five, and the last two
/// become the one instruction by which vector units narrow 16 bits to 8 (PACKUSWB).
///
/// The four lanes of an entry become the four bytes of its map in the same order, so the order of
/// bytes in memory does not matter.
#[allow(clippy::cast_possible_truncation)] // The last step leaves eight bits.
fn gather_chunk(entries: &[u64; CHUNK], maps: &mut [AccessMap; CHUNK]) {
    let lanes: [u16; 4 * CHUNK] = zerocopy::transmute!(*entries);
    let mut bytes = [0_u8; 4 * CHUNK];
    for (byte, mut lane) in bytes.iter_mut().zip(lanes) {
        lane = (lane | lane >> 1) & 0x3333;
        lane = (lane | lane >> 2) & 0x0F0F;
        *byte = ((lane | lane >> 4) & 0x00FF) as u8;
    }
    let bits: [u32; CHUNK] = zerocopy::transmute!(bytes);
    for (map, bits) in maps.iter_mut().zip(bits) {
        *map = AccessMap::from_bits(bits);
    }
}

/// Spreads a run of maps into raw L1 entries, as fast as memory gives them.
///
/// # Panics
/// If the two slices differ in length.
#[inline]
pub fn expand_into(maps: &[AccessMap], entries: &mut [u64]) {
    assert_eq!(entries.len(), maps.len(), "one entry per map");
    let (maps, last_maps) = maps.as_chunks::<CHUNK>();
    let (entries, last_entries) = entries.as_chunks_mut::<CHUNK>();
    for (entries, maps) in entries.iter_mut().zip(maps) {
        spread_chunk(maps, entries);
    }
    for (entry, map) in last_entries.iter_mut().zip(last_maps) {
        *entry = SppVector::from_map(*map).bits();
    }
}

/// Spreads in lanes of 16 bits, the way back from [`gather_chunk`].
#[inline]
fn spread_chunk(maps: &[AccessMap; CHUNK], entries: &mut [u64; CHUNK]) {
    let bytes: [u8; 4 * CHUNK] = zerocopy::transmute!(maps.map(AccessMap::bits));
    let mut lanes = [0_u16; 4 * CHUNK];
    for (lane, byte) in lanes.iter_mut().zip(bytes) {
        let mut bits = u16::from(byte);
        bits = (bits | bits << 4) & 0x0F0F;
        bits = (bits | bits << 2) & 0x3333;
        *lane = (bits | bits << 1) & 0x5555;
    }
    *entries = zerocopy::transmute!(lanes);
}

impl From<AccessMap> for SppVector {
    fn from(map: AccessMap) -> Self {
        Self::from_map(map)
    }
}

impl From<SppVector> for AccessMap {
    fn from(vector: SppVector) -> Self {
        vector.to_map()
    }
}

impl TryFrom<u64> for SppVector {
    type Error = ReservedBitsSet;
    fn try_from(bits: u64) -> Result<Self, ReservedBitsSet> {
        Self::try_from_bits(bits)
    }
}

impl fmt::Debug for SppVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::*;

    /// Every bit alone and every length around the chunk: the run must equal one entry at a time.
    #[test]
    fn a_run_gathers_like_its_entries() {
        let samples: Vec<u64> = (0..200_u32)
            .map(|n| {
                AccessMap::from_bits(1_u32.rotate_left(n) ^ (n / 32).wrapping_mul(0x9E37_79B9))
            })
            .map(|map| SppVector::from_map(map).bits())
            .collect();
        for length in 0..samples.len() {
            let entries = &samples[samples.len() - length..];
            let mut maps = vec![AccessMap::ALL; length];
            compress_into(entries, &mut maps);
            for (entry, map) in entries.iter().zip(&maps) {
                assert_eq!(map.bits(), gather(*entry), "{entry:#x} in a run of {length}");
            }
            let mut back = vec![0; length];
            expand_into(&maps, &mut back);
            assert_eq!(back, entries, "a run of {length}");
        }
    }

    #[test]
    fn a_vector_permits_what_its_map_has() {
        for bits in [0, 1, 1 << 31, 0x8000_0001, 0x5a5a_a5a5, !1, u32::MAX] {
            let map = AccessMap::from_bits(bits);
            let vector = SppVector::from_map(map);
            for sub in SubPage::all() {
                assert_eq!(vector.permits(sub), map.contains(sub), "{bits:#x}, {sub:?}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "one map per entry")]
    fn a_run_needs_a_map_for_each_entry() {
        compress_into(&[0; 3], &mut [AccessMap::ALL; 2]);
    }
}

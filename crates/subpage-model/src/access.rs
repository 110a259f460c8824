//! Accesses to guest-physical memory, as the processor's pipeline hands them to translation.

use subpage::address::{Gpa, PAGE_BYTES};
use thiserror::Error;

/// Bytes of the widest single access: one 512-bit register.
pub const MAX_ACCESS_BYTES: u64 = 64;

/// What an access does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AccessKind {
    /// A data read.
    Read,
    /// A data write.
    Write,
    /// A locked or plain read-modify-write, a failed compare-exchange included. EPT violations
    /// report it as a write; whether bit 0 is set too is up to the processor (SDM Vol. 3C,
    /// "Exit Qualification for EPT Violations"), here it is not.
    ReadModifyWrite,
    /// An instruction fetch.
    Fetch,
    /// The processor reads a guest paging-structure entry to translate a linear address.
    WalkRead,
    /// The processor sets an accessed or dirty flag in a guest paging-structure entry.
    WalkUpdate,
    /// MOV to CR loads a PDPTE register. It has no linear address, and counts as a read even if
    /// EPTP bit 6 is 1 (SDM Vol. 3C, "EPT Violations").
    PdpteLoad,
}

impl AccessKind {
    /// Whether the access stores by its own nature (bit 1 of the qualification).
    pub const fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::ReadModifyWrite | Self::WalkUpdate)
    }

    /// Whether the access is reported as a data read (bit 0 of the qualification).
    pub const fn is_read(self) -> bool {
        matches!(self, Self::Read | Self::WalkRead | Self::PdpteLoad)
    }

    /// Whether the access goes to a guest paging-structure entry on the way to a linear address's
    /// translation.
    pub const fn is_page_walk(self) -> bool {
        matches!(self, Self::WalkRead | Self::WalkUpdate)
    }
}

/// What the guest's own paging structures say about the linear address: bits 9 to 11 of the
/// qualification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestRights {
    /// The linear address is a user-mode one.
    pub user: bool,
    /// The guest allows writes.
    pub writable: bool,
    /// The guest forbids instruction fetches.
    pub execute_disable: bool,
}

/// Why an access cannot exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AccessError {
    /// It has no byte, or more than [`MAX_ACCESS_BYTES`].
    #[error("an access of {length} bytes is not between 1 and 64")]
    Length {
        /// The rejected length in bytes.
        length: u64,
    },
    /// Its last byte lies beyond 48 bits.
    #[error("{length} bytes at guest-physical {gpa:#x} reach beyond the address space")]
    BeyondAddressSpace {
        /// Where it begins.
        gpa: u64,
        /// Its length in bytes.
        length: u64,
    },
    /// The first piece does not end where its page ends, or the second does not begin where its
    /// page begins: no linear address gives such a pair.
    #[error("the pieces at {first:#x} and {second:#x} are not one access across a page end")]
    NotAdjoining {
        /// Where the first piece begins.
        first: u64,
        /// Where the second piece begins.
        second: u64,
    },
}

/// The bytes of an access that lie in one guest page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    gpa: Gpa,
    length: u8,
    /// Bytes of the access before this piece.
    before: u8,
}

impl Piece {
    /// The first byte.
    pub const fn gpa(self) -> Gpa {
        self.gpa
    }

    /// How many bytes, 1..=64.
    pub const fn length(self) -> u8 {
        self.length
    }
}

/// One access of 1 to 64 bytes, in one page or across the end of one.
///
/// A linear address runs on across a page end, the guest-physical pages under it need not be
/// neighbours: an access holds up to two pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    first: Piece,
    second: Piece,
    linear: u64,
    has_linear: bool,
    kind: AccessKind,
    guest: GuestRights,
}

impl Access {
    /// An access of `length` bytes at `gpa`, cut at the page end if it crosses one.
    ///
    /// Its linear address is the same number as `gpa`, in a page that the guest maps for
    /// supervisor-mode reading, writing and execution; the builder methods change that. A
    /// [`PdpteLoad`](AccessKind::PdpteLoad) has no linear address.
    #[inline]
    pub fn new(kind: AccessKind, gpa: Gpa, length: u64) -> Result<Self, AccessError> {
        if length == 0 || length > MAX_ACCESS_BYTES {
            return Err(AccessError::Length { length });
        }
        let in_first = length.min(PAGE_BYTES - u64::from(gpa.page_offset()));
        if in_first == length {
            return Ok(Self::of_pieces(kind, (gpa, in_first), (gpa, 0)));
        }
        let Some(second) = gpa.checked_add(in_first) else {
            return Err(AccessError::BeyondAddressSpace { gpa: gpa.as_u64(), length });
        };
        Ok(Self::of_pieces(kind, (gpa, in_first), (second, length - in_first)))
    }

    /// An access across a page end whose two pages are apart in guest-physical memory: it runs from
    /// `first` to the end of that page and continues at the start of the page at `second`.
    pub fn across(
        kind: AccessKind,
        first: Gpa,
        second: Gpa,
        length: u64,
    ) -> Result<Self, AccessError> {
        let in_first = PAGE_BYTES - u64::from(first.page_offset());
        if second.page_offset() != 0 || in_first >= length {
            let (first, second) = (first.as_u64(), second.as_u64());
            return Err(AccessError::NotAdjoining { first, second });
        }
        if length > MAX_ACCESS_BYTES {
            return Err(AccessError::Length { length });
        }
        Ok(Self::of_pieces(kind, (first, in_first), (second, length - in_first)))
    }

    /// Both lengths are at most 64 and their sum is at least 1.
    #[inline]
    #[allow(clippy::cast_possible_truncation)]
    fn of_pieces(kind: AccessKind, first: (Gpa, u64), second: (Gpa, u64)) -> Self {
        Self {
            first: Piece { gpa: first.0, length: first.1 as u8, before: 0 },
            second: Piece { gpa: second.0, length: second.1 as u8, before: first.1 as u8 },
            linear: first.0.as_u64(),
            has_linear: kind != AccessKind::PdpteLoad,
            kind,
            guest: GuestRights { user: false, writable: true, execute_disable: false },
        }
    }

    /// The same access through the linear address `gla` (of its first byte; for a page walk, the
    /// address that is being translated).
    ///
    /// # Panics
    /// For a load of a PDPTE register, which has no linear address.
    pub fn at_linear(self, gla: u64) -> Self {
        assert!(self.kind != AccessKind::PdpteLoad, "a PDPTE load has no linear address");
        Self { linear: gla, has_linear: true, ..self }
    }

    /// The same access without a linear address (a store of the processor's own).
    pub fn without_linear(self) -> Self {
        Self { has_linear: false, ..self }
    }

    /// The same access through a linear address that the guest maps with these rights.
    pub fn with_guest_rights(self, guest: GuestRights) -> Self {
        Self { guest, ..self }
    }

    /// What the access does.
    pub const fn kind(&self) -> AccessKind {
        self.kind
    }

    /// What the guest's paging structures say about the linear address.
    pub const fn guest_rights(&self) -> GuestRights {
        self.guest
    }

    /// Whether there is a linear address.
    pub const fn has_linear(&self) -> bool {
        self.has_linear
    }

    /// How many bytes, 1..=64.
    pub const fn length(&self) -> usize {
        self.first.length as usize + self.second.length as usize
    }

    /// The piece that holds the first byte.
    pub const fn first(&self) -> Piece {
        self.first
    }

    /// The piece in the second page, if the access crosses a page end.
    pub const fn second(&self) -> Option<Piece> {
        if self.second.length == 0 { None } else { Some(self.second) }
    }

    /// One or two pieces, in the order of their bytes.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + use<> {
        std::iter::once(self.first).chain(self.second())
    }

    /// The linear address that an exit caused by `piece` reports; a page walk reports the address
    /// that is being translated, whichever entry it reads.
    pub(crate) fn linear_at(&self, piece: Piece) -> Option<u64> {
        let before = if self.kind.is_page_walk() { 0 } else { u64::from(piece.before) };
        self.has_linear.then(|| self.linear.wrapping_add(before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contiguous_accesses_are_cut_at_page_ends() {
        let access = Access::new(AccessKind::Write, Gpa::new(0xFFC), 8).expect("legal");
        let pieces: Vec<_> =
            access.pieces().map(|piece| (piece.gpa().as_u64(), piece.length())).collect();
        assert_eq!(pieces, [(0xFFC, 4), (0x1000, 4)]);
        assert_eq!(access.length(), 8);
        assert_eq!(access.linear_at(access.second().expect("crosses")), Some(0x1000));
        let inside = Access::new(AccessKind::Write, Gpa::new(0xFC0), 64).expect("legal");
        assert_eq!((inside.length(), inside.second()), (64, None));
    }

    #[test]
    fn impossible_accesses_are_refused() {
        let top = Gpa::MAX;
        for length in [0, 65, u64::MAX] {
            let refused = Access::new(AccessKind::Read, top, length);
            assert_eq!(refused, Err(AccessError::Length { length }));
        }
        assert!(Access::new(AccessKind::Read, top, 1).is_ok());
        let beyond = AccessError::BeyondAddressSpace { gpa: top.as_u64(), length: 2 };
        assert_eq!(Access::new(AccessKind::Read, top, 2), Err(beyond));
        let across = |first, second, length| {
            Access::across(AccessKind::Write, Gpa::new(first), Gpa::new(second), length)
        };
        assert!(across(0x1FFF, 0x9000, 2).is_ok());
        for (first, second, length) in [(0x1FFF, 0x9001, 2), (0x1FFE, 0x9000, 2)] {
            let refused = across(first, second, length);
            assert_eq!(refused, Err(AccessError::NotAdjoining { first, second }));
        }
        assert_eq!(across(0x1FFF, 0x9000, 65), Err(AccessError::Length { length: 65 }));
    }
}

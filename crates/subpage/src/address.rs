//! Guest-physical, guest-frame and host-physical numbers as types that cannot be mixed up.
//!
//! The walks of EPT and SPPT with four levels use address bits 47:12 (SDM Vol. 3C, "EPT
//! Translation Mechanism"; `docs/spp.md` 1.3), so a [`Gpa`] has at most 48 bits by construction.
//! The processor's own physical width, which may be smaller, is a [`PhysicalWidth`] and is checked
//! where a call enters the engine.

use thiserror::Error;

/// Bytes in a page and in a table frame: 4096.
pub const PAGE_BYTES: u64 = 4096;

/// Number of guest-physical address bits that four-level EPT and SPPT walks translate.
pub const GPA_BITS: u32 = 48;

/// Number of host-physical address bits that a paging-structure entry can hold (51:0).
pub const HPA_BITS: u32 = 52;

/// Why a number is not an address of the wanted kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AddressError {
    /// The guest-physical address has more bits than the limit.
    #[error("guest-physical address {gpa:#x} needs more than {bits} bits")]
    GpaTooWide {
        /// The rejected address.
        gpa: u64,
        /// How many bits are allowed.
        bits: u32,
    },
    /// The guest frame number lies above the last frame of the limit.
    #[error("guest frame {gfn:#x} lies beyond a {bits}-bit guest-physical address space")]
    GfnTooWide {
        /// The rejected frame number.
        gfn: u64,
        /// How many address bits are allowed.
        bits: u32,
    },
    /// The host-physical address has more than [`HPA_BITS`] bits.
    #[error("host-physical address {hpa:#x} needs more than 52 bits")]
    HpaTooWide {
        /// The rejected address.
        hpa: u64,
    },
    /// A range has no byte or no page.
    #[error("the range at {first:#x} is empty")]
    Empty {
        /// Where the range would begin (bytes or frames, as the call takes them).
        first: u64,
    },
    /// The end of a range cannot be expressed or lies beyond the limit.
    #[error("{count:#x} units from {first:#x} reach beyond the address space")]
    RangeTooLong {
        /// Where the range begins (bytes or frames, as the call takes them).
        first: u64,
        /// How many bytes or frames were asked for.
        count: u64,
    },
    /// An address is not a multiple of what the call needs.
    #[error("address {address:#x} is not a multiple of {alignment:#x}")]
    Unaligned {
        /// The rejected address.
        address: u64,
        /// The alignment in bytes.
        alignment: u64,
    },
    /// The physical width is outside 32..=52 bits.
    #[error("a physical width of {bits} bits is not between 32 and 52")]
    Width {
        /// The rejected width.
        bits: u32,
    },
}

/// A guest-physical address in bytes, below 2^48.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Gpa(u64);

impl Gpa {
    /// The highest address: 2^48 - 1.
    pub const MAX: Self = Self((1 << GPA_BITS) - 1);

    /// Takes an address that is known to fit.
    ///
    /// # Panics
    /// If `gpa` is 2^48 or more.
    pub const fn new(gpa: u64) -> Self {
        assert!(gpa <= Self::MAX.0, "guest-physical address beyond 48 bits");
        Self(gpa)
    }

    /// Takes an address from a guest, a file or a caller; fails at 2^48 or more.
    pub const fn try_new(gpa: u64) -> Result<Self, AddressError> {
        if gpa > Self::MAX.0 {
            return Err(AddressError::GpaTooWide { gpa, bits: GPA_BITS });
        }
        Ok(Self(gpa))
    }

    /// The number in bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The frame that holds this byte.
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 / PAGE_BYTES)
    }

    /// The byte's offset in its page, 0..4096.
    #[allow(clippy::cast_possible_truncation)]
    pub const fn page_offset(self) -> u16 {
        (self.0 % PAGE_BYTES) as u16
    }

    /// The address `bytes` further on; `None` beyond [`Gpa::MAX`].
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) if sum <= Self::MAX.0 => Some(Self(sum)),
            _ => None,
        }
    }
}

/// A guest frame number (address divided by 4096), below 2^36.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Gfn(u64);

impl Gfn {
    /// The highest frame: 2^36 - 1.
    pub const MAX: Self = Gpa::MAX.gfn();

    /// Takes a frame number that is known to fit.
    ///
    /// # Panics
    /// If `gfn` is 2^36 or more.
    pub const fn new(gfn: u64) -> Self {
        assert!(gfn <= Self::MAX.0, "guest frame number beyond 36 bits");
        Self(gfn)
    }

    /// Takes a frame number from a guest, a file or a caller; fails at 2^36 or more.
    pub const fn try_new(gfn: u64) -> Result<Self, AddressError> {
        if gfn > Self::MAX.0 {
            return Err(AddressError::GfnTooWide { gfn, bits: GPA_BITS });
        }
        Ok(Self(gfn))
    }

    /// The frame number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The address of the frame's first byte.
    pub const fn gpa(self) -> Gpa {
        Gpa(self.0 * PAGE_BYTES)
    }

    /// The frame `frames` further on; `None` beyond [`Gfn::MAX`].
    pub const fn checked_add(self, frames: u64) -> Option<Self> {
        match self.0.checked_add(frames) {
            Some(sum) if sum <= Self::MAX.0 => Some(Self(sum)),
            _ => None,
        }
    }
}

/// A host-physical address in bytes, below 2^52.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hpa(u64);

impl Hpa {
    /// The highest address: 2^52 - 1.
    pub const MAX: Self = Self((1 << HPA_BITS) - 1);

    /// Takes an address that is known to fit.
    ///
    /// # Panics
    /// If `hpa` is 2^52 or more.
    pub const fn new(hpa: u64) -> Self {
        assert!(hpa <= Self::MAX.0, "host-physical address beyond 52 bits");
        Self(hpa)
    }

    /// Takes an address from a table or a caller; fails at 2^52 or more.
    pub const fn try_new(hpa: u64) -> Result<Self, AddressError> {
        if hpa > Self::MAX.0 {
            return Err(AddressError::HpaTooWide { hpa });
        }
        Ok(Self(hpa))
    }

    /// The number in bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The address `bytes` further on; `None` beyond [`Hpa::MAX`].
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) if sum <= Self::MAX.0 => Some(Self(sum)),
            _ => None,
        }
    }

    /// Whether the address is a multiple of `alignment` bytes, a power of two.
    pub const fn is_aligned(self, alignment: u64) -> bool {
        self.0 & (alignment - 1) == 0
    }
}

/// The processor's physical-address width in bits (CPUID leaf 80000008H, EAX bits 7:0), 32..=52.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PhysicalWidth(u32);

impl PhysicalWidth {
    /// The architectural maximum, 52 bits.
    pub const MAX: Self = Self(HPA_BITS);

    /// Takes a width in bits; fails outside 32..=52.
    pub const fn try_new(bits: u32) -> Result<Self, AddressError> {
        if bits < 32 || bits > HPA_BITS {
            return Err(AddressError::Width { bits });
        }
        Ok(Self(bits))
    }

    /// The width in bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// The highest guest frame that can be protected: below the width and below 48 bits.
    pub const fn last_gfn(self) -> Gfn {
        if self.0 >= GPA_BITS {
            return Gfn::MAX;
        }
        Gfn((1 << (self.0 - 12)) - 1)
    }

    /// Whether a host-physical address fits the width (bits 51:N of an entry are reserved).
    pub const fn holds(self, hpa: Hpa) -> bool {
        hpa.as_u64() >> self.0 == 0
    }

    /// Checks the last frame of a call against the width.
    pub const fn check(self, gfn: Gfn) -> Result<(), AddressError> {
        if gfn.0 > self.last_gfn().0 {
            let bits = if self.0 < GPA_BITS { self.0 } else { GPA_BITS };
            return Err(AddressError::GfnTooWide { gfn: gfn.0, bits });
        }
        Ok(())
    }
}

/// A non-empty run of guest frames; both ends are inclusive, so it cannot wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GfnRange {
    first: Gfn,
    last: Gfn,
}

impl GfnRange {
    /// Takes `pages` frames from `first`; fails if there are none or they leave the address space.
    pub const fn new(first: Gfn, pages: u64) -> Result<Self, AddressError> {
        if pages == 0 {
            return Err(AddressError::Empty { first: first.0 });
        }
        match first.checked_add(pages - 1) {
            Some(last) => Ok(Self { first, last }),
            None => Err(AddressError::RangeTooLong { first: first.0, count: pages }),
        }
    }

    /// The single frame `gfn`.
    pub const fn one(gfn: Gfn) -> Self {
        Self { first: gfn, last: gfn }
    }

    /// The first frame.
    pub const fn first(self) -> Gfn {
        self.first
    }

    /// The last frame, inclusive.
    pub const fn last(self) -> Gfn {
        self.last
    }

    /// How many frames: at least 1, at most 2^36.
    pub const fn pages(self) -> u64 {
        self.last.0 - self.first.0 + 1
    }

    /// Whether `gfn` is one of the frames.
    pub const fn contains(self, gfn: Gfn) -> bool {
        self.first.0 <= gfn.0 && gfn.0 <= self.last.0
    }

    /// Whether every frame of `other` is one of these.
    pub const fn covers(self, other: Self) -> bool {
        self.first.0 <= other.first.0 && other.last.0 <= self.last.0
    }

    /// The frames in both ranges.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let first = self.first.max(other.first);
        let last = self.last.min(other.last);
        (first <= last).then_some(Self { first, last })
    }

    /// The frames in ascending order.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = Gfn> + Clone {
        (self.first.0..=self.last.0).map(Gfn)
    }

    /// The same frames cut at every multiple of `2^order` frames, in ascending order.
    pub fn aligned_pieces(self, order: u32) -> impl Iterator<Item = Self> + Clone {
        let (first, last) = (self.first.0, self.last.0);
        (first >> order..=last >> order).map(move |piece| Self {
            first: Gfn(first.max(piece << order)),
            last: Gfn(last.min((piece << order) + ((1 << order) - 1))),
        })
    }
}

/// A non-empty run of guest-physical bytes; both ends are inclusive, so it cannot wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteRange {
    first: Gpa,
    last: Gpa,
}

impl ByteRange {
    /// Takes `length` bytes from `first`; fails if there are none or they leave 48 bits.
    pub const fn new(first: Gpa, length: u64) -> Result<Self, AddressError> {
        if length == 0 {
            return Err(AddressError::Empty { first: first.0 });
        }
        match first.checked_add(length - 1) {
            Some(last) => Ok(Self { first, last }),
            None => Err(AddressError::RangeTooLong { first: first.0, count: length }),
        }
    }

    /// The bytes of `pages`.
    pub const fn of_pages(pages: GfnRange) -> Self {
        Self { first: pages.first.gpa(), last: Gpa(pages.last.gpa().0 + (PAGE_BYTES - 1)) }
    }

    /// The first byte.
    pub const fn first(self) -> Gpa {
        self.first
    }

    /// The last byte, inclusive.
    pub const fn last(self) -> Gpa {
        self.last
    }

    /// How many bytes: at least 1, at most 2^48.
    pub const fn bytes(self) -> u64 {
        self.last.0 - self.first.0 + 1
    }

    /// The frames that hold at least one of the bytes.
    pub const fn gfns(self) -> GfnRange {
        GfnRange { first: self.first.gfn(), last: self.last.gfn() }
    }

    /// The bytes in both ranges.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let first = self.first.max(other.first);
        let last = self.last.min(other.last);
        (first <= last).then_some(Self { first, last })
    }

    /// The bytes that lie in page `gfn`.
    pub fn in_page(self, gfn: Gfn) -> Option<Self> {
        self.intersection(Self::of_pages(GfnRange::one(gfn)))
    }

    /// The same bytes cut at page ends, in ascending order.
    pub fn pages(self) -> impl Iterator<Item = Self> + Clone {
        self.gfns().iter().filter_map(move |gfn| self.in_page(gfn))
    }
}

//! Sizes of memory, and addresses that are none, in words.

use std::fmt;

use subpage::address::ByteRange;

use super::{HOLE_END, HOLE_START, MAX_BYTES};

/// A number of bytes in the largest binary unit that it is a whole number of: `2 MiB`, `1025 KiB`,
/// `4097 bytes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        let whole = |(unit, _): &&(u64, &str)| self.0 >= *unit && self.0.is_multiple_of(*unit);
        match UNITS.iter().find(whole) {
            Some((unit, name)) => write!(out, "{} {name}", self.0 / unit),
            None => write!(out, "{} bytes", self.0),
        }
    }
}

/// What it would take for bytes to be memory of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing: devices lie there.
    Devices,
    /// So much memory.
    Memory(Size),
    /// Nothing: they lie behind the most memory that a guest may have.
    Beyond,
}

impl Remedy {
    /// For bytes that are not all memory.
    pub fn of(range: ByteRange) -> Self {
        const MEBIBYTE: u64 = 1 << 20;
        let (first, end) = (range.first().as_u64(), range.last().as_u64() + 1);
        if first < HOLE_END && end > HOLE_START {
            return Self::Devices;
        }
        let below = if end > HOLE_END { HOLE_END - HOLE_START } else { 0 };
        match (end - below).next_multiple_of(MEBIBYTE) {
            needed if needed <= MAX_BYTES => Self::Memory(Size(needed)),
            _ => Self::Beyond,
        }
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Devices => {
                out.write_str("devices lie from 3 to 4 GiB, however much memory the guest has")
            }
            Self::Memory(size) => write!(out, "the guest would need {size}"),
            Self::Beyond => {
                write!(out, "no guest has memory there: the most is {}", Size(MAX_BYTES))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use subpage::address::Gpa;

    use super::*;

    #[test]
    fn sizes_are_exact() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (1 << 20, "1 MiB"),
            ((1 << 20) + 1, "1048577 bytes"),
            ((1 << 20) + 1024, "1025 KiB"),
            (128 << 20, "128 MiB"),
            (900_000 << 30, "900000 GiB"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }

    #[test]
    fn more_memory_helps_only_where_memory_comes() {
        let of = |first: u64, bytes| {
            Remedy::of(ByteRange::new(Gpa::new(first), bytes).expect("a range"))
        };
        assert_eq!(of(HOLE_START - 4, 4), Remedy::Memory(Size(3 << 30)));
        for (first, bytes) in [(HOLE_START - 4, 5), (0xfee0_0000, 4), (HOLE_END - 1, 8)] {
            assert_eq!(of(first, bytes), Remedy::Devices, "{first:#x}");
        }
        assert_eq!(of(HOLE_END, 1), Remedy::Memory(Size((3 << 30) + (1 << 20))));
        assert_eq!(of(0x20_0000, 1), Remedy::Memory(Size(3 << 20)));
        assert_eq!(of(MAX_BYTES + (1 << 30) - 1, 1), Remedy::Memory(Size(MAX_BYTES)));
        assert_eq!(of(MAX_BYTES + (1 << 30), 1), Remedy::Beyond);
        assert_eq!(of((1 << 48) - 1, 1), Remedy::Beyond);
    }
}

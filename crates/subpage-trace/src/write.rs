//! One recorded write.

use crate::error::TraceError;

/// Every recorded byte lies below this address (2^48: what four-level paging can map).
pub const ADDRESS_LIMIT: u64 = 1 << 48;

/// The most bytes one write has; a longer store is recorded as several writes.
pub const MAX_WRITE_SIZE: u8 = 64;

/// A store of the recorded program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Write {
    /// Address of the storing instruction; 0 where it is not known.
    pub pc: u64,
    /// First byte written.
    pub address: u64,
    /// Bytes written, 1 to [`MAX_WRITE_SIZE`].
    pub size: u8,
}

impl Write {
    /// Whether the size and the last byte are within what a trace can hold.
    pub fn is_valid(&self) -> bool {
        (1..=MAX_WRITE_SIZE).contains(&self.size)
            && self.address <= ADDRESS_LIMIT - u64::from(self.size)
    }

    /// A store of any length as writes of at most [`MAX_WRITE_SIZE`] bytes, in ascending order.
    ///
    /// # Errors
    /// [`TraceError::BadWrite`] if the store is empty or passes [`ADDRESS_LIMIT`].
    pub fn split(pc: u64, address: u64, length: u64) -> Result<Pieces, TraceError> {
        let end = address.checked_add(length).filter(|&end| end <= ADDRESS_LIMIT && length > 0);
        match end {
            Some(end) => Ok(Pieces { pc, next: address, end }),
            None => Err(TraceError::BadWrite { address, length }),
        }
    }
}

/// What is left of a store that is cut into writes. See [`Write::split`].
#[derive(Clone, Debug, Default)]
pub struct Pieces {
    pc: u64,
    next: u64,
    end: u64,
}

impl Iterator for Pieces {
    type Item = Write;

    fn next(&mut self) -> Option<Write> {
        let left = self.end - self.next;
        if left == 0 {
            return None;
        }
        let size = u8::try_from(left).unwrap_or(MAX_WRITE_SIZE).min(MAX_WRITE_SIZE);
        let write = Write { pc: self.pc, address: self.next, size };
        self.next += u64::from(size);
        Some(write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_store_is_cut_without_gap_or_overlap() {
        for length in 1..=600 {
            let pieces: Vec<_> = Write::split(7, 0x1000, length).expect("in range").collect();
            let mut next = 0x1000;
            for piece in &pieces {
                assert!(piece.is_valid());
                assert_eq!((piece.pc, piece.address), (7, next));
                next += u64::from(piece.size);
            }
            assert_eq!(next, 0x1000 + length);
            assert_eq!(pieces.len() as u64, length.div_ceil(64));
        }
    }

    #[test]
    fn the_last_byte_must_be_below_the_limit() {
        assert!(Write { pc: 0, address: ADDRESS_LIMIT - 8, size: 8 }.is_valid());
        assert!(!Write { pc: 0, address: ADDRESS_LIMIT - 7, size: 8 }.is_valid());
        assert!(!Write { pc: 0, address: u64::MAX, size: 8 }.is_valid());
        assert!(!Write { pc: 0, address: 0, size: 0 }.is_valid());
        assert!(!Write { pc: 0, address: 0, size: 65 }.is_valid());
        assert!(Write::split(0, ADDRESS_LIMIT - 100, 100).is_ok());
        assert!(Write::split(0, ADDRESS_LIMIT - 100, 101).is_err());
        assert!(Write::split(0, u64::MAX, 2).is_err());
        assert!(Write::split(0, 0, 0).is_err());
    }
}

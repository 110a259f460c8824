//! Entries of the three upper SPPT levels.

use bitfield_struct::bitfield;

use crate::address::{PAGE_BYTES, PhysicalWidth};
use crate::frames::TableFrame;

/// An L4, L3 or L2 entry of the sub-page permission table.
///
/// SDM Vol. 3C, "Sub-Page Permission Table" (format of L4, L3 and L2 entries); `docs/spp.md` 1.4.
/// Leaves are [`SppVector`](crate::access::SppVector)s.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct SpptEntry {
    /// Bit 0: the entry links a table. When 0, an eligible write is an SPP miss.
    pub valid: bool,
    /// Bits 11:1: reserved, must be 0.
    #[bits(11)]
    pub reserved_low: u16,
    /// Bits 51:12: frame number of the next table; bits from the physical width on are reserved.
    #[bits(40)]
    frame_number: u64,
    /// Bits 63:52: reserved, must be 0.
    #[bits(12)]
    pub reserved_high: u16,
}

impl SpptEntry {
    /// An entry that links a table.
    pub const fn link(table: TableFrame) -> Self {
        Self::new().with_valid(true).with_frame_number(table.hpa().as_u64() / PAGE_BYTES)
    }

    /// The linked table; `None` if the valid bit is 0.
    pub const fn table(self) -> Option<TableFrame> {
        if self.valid() { Some(self.address()) } else { None }
    }

    /// The frame in bits 51:12, whether or not the entry is valid.
    pub(super) const fn address(self) -> TableFrame {
        TableFrame::from_number(self.frame_number())
    }

    /// Whether a processor of this width finds a reserved bit set (an SPP misconfiguration).
    pub const fn has_reserved_bits(self, width: PhysicalWidth) -> bool {
        let above_width = (self.frame_number() * PAGE_BYTES) >> width.bits() != 0;
        self.reserved_low() != 0 || self.reserved_high() != 0 || above_width
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each bit by itself, for the narrowest processor, a common one and the widest.
    #[test]
    fn reserved_are_bits_1_to_11_and_from_the_width_on() {
        for width in [36_u32, 39, 52] {
            let physical = PhysicalWidth::try_new(width).expect("a width");
            for bit in 0..64 {
                let reserved = (1..12).contains(&bit) || bit >= width;
                for entry in [1 << bit, 1 << bit | 0x1000 | 1] {
                    let found = SpptEntry::from_bits(entry).has_reserved_bits(physical);
                    assert_eq!(found, reserved, "bit {bit}, {width} bits wide");
                }
            }
            assert!(!SpptEntry::from_bits(0).has_reserved_bits(physical));
        }
    }
}

//! The one function that decides what an EPT leaf permits (design decision 3).
//!
//! A leaf is computed from what the host allows and from the page's vector, every time, in one
//! step. Nothing is parked in spare bits and nothing is patched afterwards, so there is no window
//! in which a leaf says too much (D19) and no leftover to forget (D24, D25).

use super::EptEntry;
use crate::access::SppVector;

/// What the host and the memory slot allow for a page at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)]
pub struct WriteGate {
    /// The host page may be written by the guest now: not shared, not copy-on-write, not swapped.
    pub host_writable: bool,
    /// The memory slot is read-only for the guest.
    pub slot_read_only: bool,
    /// Dirty logging waits for the first write of the page.
    pub dirty_armed: bool,
}

impl WriteGate {
    /// Whether the page would be mapped writable if it had no restriction.
    pub const fn is_open(self) -> bool {
        self.host_writable && !self.slot_read_only && !self.dirty_armed
    }
}

/// The two bits of a leaf that decide writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeafRights {
    /// Bit 1: every write is allowed.
    pub write: bool,
    /// Bit 61: the sub-page permission table decides.
    pub sub_page_write: bool,
}

/// Computes the write rights of a 4 KiB leaf.
///
/// | vector | W | bit 61 |
/// |---|---|---|
/// | all ones | gate open | 0 |
/// | zero | 0 | 0 |
/// | any other | 0 | gate open |
///
/// Bit 61 while the gate is closed would let a guest write a page that the host shares or has
/// read-only (D9); bit 61 with an all-ones vector would outlive the protection (HVMI's stale SPP).
/// SDM Vol. 3C, "Sub-Page Write Permissions for EPT": eligible are writes to a page whose
/// accumulated rights have R = 1 and W = 0 and whose leaf has bit 61 set (`docs/spp.md` 1.2).
pub const fn leaf_rights(gate: WriteGate, vector: SppVector) -> LeafRights {
    let open = gate.is_open();
    let unrestricted = vector.is_unrestricted();
    let partial = !unrestricted && vector.bits() != 0;
    LeafRights { write: open && unrestricted, sub_page_write: open && partial }
}

impl LeafRights {
    /// The entry with these rights and everything else kept, accessed and dirty flags included.
    pub const fn apply_to(self, entry: EptEntry) -> EptEntry {
        entry.with_write(self.write).with_sub_page_write(self.sub_page_write)
    }

    /// Whether the entry has a right that these leave out: old translations permit too much.
    pub(crate) const fn take_from(self, entry: EptEntry) -> bool {
        (entry.write() && !self.write) || (entry.sub_page_write() && !self.sub_page_write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::AccessMap;

    /// All eight gates with the three kinds of vector: the table of the docstring, spelt out.
    #[test]
    fn every_gate_and_kind_of_vector() {
        for bits in 0..8 {
            let gate = WriteGate {
                host_writable: bits & 1 != 0,
                slot_read_only: bits & 2 != 0,
                dirty_armed: bits & 4 != 0,
            };
            let open = bits == 1;
            for (map, write, spp) in [
                (AccessMap::ALL, open, false),
                (AccessMap::NONE, false, false),
                (AccessMap::from_bits(1), false, open),
                (AccessMap::from_bits(!1), false, open),
            ] {
                let rights = leaf_rights(gate, map.into());
                assert_eq!(rights, LeafRights { write, sub_page_write: spp }, "{gate:?} {map}");
            }
        }
    }

    #[test]
    fn rights_change_two_bits_only() {
        let entry = EptEntry::from(u64::MAX);
        let rights = LeafRights { write: false, sub_page_write: false };
        assert_eq!(u64::from(rights.apply_to(entry)), !(1 << 1 | 1 << 61));
    }
}

//! The 64-bit EPT entry, bit by bit, and what an entry means at a level.

use bitfield_struct::bitfield;

use crate::address::{Hpa, PAGE_BYTES};
use crate::frames::TableFrame;
use crate::level::{Level, PageSize};

/// A legal EPT memory type (bits 5:3 of a leaf); 2, 3 and 7 are EPT misconfigurations.
///
/// SDM Vol. 3C, "EPT Misconfigurations".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum MemoryType {
    /// UC, for devices.
    Uncacheable = 0,
    /// WC.
    WriteCombining = 1,
    /// WT.
    WriteThrough = 4,
    /// WP.
    WriteProtected = 5,
    /// WB, for memory.
    WriteBack = 6,
}

/// An EPT entry of any level.
///
/// SDM Vol. 3C, "EPT Translation Mechanism" (formats of PML4E, PDPTE, PDE and PTE) and, for bit 61,
/// "Sub-Page Write Permissions for EPT". Bits the processor ignores are padding here, but for the
/// one the engine uses itself ([`host_writable`](Self::host_writable)).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct EptEntry {
    /// Bit 0: reads are allowed.
    pub read: bool,
    /// Bit 1: writes are allowed.
    pub write: bool,
    /// Bit 2: instruction fetches are allowed (supervisor-mode ones under mode-based execute).
    pub execute: bool,
    /// Bits 5:3, leaves only: memory type (0 uncacheable, 6 write-back).
    #[bits(3)]
    pub memory_type: u8,
    /// Bit 6, leaves only: the memory type overrides the guest's PAT.
    pub ignore_pat: bool,
    /// Bit 7, L3 and L2 entries: the entry is a leaf.
    pub large: bool,
    /// Bit 8, with EPTP bit 6: the region was accessed.
    pub accessed: bool,
    /// Bit 9, leaves with EPTP bit 6: the page was written.
    pub dirty: bool,
    /// Bit 10, with mode-based execute control: user-mode fetches are allowed.
    pub user_execute: bool,
    __: bool,
    /// Bits 51:12: frame number of the next table or of the page.
    #[bits(40)]
    frame_number: u64,
    /// Bit 52, ignored by the processor: the host lets the guest write the page now.
    ///
    /// An input of the leaf function, not a copy of its output: W is 0 in a restricted page whether
    /// or not the host page is writable, and the host's answer must not be lost (D9).
    pub host_writable: bool,
    #[bits(8)]
    __: u8,
    /// Bit 61, 4 KiB leaves only: writes are judged by the sub-page permission table.
    pub sub_page_write: bool,
    __: bool,
    /// Bit 63, leaves: EPT violations do not become #VE.
    pub suppress_ve: bool,
}

impl EptEntry {
    /// The host-physical address in bits 51:12.
    pub const fn hpa(self) -> Hpa {
        Hpa::new(self.frame_number() * PAGE_BYTES)
    }

    /// Whether the processor treats the entry as present: any of R, W, X.
    ///
    /// With mode-based execute control bit 10 counts as well; the engine never sets it alone.
    pub const fn is_present(self) -> bool {
        self.read() || self.write() || self.execute() || self.user_execute()
    }

    /// An entry that links a table: all rights, so that the leaf alone decides.
    pub const fn link(table: TableFrame) -> Self {
        Self::new()
            .with_read(true)
            .with_write(true)
            .with_execute(true)
            .with_user_execute(true)
            .with_frame_number(table.hpa().as_u64() / PAGE_BYTES)
    }

    /// The same entry with another address.
    pub const fn with_hpa(self, hpa: Hpa) -> Self {
        self.with_frame_number(hpa.as_u64() / PAGE_BYTES)
    }

    /// What the entry means where it stands.
    #[inline]
    pub fn meaning(self, level: Level) -> Meaning {
        if !self.is_present() {
            return Meaning::Absent;
        }
        match PageSize::at(level) {
            Some(PageSize::Size4K) => Meaning::Leaf(PageSize::Size4K),
            Some(size) if self.large() => Meaning::Leaf(size),
            _ => Meaning::Table(TableFrame::from_number(self.frame_number())),
        }
    }
}

/// An entry read as what it does, apart from its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// Nothing is mapped.
    Absent,
    /// The entry links a table of the level below.
    Table(TableFrame),
    /// The entry maps a page.
    Leaf(PageSize),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_right_alone_makes_an_entry_present() {
        let all_else = EptEntry::from_bits(!0)
            .with_read(false)
            .with_write(false)
            .with_execute(false)
            .with_user_execute(false);
        for absent in [EptEntry::new(), all_else] {
            assert_eq!(absent.meaning(Level::L1), Meaning::Absent);
            for present in [
                absent.with_read(true),
                absent.with_write(true),
                absent.with_execute(true),
                absent.with_user_execute(true),
            ] {
                assert_eq!(present.meaning(Level::L1), Meaning::Leaf(PageSize::Size4K));
            }
        }
    }
}

//! The roots of the tables that a virtual processor walks.

use subpage::frames::TableFrame;

/// EPTP bits 2:0 and 5:3: write-back tables, four levels (SDM Vol. 3C, "Extended-Page-Table
/// Pointer").
const EPTP_WRITE_BACK_4_LEVELS: u64 = 6 | 3 << 3;
/// EPTP bit 6.
const EPTP_ACCESSED_DIRTY: u64 = 1 << 6;

/// The tables that a virtual processor walks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableRoots {
    /// The EPT's root.
    pub ept: TableFrame,
    /// The SPPT's root; `None` if the processor does not enforce sub-page permissions.
    pub sppt: Option<TableFrame>,
    /// Accessed and dirty flags for EPT.
    pub accessed_dirty: bool,
}

impl TableRoots {
    /// The EPTP field, with or without accessed and dirty flags.
    pub const fn eptp(&self, accessed_dirty: bool) -> u64 {
        let flags = if accessed_dirty { EPTP_ACCESSED_DIRTY } else { 0 };
        self.ept.hpa().as_u64() | EPTP_WRITE_BACK_4_LEVELS | flags
    }
}

//! VM-execution, VM-exit and VM-entry controls: their bits and their allowed settings.
//!
//! SDM Vol. 3C, "VM-Execution Control Fields", "VM-Exit Controls", "VM-Entry Controls".
#![allow(missing_docs)]

pub const PIN_EXTERNAL_INTERRUPT: u32 = 1 << 0;
pub const PIN_NMI: u32 = 1 << 3;
pub const PIN_VIRTUAL_NMIS: u32 = 1 << 5;

pub const PRIMARY_INTERRUPT_WINDOW: u32 = 1 << 2;
pub const PRIMARY_HLT: u32 = 1 << 7;
pub const PRIMARY_MWAIT: u32 = 1 << 10;
pub const PRIMARY_CR8_LOAD: u32 = 1 << 19;
pub const PRIMARY_CR8_STORE: u32 = 1 << 20;
pub const PRIMARY_NMI_WINDOW: u32 = 1 << 22;
pub const PRIMARY_IO_BITMAPS: u32 = 1 << 25;
pub const PRIMARY_MTF: u32 = 1 << 27;
pub const PRIMARY_MSR_BITMAPS: u32 = 1 << 28;
pub const PRIMARY_MONITOR: u32 = 1 << 29;
pub const PRIMARY_SECONDARY: u32 = 1 << 31;

pub const SECONDARY_EPT: u32 = 1 << 1;
pub const SECONDARY_RDTSCP: u32 = 1 << 3;
pub const SECONDARY_VPID: u32 = 1 << 5;
pub const SECONDARY_UNRESTRICTED_GUEST: u32 = 1 << 7;
pub const SECONDARY_INVPCID: u32 = 1 << 12;
pub const SECONDARY_XSAVES: u32 = 1 << 20;
pub const SECONDARY_SPP: u32 = 1 << 23;

pub const EXIT_SAVE_DEBUG: u32 = 1 << 2;
pub const EXIT_HOST_64: u32 = 1 << 9;
pub const EXIT_ACKNOWLEDGE_INTERRUPT: u32 = 1 << 15;
pub const EXIT_SAVE_PAT: u32 = 1 << 18;
pub const EXIT_LOAD_PAT: u32 = 1 << 19;
pub const EXIT_SAVE_EFER: u32 = 1 << 20;
pub const EXIT_LOAD_EFER: u32 = 1 << 21;

pub const ENTRY_LOAD_DEBUG: u32 = 1 << 2;
pub const ENTRY_IA32E: u32 = 1 << 9;
pub const ENTRY_LOAD_PAT: u32 = 1 << 14;
pub const ENTRY_LOAD_EFER: u32 = 1 << 15;

/// Which settings of a control field are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bits {
    must_be_1: u32,
    may_be_1: u32,
}

impl Bits {
    /// From a capability register: bits 31:0 must be 1, bits 63:32 may be.
    #[allow(clippy::cast_possible_truncation)]
    pub const fn from_msr(value: u64) -> Self {
        Self { must_be_1: value as u32, may_be_1: (value >> 32) as u32 }
    }

    /// Whether all of `bits` may be 1.
    pub const fn allows(self, bits: u32) -> bool {
        self.may_be_1 & bits == bits
    }

    /// What is wanted, as far as it is allowed, with what must be.
    pub const fn adjust(self, wanted: u32) -> u32 {
        (wanted | self.must_be_1) & self.may_be_1
    }
}

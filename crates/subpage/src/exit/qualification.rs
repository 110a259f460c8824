//! Exit qualifications of the two exits that sub-page permissions cause.

use bitfield_struct::bitfield;

/// Exit qualification of an EPT violation (exit reason 48).
///
/// SDM Vol. 3C, "Exit Qualification for EPT Violations"; `docs/spp.md` 1.6. A write denied by the
/// SPPT reports the same bits as a write to a read-only page: nothing here says "sub-page".
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct EptQualification {
    /// Bit 0: the access was a data read.
    pub read: bool,
    /// Bit 1: the access was a data write.
    pub write: bool,
    /// Bit 2: the access was an instruction fetch.
    pub fetch: bool,
    /// Bit 3: the page was readable (AND over all entries of the walk).
    pub readable: bool,
    /// Bit 4: the page was writable; 0 for a denied sub-page, whatever its neighbours permit.
    pub writable: bool,
    /// Bit 5: the page was executable.
    pub executable: bool,
    /// Bit 6: user-mode executable, with mode-based execute control.
    pub user_executable: bool,
    /// Bit 7: the guest-linear address field is valid.
    pub linear_valid: bool,
    /// Bit 8, if bit 7: the access was to the translation of the linear address (1), or to a guest
    /// paging-structure entry on the way to it (0).
    pub final_access: bool,
    /// Bit 9, if bits 7 and 8 and advanced information: the linear address is a user-mode one.
    pub user_linear: bool,
    /// Bit 10, likewise: the guest's paging structures allow writes.
    pub linear_writable: bool,
    /// Bit 11, likewise: the guest's paging structures forbid execution.
    pub linear_execute_disable: bool,
    /// Bit 12: the exit happened after an IRET that unblocked NMIs.
    pub nmi_unblocked: bool,
    /// Bit 13: shadow-stack access.
    pub shadow_stack: bool,
    /// Bit 14: supervisor shadow-stack control of the page.
    pub supervisor_shadow_stack: bool,
    /// Bit 15: guest-paging verification failed.
    pub paging_verification: bool,
    /// Bit 16: the access was asynchronous to the instruction.
    pub asynchronous: bool,
    #[bits(47)]
    __: u64,
}

impl EptQualification {
    /// Whether the processor was walking the guest's own page tables.
    pub const fn is_page_walk(self) -> bool {
        self.linear_valid() && !self.final_access()
    }
}

/// Exit qualification of an SPP-related event (exit reason 66).
///
/// SDM Vol. 3C, "Exit Qualification for SPP-Induced VM Exits"; `docs/spp.md` 1.5. All 64 bits are
/// kept: the trace point of the KVM series cut them to 32 (D51).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct SppQualification {
    #[bits(11)]
    __: u16,
    /// Bit 11: 1 = SPP miss (an upper entry is not valid), 0 = SPP misconfiguration.
    pub miss: bool,
    /// Bit 12: the exit happened after an IRET that unblocked NMIs.
    pub nmi_unblocked: bool,
    #[bits(51)]
    __: u64,
}

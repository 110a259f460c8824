//! Encodings of VMCS fields (SDM Vol. 3D, appendix "Field Encoding in VMCS").

/// A field that describes the guest or the event to inject: the worst that a wrong value does is
/// that the next entry fails, or that the guest goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestField(pub u32);

/// A field that controls what the guest may do, or that describes the host: a wrong value can break
/// the hypervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlField(pub u32);

/// A field that the processor writes at an exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitField(pub u32);

#[allow(missing_docs)]
impl GuestField {
    pub const ES_SELECTOR: Self = Self(0x0800);
    pub const CS_SELECTOR: Self = Self(0x0802);
    pub const SS_SELECTOR: Self = Self(0x0804);
    pub const DS_SELECTOR: Self = Self(0x0806);
    pub const FS_SELECTOR: Self = Self(0x0808);
    pub const GS_SELECTOR: Self = Self(0x080A);
    pub const LDTR_SELECTOR: Self = Self(0x080C);
    pub const TR_SELECTOR: Self = Self(0x080E);
    pub const LINK_POINTER: Self = Self(0x2800);
    pub const DEBUGCTL: Self = Self(0x2802);
    pub const PAT: Self = Self(0x2804);
    pub const EFER: Self = Self(0x2806);
    pub const PDPTE0: Self = Self(0x280A);
    pub const PDPTE1: Self = Self(0x280C);
    pub const PDPTE2: Self = Self(0x280E);
    pub const PDPTE3: Self = Self(0x2810);
    pub const ENTRY_EVENT: Self = Self(0x4016);
    pub const ENTRY_ERROR_CODE: Self = Self(0x4018);
    pub const ENTRY_INSTRUCTION_LENGTH: Self = Self(0x401A);
    pub const ES_LIMIT: Self = Self(0x4800);
    pub const CS_LIMIT: Self = Self(0x4802);
    pub const SS_LIMIT: Self = Self(0x4804);
    pub const DS_LIMIT: Self = Self(0x4806);
    pub const FS_LIMIT: Self = Self(0x4808);
    pub const GS_LIMIT: Self = Self(0x480A);
    pub const LDTR_LIMIT: Self = Self(0x480C);
    pub const TR_LIMIT: Self = Self(0x480E);
    pub const GDTR_LIMIT: Self = Self(0x4810);
    pub const IDTR_LIMIT: Self = Self(0x4812);
    pub const ES_ACCESS: Self = Self(0x4814);
    pub const CS_ACCESS: Self = Self(0x4816);
    pub const SS_ACCESS: Self = Self(0x4818);
    pub const DS_ACCESS: Self = Self(0x481A);
    pub const FS_ACCESS: Self = Self(0x481C);
    pub const GS_ACCESS: Self = Self(0x481E);
    pub const LDTR_ACCESS: Self = Self(0x4820);
    pub const TR_ACCESS: Self = Self(0x4822);
    pub const INTERRUPTIBILITY: Self = Self(0x4824);
    pub const ACTIVITY: Self = Self(0x4826);
    pub const SYSENTER_CS: Self = Self(0x482A);
    pub const CR0: Self = Self(0x6800);
    pub const CR3: Self = Self(0x6802);
    pub const CR4: Self = Self(0x6804);
    pub const ES_BASE: Self = Self(0x6806);
    pub const CS_BASE: Self = Self(0x6808);
    pub const SS_BASE: Self = Self(0x680A);
    pub const DS_BASE: Self = Self(0x680C);
    pub const FS_BASE: Self = Self(0x680E);
    pub const GS_BASE: Self = Self(0x6810);
    pub const LDTR_BASE: Self = Self(0x6812);
    pub const TR_BASE: Self = Self(0x6814);
    pub const GDTR_BASE: Self = Self(0x6816);
    pub const IDTR_BASE: Self = Self(0x6818);
    pub const DR7: Self = Self(0x681A);
    pub const RSP: Self = Self(0x681C);
    pub const RIP: Self = Self(0x681E);
    pub const RFLAGS: Self = Self(0x6820);
    pub const PENDING_DEBUG: Self = Self(0x6822);
    pub const SYSENTER_ESP: Self = Self(0x6824);
    pub const SYSENTER_EIP: Self = Self(0x6826);
    pub const CR0_SHADOW: Self = Self(0x6004);
    pub const CR4_SHADOW: Self = Self(0x6006);
}

#[allow(missing_docs)]
impl ControlField {
    pub const VPID: Self = Self(0x0000);
    pub const HOST_ES: Self = Self(0x0C00);
    pub const HOST_CS: Self = Self(0x0C02);
    pub const HOST_SS: Self = Self(0x0C04);
    pub const HOST_DS: Self = Self(0x0C06);
    pub const HOST_FS: Self = Self(0x0C08);
    pub const HOST_GS: Self = Self(0x0C0A);
    pub const HOST_TR: Self = Self(0x0C0C);
    pub const IO_BITMAP_A: Self = Self(0x2000);
    pub const IO_BITMAP_B: Self = Self(0x2002);
    pub const MSR_BITMAP: Self = Self(0x2004);
    pub const TSC_OFFSET: Self = Self(0x2010);
    pub const EPTP: Self = Self(0x201A);
    pub const SPPTP: Self = Self(0x2030);
    pub const HOST_PAT: Self = Self(0x2C00);
    pub const HOST_EFER: Self = Self(0x2C02);
    pub const PIN_BASED: Self = Self(0x4000);
    pub const PRIMARY: Self = Self(0x4002);
    pub const EXCEPTION_BITMAP: Self = Self(0x4004);
    pub const PAGE_FAULT_MASK: Self = Self(0x4006);
    pub const PAGE_FAULT_MATCH: Self = Self(0x4008);
    pub const CR3_TARGETS: Self = Self(0x400A);
    pub const EXIT: Self = Self(0x400C);
    pub const EXIT_MSR_STORES: Self = Self(0x400E);
    pub const EXIT_MSR_LOADS: Self = Self(0x4010);
    pub const ENTRY: Self = Self(0x4012);
    pub const ENTRY_MSR_LOADS: Self = Self(0x4014);
    pub const SECONDARY: Self = Self(0x401E);
    pub const HOST_SYSENTER_CS: Self = Self(0x4C00);
    pub const CR0_MASK: Self = Self(0x6000);
    pub const CR4_MASK: Self = Self(0x6002);
    pub const HOST_CR0: Self = Self(0x6C00);
    pub const HOST_CR3: Self = Self(0x6C02);
    pub const HOST_CR4: Self = Self(0x6C04);
    pub const HOST_FS_BASE: Self = Self(0x6C06);
    pub const HOST_GS_BASE: Self = Self(0x6C08);
    pub const HOST_TR_BASE: Self = Self(0x6C0A);
    pub const HOST_GDTR_BASE: Self = Self(0x6C0C);
    pub const HOST_IDTR_BASE: Self = Self(0x6C0E);
    pub const HOST_SYSENTER_ESP: Self = Self(0x6C10);
    pub const HOST_SYSENTER_EIP: Self = Self(0x6C12);
    pub const HOST_RSP: Self = Self(0x6C14);
    pub const HOST_RIP: Self = Self(0x6C16);
}

#[allow(missing_docs)]
impl ExitField {
    pub const GUEST_PHYSICAL: Self = Self(0x2400);
    pub const INSTRUCTION_ERROR: Self = Self(0x4400);
    pub const REASON: Self = Self(0x4402);
    pub const EVENT: Self = Self(0x4404);
    pub const EVENT_ERROR_CODE: Self = Self(0x4406);
    pub const VECTORING: Self = Self(0x4408);
    pub const VECTORING_ERROR_CODE: Self = Self(0x440A);
    pub const INSTRUCTION_LENGTH: Self = Self(0x440C);
    pub const INSTRUCTION_INFORMATION: Self = Self(0x440E);
    pub const QUALIFICATION: Self = Self(0x6400);
    pub const GUEST_LINEAR: Self = Self(0x640A);
}

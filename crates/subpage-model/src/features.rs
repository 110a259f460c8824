//! What the modelled processor can do, and which VM-execution controls are set.

use subpage::address::PhysicalWidth;
use subpage::frames::TableFrame;
use thiserror::Error;

/// Capabilities and controls that stay the same while a virtual CPU lives.
///
/// SDM Vol. 3D, appendix "VMX Capability Reporting Facility" (the MSRs
/// IA32_VMX_PROCBASED_CTLS2 and IA32_VMX_EPT_VPID_CAP); `docs/spp.md` 1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)]
pub struct Features {
    /// Physical-address width: bits from it on are reserved in EPT and SPPT entries.
    pub width: PhysicalWidth,
    /// The control "sub-page write permissions for EPT" may be set (Ice Lake and later).
    pub sub_page_write_permissions: bool,
    /// EPT entries may allow execution without reading.
    pub execute_only: bool,
    /// EPT page-directory-pointer-table entries may map 1 GiB pages; otherwise their bit 7 is
    /// reserved.
    pub pages_1g: bool,
    /// The EPT may have accessed and dirty flags (EPTP bit 6 may be set).
    pub accessed_dirty_flags: bool,
    /// EPT violations report bits 9, 10 and 11 of the qualification ("advanced VM-exit information
    /// for EPT violations").
    pub advanced_information: bool,
    /// The control "mode-based execute control for EPT" is set: bit 10 of an EPT entry allows
    /// fetches from user-mode linear addresses and bit 2 those from supervisor-mode ones.
    pub mode_based_execute: bool,
    /// The control "enable PML" is set.
    pub page_modification_logging: bool,
    /// Reserved bits of an SPPT entry are looked at although its valid bit is 0, so that such an
    /// entry is a misconfiguration and not a miss.
    ///
    /// The sources do not settle which of the two a processor does (`docs/spp.md` 1.5); `false` is
    /// what every other paging structure of the architecture does, and what Bochs does.
    pub checks_invalid_sppt_entries: bool,
}

impl Features {
    /// A processor that can do everything modelled here, with every optional control off.
    pub const fn new(width: PhysicalWidth) -> Self {
        Self {
            width,
            sub_page_write_permissions: true,
            execute_only: true,
            pages_1g: true,
            accessed_dirty_flags: true,
            advanced_information: true,
            mode_based_execute: false,
            page_modification_logging: false,
            checks_invalid_sppt_entries: false,
        }
    }
}

/// The fields of the VMCS that name the tables, as a VM entry loads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roots {
    /// EPTP bits 51:12: the EPT's level-4 table.
    pub ept: TableFrame,
    /// EPTP bit 6: the EPT has accessed and dirty flags.
    pub ept_accessed_dirty: bool,
    /// SPPTP bits 51:12; `None` if the control "sub-page write permissions for EPT" is 0.
    pub sppt: Option<TableFrame>,
}

/// Why a VM entry fails (VM-instruction error 7: invalid control field).
///
/// SDM Vol. 3C, "VM-Execution Control Fields" (checks on VMX controls); `docs/spp.md` 1.1. That
/// SPP needs EPT and that both pointers are 4 KiB aligned holds by the types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EntryError {
    /// The EPTP names a table beyond the physical width.
    #[error("EPTP {0:?} lies beyond the processor's physical width")]
    EptpTooWide(TableFrame),
    /// The SPPTP names a table beyond the physical width.
    #[error("SPPTP {0:?} lies beyond the processor's physical width")]
    SpptpTooWide(TableFrame),
    /// EPTP bit 6 is set and the processor has no accessed and dirty flags for EPT.
    #[error("EPTP bit 6 is set on a processor without accessed and dirty flags for EPT")]
    NoAccessedDirtyFlags,
    /// The SPP control is set and the processor does not have it.
    #[error("sub-page write permissions are not supported by this processor")]
    NoSubPageWritePermissions,
}

impl Roots {
    /// Makes the checks of a VM entry with these fields.
    pub fn check(&self, features: &Features) -> Result<(), EntryError> {
        if !features.width.holds(self.ept.hpa()) {
            return Err(EntryError::EptpTooWide(self.ept));
        }
        if self.ept_accessed_dirty && !features.accessed_dirty_flags {
            return Err(EntryError::NoAccessedDirtyFlags);
        }
        match self.sppt {
            Some(_) if !features.sub_page_write_permissions => {
                Err(EntryError::NoSubPageWritePermissions)
            }
            Some(sppt) if !features.width.holds(sppt.hpa()) => Err(EntryError::SpptpTooWide(sppt)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use subpage::address::Hpa;

    fn frame(hpa: u64) -> TableFrame {
        TableFrame::try_new(Hpa::new(hpa)).expect("aligned")
    }

    #[test]
    fn entry_checks_name_the_broken_field() {
        let all = Features::new(PhysicalWidth::try_new(40).expect("legal"));
        let good =
            Roots { ept: frame(0x1000), ept_accessed_dirty: true, sppt: Some(frame(0x2000)) };
        assert_eq!(good.check(&all), Ok(()));
        let wide = frame(1 << 40);
        assert_eq!(Roots { ept: wide, ..good }.check(&all), Err(EntryError::EptpTooWide(wide)));
        let sppt = Some(wide);
        assert_eq!(Roots { sppt, ..good }.check(&all), Err(EntryError::SpptpTooWide(wide)));
        let old = Features { sub_page_write_permissions: false, ..all };
        assert_eq!(good.check(&old), Err(EntryError::NoSubPageWritePermissions));
        assert_eq!(Roots { sppt: None, ..good }.check(&old), Ok(()));
        let older = Features { accessed_dirty_flags: false, ..old };
        assert_eq!(good.check(&older), Err(EntryError::NoAccessedDirtyFlags));
    }
}

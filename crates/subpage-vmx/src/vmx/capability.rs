//! What the processor's VMX can do, and what it lacks by name of register and bit.
//!
//! Values only: the registers are read elsewhere, so every combination can be tested.

use thiserror::Error;

use super::controls::{
    Bits, ENTRY_LOAD_EFER, EXIT_HOST_64, EXIT_LOAD_EFER, EXIT_SAVE_EFER, PIN_EXTERNAL_INTERRUPT,
    PIN_NMI, PIN_VIRTUAL_NMIS, PRIMARY_CR8_LOAD, PRIMARY_CR8_STORE, PRIMARY_HLT,
    PRIMARY_IO_BITMAPS, PRIMARY_MONITOR, PRIMARY_MSR_BITMAPS, PRIMARY_MTF, PRIMARY_MWAIT,
    PRIMARY_SECONDARY, SECONDARY_EPT, SECONDARY_SPP, SECONDARY_UNRESTRICTED_GUEST, SECONDARY_VPID,
};

/// The registers that tell (SDM Vol. 3D, appendix "VMX Capability Reporting Facility").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Registers {
    /// CPUID leaf 1, ECX.
    pub cpuid_1_ecx: u32,
    /// IA32_FEATURE_CONTROL.
    pub feature_control: u64,
    /// IA32_VMX_BASIC.
    pub basic: u64,
    /// IA32_VMX_TRUE_PINBASED_CTLS, or the one without "TRUE" where there is none; so the next.
    pub pin_based: u64,
    /// IA32_VMX_(TRUE_)PROCBASED_CTLS.
    pub primary: u64,
    /// IA32_VMX_PROCBASED_CTLS2.
    pub secondary: u64,
    /// IA32_VMX_(TRUE_)EXIT_CTLS.
    pub exit: u64,
    /// IA32_VMX_(TRUE_)ENTRY_CTLS.
    pub entry: u64,
    /// IA32_VMX_EPT_VPID_CAP.
    pub ept_vpid: u64,
}

/// What the hypervisor cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Missing {
    /// No VMX at all.
    #[error("this processor has no VMX (CPUID 1 ECX bit 5 is 0)")]
    Vmx,
    /// The firmware has turned VMX off for good.
    #[error(
        "VMX is turned off: IA32_FEATURE_CONTROL (MSR 3AH) is locked with bit 2 clear; turn \
         virtualization on in the firmware's setup"
    )]
    TurnedOff,
    /// A control that must be 1 may not be.
    #[error("{register} (MSR {msr:X}H) does not allow bit {bit}, {control:?}")]
    Control {
        /// Name of the register.
        register: &'static str,
        /// Its number.
        msr: u32,
        /// The control's bit.
        bit: u32,
        /// The control's name.
        control: &'static str,
    },
    /// An ability of EPT that must be there is not.
    #[error("IA32_VMX_EPT_VPID_CAP (MSR 48CH) bit {bit} is 0: no {ability}")]
    Ept {
        /// The bit.
        bit: u32,
        /// What it would mean.
        ability: &'static str,
    },
}

/// What is there, once nothing necessary is missing.
#[allow(clippy::struct_excessive_bools)] // Each is a bit of a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Bits 30:0 of IA32_VMX_BASIC.
    pub revision: u32,
    /// Control "sub-page write permissions for EPT" (secondary bit 23).
    pub sub_page_permissions: bool,
    /// Accessed and dirty flags for EPT.
    pub accessed_dirty: bool,
    /// 2 MiB and 1 GiB EPT pages.
    pub pages_2m: bool,
    /// Likewise.
    pub pages_1g: bool,
    /// Allowed settings.
    pub pin_based: Bits,
    /// Likewise.
    pub primary: Bits,
    /// Likewise.
    pub secondary: Bits,
    /// Likewise.
    pub exit: Bits,
    /// Likewise.
    pub entry: Bits,
}

impl Registers {
    /// Finds out what is there, or the first thing that is missing.
    pub fn check(&self) -> Result<Capabilities, Missing> {
        const LOCKED: u64 = 1;
        const VMX_OUTSIDE_SMX: u64 = 1 << 2;
        if self.cpuid_1_ecx & 1 << 5 == 0 {
            return Err(Missing::Vmx);
        }
        if self.feature_control & (LOCKED | VMX_OUTSIDE_SMX) == LOCKED {
            return Err(Missing::TurnedOff);
        }
        let capabilities = Capabilities {
            #[allow(clippy::cast_possible_truncation)]
            revision: self.basic as u32 & 0x7FFF_FFFF,
            sub_page_permissions: false,
            accessed_dirty: self.ept_vpid & 1 << 21 != 0,
            pages_2m: self.ept_vpid & 1 << 16 != 0,
            pages_1g: self.ept_vpid & 1 << 17 != 0,
            pin_based: Bits::from_msr(self.pin_based),
            primary: Bits::from_msr(self.primary),
            secondary: Bits::from_msr(self.secondary),
            exit: Bits::from_msr(self.exit),
            entry: Bits::from_msr(self.entry),
        };
        let pin = ("IA32_VMX_PINBASED_CTLS", 0x481, capabilities.pin_based);
        let primary = ("IA32_VMX_PROCBASED_CTLS", 0x482, capabilities.primary);
        let secondary = ("IA32_VMX_PROCBASED_CTLS2", 0x48B, capabilities.secondary);
        let exit = ("IA32_VMX_EXIT_CTLS", 0x483, capabilities.exit);
        let entry = ("IA32_VMX_ENTRY_CTLS", 0x484, capabilities.entry);
        for ((register, msr, allowed), needed, control) in [
            (pin, PIN_EXTERNAL_INTERRUPT, "external-interrupt exiting"),
            (pin, PIN_NMI, "NMI exiting"),
            (pin, PIN_VIRTUAL_NMIS, "virtual NMIs"),
            (primary, PRIMARY_HLT, "HLT exiting"),
            (primary, PRIMARY_MWAIT, "MWAIT exiting"),
            (primary, PRIMARY_CR8_LOAD, "CR8-load exiting"),
            (primary, PRIMARY_CR8_STORE, "CR8-store exiting"),
            (primary, PRIMARY_IO_BITMAPS, "use I/O bitmaps"),
            (primary, PRIMARY_MTF, "monitor trap flag"),
            (primary, PRIMARY_MSR_BITMAPS, "use MSR bitmaps"),
            (primary, PRIMARY_MONITOR, "MONITOR exiting"),
            (primary, PRIMARY_SECONDARY, "activate secondary controls"),
            (secondary, SECONDARY_EPT, "enable EPT"),
            (secondary, SECONDARY_VPID, "enable VPID"),
            (secondary, SECONDARY_UNRESTRICTED_GUEST, "unrestricted guest"),
            (exit, EXIT_HOST_64, "host address-space size"),
            (exit, EXIT_SAVE_EFER, "save IA32_EFER"),
            (exit, EXIT_LOAD_EFER, "load IA32_EFER"),
            (entry, ENTRY_LOAD_EFER, "load IA32_EFER"),
        ] {
            if !allowed.allows(needed) {
                let bit = needed.trailing_zeros();
                return Err(Missing::Control { register, msr, bit, control });
            }
        }
        for (bit, ability) in [
            (6, "4-level EPT"),
            (14, "write-back EPT tables"),
            (20, "INVEPT"),
            (26, "all-context INVEPT"),
            (32, "INVVPID"),
            (41, "single-context INVVPID"),
        ] {
            if self.ept_vpid & 1 << bit == 0 {
                return Err(Missing::Ept { bit, ability });
            }
        }
        let sub_page_permissions = capabilities.secondary.allows(SECONDARY_SPP);
        Ok(Capabilities { sub_page_permissions, ..capabilities })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Bochs 3.0 reports as `tigerlake`, as far as it matters here.
    const TIGERLAKE: Registers = Registers {
        cpuid_1_ecx: 1 << 5,
        feature_control: 0,
        basic: 1 << 55 | 4,
        pin_based: 0x7F_0000_0016,
        primary: 0xFFF9_FFFE_0400_6172,
        secondary: 0x02D7_7FFF_0000_0000,
        exit: 0x01FF_FFFF_0003_6DFB,
        entry: 0x0003_FFFF_0000_11FB,
        ept_vpid: 0xF01_06F3_4141,
    };

    #[test]
    fn a_processor_with_all_is_taken() {
        let found = TIGERLAKE.check().expect("everything is there");
        assert!(found.sub_page_permissions && found.accessed_dirty && found.pages_2m);
        assert_eq!(found.revision, 4);
        let skylake = Registers { secondary: 0x0257_7FFF_0000_0000, ..TIGERLAKE };
        let found = skylake.check().expect("SPP is not necessary");
        assert!(!found.sub_page_permissions);
    }

    #[test]
    fn what_is_missing_is_named() {
        let no_vmx = Registers { cpuid_1_ecx: 0, ..TIGERLAKE };
        assert_eq!(no_vmx.check(), Err(Missing::Vmx));
        let locked = Registers { feature_control: 1, ..TIGERLAKE };
        assert_eq!(locked.check(), Err(Missing::TurnedOff));
        let no_ept = Registers { secondary: TIGERLAKE.secondary & !(2 << 32), ..TIGERLAKE };
        let error = no_ept.check().expect_err("EPT is necessary");
        assert_eq!(
            std::string::ToString::to_string(&error),
            "IA32_VMX_PROCBASED_CTLS2 (MSR 48BH) does not allow bit 1, \"enable EPT\""
        );
        let no_invept = Registers { ept_vpid: TIGERLAKE.ept_vpid & !(1 << 20), ..TIGERLAKE };
        assert_eq!(no_invept.check(), Err(Missing::Ept { bit: 20, ability: "INVEPT" }));
    }
}

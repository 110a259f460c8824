//! What the processor says it is, and what the cases need of it.
//!
//! Unsafe because model-specific registers are read, each of which the processor has.
#![allow(unsafe_code)]

use alloc::string::{String, ToString as _};

use thiserror::Error;

use super::LEAST_WIDTH;
use crate::processor::cpuid;
use crate::processor::msr::{self, Msr};
use crate::vmx::Capabilities;
use crate::vmx::capability::Registers;

/// Why a kit does not run its cases on this processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Unfit {
    /// It has no SPP.
    #[error(
        "this processor has no sub-page write permissions (IA32_VMX_PROCBASED_CTLS2, MSR 48BH, bit \
         55 is 0)"
    )]
    NoSubPagePermissions,
    /// Physical addresses are too narrow.
    #[error("this processor has physical addresses of {0} bits, and the cases need {LEAST_WIDTH}")]
    Narrow(u32),
    /// An ability of EPT that the cases count on is missing.
    #[error(
        "IA32_VMX_EPT_VPID_CAP (MSR 48CH) bit {bit} is 0: no {ability}, which the cases count on"
    )]
    Ept {
        /// The bit.
        bit: u32,
        /// What it would mean.
        ability: &'static str,
    },
    /// It has no SMEP or no SMAP.
    #[error("this processor has no SMEP or no SMAP, which the cases use")]
    NoSupervisorChecks,
}

/// Whether the predictions are for such a processor.
pub fn fit(registers: &Registers, found: &Capabilities, width: u32) -> Result<(), Unfit> {
    if !found.sub_page_permissions {
        return Err(Unfit::NoSubPagePermissions);
    }
    if width < LEAST_WIDTH {
        return Err(Unfit::Narrow(width));
    }
    for (bit, ability) in [
        (0, "execute-only translations"),
        (16, "2 MiB pages"),
        (17, "1 GiB pages"),
        (21, "accessed and dirty flags"),
        (22, "advanced information about EPT violations"),
    ] {
        if registers.ept_vpid & 1 << bit == 0 {
            return Err(Unfit::Ept { bit, ability });
        }
    }
    Ok(())
}

/// Whether it has SMEP and SMAP (CPUID leaf 7, EBX bits 7 and 20).
pub fn has_supervisor_checks() -> bool {
    const SMEP_SMAP: u32 = 1 << 7 | 1 << 20;
    let has_leaf = cpuid::leaf(0, 0).eax >= 7;
    has_leaf && cpuid::leaf(7, 0).ebx & SMEP_SMAP == SMEP_SMAP
}

/// The name that the processor gives itself (CPUID leaves 80000002H to 80000004H).
pub fn brand() -> String {
    if cpuid::leaf(0x8000_0000, 0).eax < 0x8000_0004 {
        return "without a name".to_string();
    }
    let mut bytes = [0; 48];
    for (leaf, part) in (0x8000_0002..).zip(bytes.chunks_exact_mut(16)) {
        let found = cpuid::leaf(leaf, 0);
        for (register, bytes) in
            [found.eax, found.ebx, found.ecx, found.edx].into_iter().zip(part.chunks_exact_mut(4))
        {
            bytes.copy_from_slice(&register.to_le_bytes());
        }
    }
    printable(&bytes)
}

fn printable(bytes: &[u8]) -> String {
    let text = bytes.iter().take_while(|&&byte| byte != 0);
    let text: String = text
        .map(|&byte| if (b' '..=b'~').contains(&byte) { char::from(byte) } else { '?' })
        .collect();
    text.trim().to_string()
}

/// Revision of the microcode (SDM Vol. 3A, "Microcode Update Facilities"): CPUID puts it into the
/// register.
///
/// # Safety
/// The processor is Intel's, and so has IA32_BIOS_SIGN_ID; writing 0 to it changes nothing else.
pub unsafe fn microcode() -> u32 {
    // SAFETY: by the contract.
    unsafe { msr::write(Msr::BIOS_SIGN_ID, 0) };
    let _ = cpuid::leaf(1, 0);
    // SAFETY: by the contract.
    let value = unsafe { msr::read(Msr::BIOS_SIGN_ID) };
    u32::try_from(value >> 32).expect("half of it")
}

/// Whether the processor is Intel's.
pub fn is_intel() -> bool {
    let found = cpuid::leaf(0, 0);
    [found.ebx, found.edx, found.ecx] == [0x756E_6547, 0x4965_6E69, 0x6C65_746E]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmx::controls::SECONDARY_SPP;

    fn processor() -> Registers {
        Registers {
            cpuid_1_ecx: 1 << 5,
            basic: 1 << 55 | 4,
            pin_based: 0x7F_0000_0016,
            primary: 0xFFF9_FFFE_0400_6172,
            secondary: 0x02D7_7FFF_0000_0000,
            exit: 0x01FF_FFFF_0003_6DFB,
            entry: 0x0003_FFFF_0000_11FB,
            ept_vpid: 0xF01_06F3_4141,
            ..Registers::default()
        }
    }

    #[test]
    fn what_the_cases_count_on_is_named() {
        let judged = |registers: Registers, width| {
            let found = registers.check().expect("VMX");
            fit(&registers, &found, width)
        };
        assert_eq!(judged(processor(), 46), Ok(()));
        assert_eq!(judged(processor(), 39), Err(Unfit::Narrow(39)));
        let spp = u64::from(SECONDARY_SPP) << 32;
        let without = Registers { secondary: processor().secondary & !spp, ..processor() };
        assert_eq!(judged(without, 46), Err(Unfit::NoSubPagePermissions));
        let without = Registers { ept_vpid: processor().ept_vpid & !(1 << 22), ..processor() };
        assert!(matches!(judged(without, 46), Err(Unfit::Ept { bit: 22, .. })));
    }

    #[test]
    fn a_name_is_printable() {
        assert_eq!(printable(b"  Intel(R) \x07 x\0junk"), "Intel(R) ? x");
    }
}

//! Model-specific registers.
//!
//! Unsafe because an MSR can redirect the processor; each has its own narrow function above this.
#![allow(unsafe_code)]

use core::arch::asm;

/// Number of a model-specific register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Msr(pub u32);

#[allow(missing_docs)]
impl Msr {
    pub const TIME_STAMP_COUNTER: Self = Self(0x10);
    pub const APIC_BASE: Self = Self(0x1B);
    pub const FEATURE_CONTROL: Self = Self(0x3A);
    pub const BIOS_SIGN_ID: Self = Self(0x8B);
    pub const MTRR_CAP: Self = Self(0xFE);
    pub const MTRR_VARIABLE: Self = Self(0x200);
    pub const SYSENTER_CS: Self = Self(0x174);
    pub const SYSENTER_ESP: Self = Self(0x175);
    pub const SYSENTER_EIP: Self = Self(0x176);
    pub const MISC_ENABLE: Self = Self(0x1A0);
    pub const PAT: Self = Self(0x277);
    pub const MTRR_DEF_TYPE: Self = Self(0x2FF);
    pub const VMX_BASIC: Self = Self(0x480);
    pub const VMX_PINBASED_CTLS: Self = Self(0x481);
    pub const VMX_PROCBASED_CTLS: Self = Self(0x482);
    pub const VMX_EXIT_CTLS: Self = Self(0x483);
    pub const VMX_ENTRY_CTLS: Self = Self(0x484);
    pub const VMX_CR0_FIXED0: Self = Self(0x486);
    pub const VMX_CR0_FIXED1: Self = Self(0x487);
    pub const VMX_CR4_FIXED0: Self = Self(0x488);
    pub const VMX_CR4_FIXED1: Self = Self(0x489);
    pub const VMX_PROCBASED_CTLS2: Self = Self(0x48B);
    pub const VMX_EPT_VPID_CAP: Self = Self(0x48C);
    pub const VMX_TRUE_PINBASED_CTLS: Self = Self(0x48D);
    pub const VMX_TRUE_PROCBASED_CTLS: Self = Self(0x48E);
    pub const VMX_TRUE_EXIT_CTLS: Self = Self(0x48F);
    pub const VMX_TRUE_ENTRY_CTLS: Self = Self(0x490);
    pub const X2APIC_FIRST: Self = Self(0x800);
    pub const X2APIC_LAST: Self = Self(0x8FF);
    pub const XSS: Self = Self(0xDA0);
    pub const EFER: Self = Self(0xC000_0080);
    pub const STAR: Self = Self(0xC000_0081);
    pub const LSTAR: Self = Self(0xC000_0082);
    pub const CSTAR: Self = Self(0xC000_0083);
    pub const FMASK: Self = Self(0xC000_0084);
    pub const FS_BASE: Self = Self(0xC000_0100);
    pub const GS_BASE: Self = Self(0xC000_0101);
    pub const KERNEL_GS_BASE: Self = Self(0xC000_0102);
    pub const TSC_AUX: Self = Self(0xC000_0103);
}

/// Reads a register.
///
/// # Safety
/// The processor has it: reading another one is #GP.
pub unsafe fn read(msr: Msr) -> u64 {
    let (high, low): (u32, u32);
    // SAFETY: by the contract the register exists; none has a reading that affects memory.
    unsafe {
        asm!("rdmsr", in("ecx") msr.0, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a register.
///
/// # Safety
/// The processor has it, takes the value, and what the register does then keeps compiled code
/// running.
#[allow(clippy::cast_possible_truncation)]
pub unsafe fn write(msr: Msr, value: u64) {
    let (high, low) = ((value >> 32) as u32, value as u32);
    // SAFETY: by the contract.
    unsafe { asm!("wrmsr", in("ecx") msr.0, in("eax") low, in("edx") high, options(nostack)) };
}

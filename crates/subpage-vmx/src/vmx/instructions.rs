//! The VMX instructions, with their results.
//!
//! Unsafe because they switch what the processor is; the safe functions of
//! [`structure`](super::structure) stand above them.
#![allow(unsafe_code)]

use core::arch::asm;

use thiserror::Error;

/// How a VMX instruction failed (SDM Vol. 3C, "VMX Instruction Reference: Conventions").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum VmFail {
    /// VMfailInvalid: there is no current VMCS.
    #[error("no current VMCS")]
    Invalid,
    /// VMfailValid: the VM-instruction error field tells more.
    #[error("VM-instruction error")]
    Valid,
}

const fn result(carry: u8, zero: u8) -> Result<(), VmFail> {
    match (carry, zero) {
        (0, 0) => Ok(()),
        (0, _) => Err(VmFail::Valid),
        _ => Err(VmFail::Invalid),
    }
}

macro_rules! on_region {
    ($name:ident, $text:literal, $doc:literal) => {
        #[doc = $doc]
        ///
        /// # Safety
        /// `region` is the physical address of a 4 KiB region made for it, which nothing else
        /// touches from now on; the processor is in the mode that the instruction demands.
        pub unsafe fn $name(region: u64) -> Result<(), VmFail> {
            let (carry, zero): (u8, u8);
            // SAFETY: by the contract.
            unsafe {
                asm!(concat!($text, " [{}]"), "setc {}", "setz {}", in(reg) &raw const region,
                     out(reg_byte) carry, out(reg_byte) zero, options(nostack));
            }
            result(carry, zero)
        }
    };
}

on_region!(vmxon, "vmxon", "Enters VMX root operation.");
on_region!(vmclear, "vmclear", "Initializes a VMCS.");
on_region!(vmptrld, "vmptrld", "Makes a VMCS current.");

/// Reads a field of the current VMCS.
///
/// # Safety
/// In VMX root operation.
#[inline]
pub unsafe fn vmread(field: u32) -> Result<u64, VmFail> {
    let value: u64;
    let failed: u8;
    // SAFETY: by the contract; a field that does not exist is a failure, not a fault.
    unsafe {
        asm!("vmread {}, {}", "setbe {}", out(reg) value, in(reg) u64::from(field),
             out(reg_byte) failed, options(nostack));
    }
    // With a current VMCS, which is there after `vmptrld`, the field is to blame.
    if failed == 0 { Ok(value) } else { Err(VmFail::Valid) }
}

/// Writes a field of the current VMCS.
///
/// # Safety
/// In VMX root operation; the value keeps the hypervisor safe from its guest.
#[inline]
pub unsafe fn vmwrite(field: u32, value: u64) -> Result<(), VmFail> {
    let failed: u8;
    // SAFETY: by the contract.
    unsafe {
        asm!("vmwrite {}, {}", "setbe {}", in(reg) u64::from(field), in(reg) value,
             out(reg_byte) failed, options(nostack));
    }
    if failed == 0 { Ok(()) } else { Err(VmFail::Valid) }
}

/// What INVEPT and INVVPID invalidate for.
#[repr(C, align(16))]
struct Descriptor([u64; 2]);

/// INVEPT, all contexts (type 2): every translation that came from any EPT.
///
/// # Safety
/// In VMX root operation on a processor that has this type (IA32_VMX_EPT_VPID_CAP bits 20 and 26).
pub unsafe fn invept_all() -> Result<(), VmFail> {
    let descriptor = Descriptor([0; 2]);
    let (carry, zero): (u8, u8);
    // SAFETY: by the contract; forgetting translations is always allowed.
    unsafe {
        asm!("invept {}, [{}]", "setc {}", "setz {}", in(reg) 2_u64, in(reg) &raw const descriptor,
             out(reg_byte) carry, out(reg_byte) zero, options(nostack));
    }
    result(carry, zero)
}

/// INVVPID, single context (type 1): every linear translation of one virtual processor.
///
/// # Safety
/// In VMX root operation on a processor that has this type (IA32_VMX_EPT_VPID_CAP bits 32 and 41).
pub unsafe fn invvpid_one(vpid: u16) -> Result<(), VmFail> {
    let descriptor = Descriptor([vpid.into(), 0]);
    let (carry, zero): (u8, u8);
    // SAFETY: by the contract; forgetting translations is always allowed.
    unsafe {
        asm!("invvpid {}, [{}]", "setc {}", "setz {}", in(reg) 1_u64, in(reg) &raw const descriptor,
             out(reg_byte) carry, out(reg_byte) zero, options(nostack));
    }
    result(carry, zero)
}

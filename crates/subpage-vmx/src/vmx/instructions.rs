//! The VMX instructions, with their results.
//!
//! Unsafe because they switch what the processor is; the safe functions of
//! [`structure`](super::structure) stand above them.
#![allow(unsafe_code)]

use core::arch::{asm, naked_asm};

use thiserror::Error;

use super::field::ExitField;

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

/// The VM-instruction error field (SDM Vol. 3C, "VM Instruction Error Numbers"); 0 without a current
/// VMCS.
///
/// # Safety
/// In VMX root operation.
pub unsafe fn instruction_error() -> u64 {
    // SAFETY: by the contract.
    unsafe { vmread(ExitField::INSTRUCTION_ERROR.0) }.unwrap_or(0)
}

/// Reads a field of the current VMCS that is known to exist.
///
/// Every exit reads two dozen of them, so that the way to the panic costs no more than a jump.
///
/// # Safety
/// In VMX root operation.
///
/// # Panics
/// If the instruction fails.
#[inline]
pub unsafe fn vmread_known(field: u32) -> u64 {
    let value: u64;
    // SAFETY: by the contract; what is jumped to does not return, and needs nothing but RCX.
    unsafe {
        asm!("vmread {}, rcx", "jbe {}", out(reg) value, sym vmread_failed,
             in("rcx") u64::from(field), options(nostack));
    }
    value
}

/// Writes a field of the current VMCS that is known to exist.
///
/// # Safety
/// In VMX root operation; the value keeps the hypervisor safe from its guest.
///
/// # Panics
/// If the instruction fails.
#[inline]
pub unsafe fn vmwrite(field: u32, value: u64) {
    // SAFETY: by the contract; what is jumped to does not return, and needs nothing but RCX and RDX.
    unsafe {
        asm!("vmwrite rcx, rdx", "jbe {}", sym vmwrite_failed, in("rcx") u64::from(field),
             in("rdx") value, options(nostack));
    }
}

/// Where [`vmread_known`] ends that fails, with the field in RCX: calls [`report_vmread`].
#[unsafe(naked)]
extern "sysv64" fn vmread_failed() -> ! {
    naked_asm!("mov rdi, rcx", "and rsp, -16", "call {}", "ud2", sym report_vmread)
}

/// Where [`vmwrite`] ends that fails, with the field in RCX and the value in RDX: calls
/// [`report_vmwrite`].
#[unsafe(naked)]
extern "sysv64" fn vmwrite_failed() -> ! {
    naked_asm!("mov rdi, rcx", "mov rsi, rdx", "and rsp, -16", "call {}", "ud2",
               sym report_vmwrite)
}

extern "sysv64" fn report_vmread(field: u64) -> ! {
    panic!("VMREAD of field {field:#x} failed")
}

extern "sysv64" fn report_vmwrite(field: u64, value: u64) -> ! {
    // SAFETY: a VMX instruction has just failed, so this is VMX root operation.
    let error = unsafe { instruction_error() };
    panic!("VMWRITE of {value:#x} to field {field:#x} failed, error {error}")
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

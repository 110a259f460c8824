//! VMX operation and the current VMCS of a processor.
//!
//! Unsafe because it hands regions to the processor and writes what the processor obeys.
#![allow(unsafe_code)]

use alloc::boxed::Box;

use thiserror::Error;

use super::capability::{Capabilities, Missing, Registers};
use super::field::{ControlField, ExitField, GuestField};
use super::instructions::{self, VmFail};
use crate::processor::control::{self, CR4_VMXE};
use crate::processor::cpuid;
use crate::processor::msr::{self, Msr};
use subpage_emulate::bits::CR4_OSXSAVE;

#[repr(C, align(4096))]
struct Region([u32; 1024]);

/// Why VMX operation cannot begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum VmxError {
    /// The processor lacks something.
    #[error("{0}")]
    Missing(#[from] Missing),
    /// A VMX instruction failed.
    #[error("{0} failed: {1}")]
    Failed(&'static str, VmFail),
}

/// Reads the registers that tell what the processor can do.
pub fn read_registers() -> Registers {
    let mut registers = Registers { cpuid_1_ecx: cpuid::leaf(1, 0).ecx, ..Registers::default() };
    if !cpuid::has_vmx() {
        return registers;
    }
    // SAFETY: every processor with VMX has this register.
    registers.feature_control = unsafe { msr::read(Msr::FEATURE_CONTROL) };
    // SAFETY: every processor with VMX has this register.
    registers.basic = unsafe { msr::read(Msr::VMX_BASIC) };
    let has_true = registers.basic & 1 << 55 != 0;
    let choose = |with: Msr, without: Msr| if has_true { with } else { without };
    let pin = choose(Msr::VMX_TRUE_PINBASED_CTLS, Msr::VMX_PINBASED_CTLS);
    let primary = choose(Msr::VMX_TRUE_PROCBASED_CTLS, Msr::VMX_PROCBASED_CTLS);
    let exit = choose(Msr::VMX_TRUE_EXIT_CTLS, Msr::VMX_EXIT_CTLS);
    let entry = choose(Msr::VMX_TRUE_ENTRY_CTLS, Msr::VMX_ENTRY_CTLS);
    // SAFETY: bit 55 of IA32_VMX_BASIC says which of the two sets there is (so the next three).
    registers.pin_based = unsafe { msr::read(pin) };
    // SAFETY: as above.
    registers.primary = unsafe { msr::read(primary) };
    // SAFETY: as above.
    registers.exit = unsafe { msr::read(exit) };
    // SAFETY: as above.
    registers.entry = unsafe { msr::read(entry) };
    if registers.primary >> 63 != 0 {
        // SAFETY: "activate secondary controls" may be 1, so this register exists.
        registers.secondary = unsafe { msr::read(Msr::VMX_PROCBASED_CTLS2) };
        const EPT_OR_VPID: u64 = (1 << 1 | 1 << 5) << 32;
        if registers.secondary & EPT_OR_VPID != 0 {
            // SAFETY: it exists where EPT or VPID may be enabled.
            registers.ept_vpid = unsafe { msr::read(Msr::VMX_EPT_VPID_CAP) };
        }
    }
    registers
}

/// Enters VMX root operation and makes a fresh VMCS current on this processor.
pub fn start(capabilities: &Capabilities) -> Result<CurrentVmcs, VmxError> {
    const LOCK_AND_ENABLE: u64 = 1 | 1 << 2;
    // SAFETY: the processor has VMX (checked when the capabilities were made).
    if unsafe { msr::read(Msr::FEATURE_CONTROL) } & 1 == 0 {
        // SAFETY: not locked, and these bits exist on every processor with VMX.
        unsafe { msr::write(Msr::FEATURE_CONTROL, LOCK_AND_ENABLE) };
    }
    let osxsave = if cpuid::has_xsave() { CR4_OSXSAVE } else { 0 };
    // SAFETY: as for `fixed0` below; the four registers exist with VMX.
    let cr0_fixed0 = unsafe { msr::read(Msr::VMX_CR0_FIXED0) };
    // SAFETY: as above.
    let cr4_fixed0 = unsafe { msr::read(Msr::VMX_CR4_FIXED0) };
    // SAFETY: only adds bits that VMX operation demands, all of which the processor has.
    unsafe { control::set_cr0(control::cr0() | cr0_fixed0) };
    // SAFETY: likewise, and XSAVE where CPUID says that it exists.
    unsafe { control::set_cr4(control::cr4() | cr4_fixed0 | CR4_VMXE | osxsave) };
    // SAFETY: the region is fresh, never freed, and CR4.VMXE is set.
    unsafe { instructions::vmxon(region(capabilities.revision)) }
        .map_err(|fail| VmxError::Failed("VMXON", fail))?;
    let vmcs = region(capabilities.revision);
    // SAFETY: in VMX root operation; the region is fresh and never freed.
    unsafe { instructions::vmclear(vmcs) }.map_err(|fail| VmxError::Failed("VMCLEAR", fail))?;
    // SAFETY: the region was just initialized by VMCLEAR.
    unsafe { instructions::vmptrld(vmcs) }.map_err(|fail| VmxError::Failed("VMPTRLD", fail))?;
    Ok(CurrentVmcs { private: core::marker::PhantomData })
}

fn region(revision: u32) -> u64 {
    let region = Box::leak(Box::new(Region([0; 1024])));
    region.0[0] = revision;
    core::ptr::from_ref(region) as u64
}

/// The VMCS that is current on this processor, for good: nothing ever makes another one current.
///
/// Not `Send`: on another processor it would be another VMCS.
#[derive(Debug)]
pub struct CurrentVmcs {
    private: core::marker::PhantomData<*mut ()>,
}

impl CurrentVmcs {
    /// Reads what the processor wrote at the last exit.
    #[inline]
    pub fn exit(&self, field: ExitField) -> u64 {
        self.read(field.0)
    }

    /// Reads a field of the guest.
    #[inline]
    pub fn guest(&self, field: GuestField) -> u64 {
        self.read(field.0)
    }

    /// Writes a field of the guest.
    #[inline]
    pub fn set_guest(&mut self, field: GuestField, value: u64) {
        self.write(field.0, value);
    }

    /// Reads a control.
    pub fn control(&self, field: ControlField) -> u64 {
        self.read(field.0)
    }

    /// Writes a control or a field of the host.
    ///
    /// # Safety
    /// The value keeps the guest in its memory and the hypervisor running: see the field.
    pub unsafe fn set_control(&mut self, field: ControlField, value: u64) {
        self.write(field.0, value);
    }

    #[allow(clippy::unused_self)] // The object is the proof that there is a current VMCS.
    #[inline]
    fn read(&self, field: u32) -> u64 {
        // SAFETY: an object of this type exists in VMX root operation only.
        unsafe { instructions::vmread_known(field) }
    }

    #[allow(clippy::unused_self)] // As above.
    #[inline]
    fn write(&mut self, field: u32, value: u64) {
        // SAFETY: in VMX root operation; guest fields are harmless, of others the caller vouches.
        unsafe { instructions::vmwrite(field, value) };
    }

    /// The VM-instruction error field.
    pub fn error(&self) -> u64 {
        // SAFETY: in VMX root operation.
        unsafe { instructions::instruction_error() }
    }

    /// INVEPT for all contexts on this processor.
    pub fn invalidate_ept(&mut self) {
        invalidate_ept_here();
    }

    /// INVVPID for one virtual processor on this processor.
    pub fn invalidate_linear(&mut self, vpid: u16) {
        // SAFETY: in VMX root operation; the capability check demands this type.
        let result = unsafe { instructions::invvpid_one(vpid) };
        result.expect("single-context INVVPID is there");
    }
}

/// INVEPT for all contexts on this processor, which is in VMX root operation; for NMI handlers too.
///
/// # Panics
/// If the instruction fails, as it cannot after the capability check.
pub fn invalidate_ept_here() {
    // SAFETY: the callers hold a VMCS or were interrupted on a processor that does; the capability
    // check demands this type.
    let result = unsafe { instructions::invept_all() };
    result.expect("all-context INVEPT is there");
}

//! Changes of mode that a guest asks for and the hypervisor has to complete: writes of CR0 and CR4
//! that touch bits which VMX keeps set.
//!
//! Unsafe for the entry control "IA-32e mode guest", which has to follow the mode.
#![allow(unsafe_code)]

use subpage::address::Gpa;

use super::Vcpu;
use crate::processor::control::{CR0_CD, CR0_NE, CR0_NW, CR4_NOT_OFFERED, CR4_PCIDE, CR4_VMXE};
use crate::vmx::controls::ENTRY_IA32E;
use crate::vmx::field::{ControlField, GuestField as G};
use subpage_emulate::bits::{CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME, SEGMENT_LONG};
use subpage_emulate::guest::PhysicalMemory;

/// Bits of CR0 that are defined (SDM Vol. 3A, "Control Registers").
const CR0_DEFINED: u64 = 0xE005_003F;

/// The write is not allowed: #GP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAllowed;

impl Vcpu {
    /// Completes a MOV to CR0.
    pub fn set_cr0(&mut self, value: u64) -> Result<(), NotAllowed> {
        const ALWAYS_1: u64 = 1 << 4;
        let value = value | ALWAYS_1;
        if value & !CR0_DEFINED != 0
            || value & CR0_PG != 0 && value & CR0_PE == 0
            || value & CR0_NW != 0 && value & CR0_CD == 0
        {
            return Err(NotAllowed);
        }
        let old = self.vmcs.guest(G::CR0);
        let efer = self.vmcs.guest(G::EFER);
        let cr4 = self.vmcs.guest(G::CR4);
        if (old ^ value) & CR0_PG != 0 {
            if value & CR0_PG != 0 && efer & EFER_LME != 0 {
                if cr4 & CR4_PAE == 0 {
                    return Err(NotAllowed);
                }
                self.set_long_mode(true);
            } else if value & CR0_PG == 0 {
                if cr4 & CR4_PCIDE != 0 || self.is_64_bit_code() {
                    return Err(NotAllowed);
                }
                self.set_long_mode(false);
            }
        }
        if value & CR0_PG != 0 && cr4 & CR4_PAE != 0 && self.vmcs.guest(G::EFER) & EFER_LMA == 0 {
            self.load_pdptes()?;
        }
        self.vmcs.set_guest(G::CR0_SHADOW, value);
        // The cache belongs to the hypervisor too: it stays on.
        self.vmcs.set_guest(G::CR0, (value | CR0_NE) & !(CR0_CD | CR0_NW));
        self.vmcs.invalidate_linear(super::vpid(self.index));
        Ok(())
    }

    /// Completes a MOV to CR4.
    ///
    /// Bits that the processor does not have make the next entry fail; only those arrive here that
    /// differ from what the guest sees in those that guests do not have.
    pub fn set_cr4(&mut self, value: u64) -> Result<(), NotAllowed> {
        if value & CR4_NOT_OFFERED != 0 {
            return Err(NotAllowed);
        }
        self.vmcs.set_guest(G::CR4_SHADOW, value);
        self.vmcs.set_guest(G::CR4, value | CR4_VMXE);
        Ok(())
    }

    pub(super) fn is_64_bit_code(&self) -> bool {
        self.vmcs.guest(G::EFER) & EFER_LMA != 0
            && self.vmcs.guest(G::CS_ACCESS) & u64::from(SEGMENT_LONG) != 0
    }

    fn set_long_mode(&mut self, on: bool) {
        let efer = self.vmcs.guest(G::EFER);
        let entry = self.vmcs.control(ControlField::ENTRY);
        let (efer, entry) = if on {
            (efer | EFER_LMA, entry | u64::from(ENTRY_IA32E))
        } else {
            (efer & !EFER_LMA, entry & !u64::from(ENTRY_IA32E))
        };
        self.vmcs.set_guest(G::EFER, efer);
        // SAFETY: follows EFER.LMA, as entry checks.
        unsafe { self.vmcs.set_control(ControlField::ENTRY, entry) };
    }

    /// Completes a WRMSR to EFER.
    pub fn set_efer(&mut self, value: u64) -> Result<(), NotAllowed> {
        const SCE: u64 = 1;
        const NXE: u64 = 1 << 11;
        let old = self.vmcs.guest(G::EFER);
        if value & !(SCE | EFER_LME | EFER_LMA | NXE) != 0 {
            return Err(NotAllowed);
        }
        let paging = self.vmcs.guest(G::CR0) & CR0_PG != 0;
        if paging && (old ^ value) & EFER_LME != 0 {
            return Err(NotAllowed);
        }
        self.vmcs.set_guest(G::EFER, value & !EFER_LMA | old & EFER_LMA);
        Ok(())
    }

    /// Loads the PDPTE registers for PAE paging (SDM Vol. 3A, "PDPTE Registers").
    fn load_pdptes(&mut self) -> Result<(), NotAllowed> {
        const RESERVED: u64 = 0xFFF0_0000_0000_01E6;
        let base = self.vmcs.guest(G::CR3) & 0xFFFF_FFE0;
        let fields = [G::PDPTE0, G::PDPTE1, G::PDPTE2, G::PDPTE3];
        for (address, field) in (base..).step_by(8).zip(fields) {
            let mut bytes = [0; 8];
            let gpa = Gpa::try_new(address).map_err(|_| NotAllowed)?;
            self.machine.ram.read(gpa, &mut bytes).map_err(|_| NotAllowed)?;
            let entry = u64::from_le_bytes(bytes);
            if entry & 1 != 0 && entry & RESERVED != 0 {
                return Err(NotAllowed);
            }
            self.vmcs.set_guest(field, entry);
        }
        Ok(())
    }
}

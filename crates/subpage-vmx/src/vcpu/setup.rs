//! The VMCS of a virtual processor: what never changes, and the state after reset.
//!
//! Unsafe because host state and controls are what keeps the guest in its place.
#![allow(unsafe_code)]

use super::context::exit_address;
use crate::processor::control::{self, CR0_CD, CR0_NE, CR0_NW, CR4_NOT_OFFERED, CR4_VMXE};
use crate::processor::msr::{self, Msr};
use crate::processor::segments::{self, Bases};
use crate::vmx::controls::{
    ENTRY_LOAD_DEBUG, ENTRY_LOAD_EFER, ENTRY_LOAD_PAT, EXIT_ACKNOWLEDGE_INTERRUPT, EXIT_HOST_64,
    EXIT_LOAD_EFER, EXIT_LOAD_PAT, EXIT_SAVE_DEBUG, EXIT_SAVE_EFER, EXIT_SAVE_PAT,
    PIN_EXTERNAL_INTERRUPT, PIN_NMI, PIN_VIRTUAL_NMIS, PRIMARY_CR8_LOAD, PRIMARY_CR8_STORE,
    PRIMARY_HLT, PRIMARY_IO_BITMAPS, PRIMARY_MONITOR, PRIMARY_MSR_BITMAPS, PRIMARY_MWAIT,
    PRIMARY_SECONDARY, SECONDARY_EPT, SECONDARY_INVPCID, SECONDARY_RDTSCP, SECONDARY_SPP,
    SECONDARY_UNRESTRICTED_GUEST, SECONDARY_VPID, SECONDARY_XSAVES,
};
use crate::vmx::field::{ControlField as C, GuestField as G};
use crate::vmx::{Bitmaps, Capabilities, CurrentVmcs, TableRoots};
use subpage_emulate::guest::Segment;

/// Entry controls outside of IA-32e mode. With the debug controls, DR7 outlasts an exit.
const ENTRY: u32 = ENTRY_LOAD_DEBUG | ENTRY_LOAD_EFER | ENTRY_LOAD_PAT;

/// Fills in everything that stays the same.
///
/// # Safety
/// `bases` and `idt` are this processor's own; the tables stay allocated while the VMCS is used.
#[allow(clippy::too_many_arguments)]
pub unsafe fn prepare(
    vmcs: &mut CurrentVmcs,
    capabilities: &Capabilities,
    bases: &Bases,
    idt: u64,
    tables: &TableRoots,
    bitmaps: &Bitmaps,
    vpid: u16,
    has_devices: bool,
) {
    // Interrupts of devices go straight to who has the devices.
    let external = if has_devices { 0 } else { PIN_EXTERNAL_INTERRUPT };
    let pin = external | PIN_NMI | PIN_VIRTUAL_NMIS;
    let spp = if tables.sppt.is_some() { SECONDARY_SPP } else { 0 };
    let secondary = SECONDARY_EPT
        | SECONDARY_VPID
        | SECONDARY_UNRESTRICTED_GUEST
        | SECONDARY_RDTSCP
        | SECONDARY_INVPCID
        | SECONDARY_XSAVES
        | spp;
    let exit = EXIT_SAVE_DEBUG
        | EXIT_HOST_64
        | EXIT_ACKNOWLEDGE_INTERRUPT
        | EXIT_SAVE_EFER
        | EXIT_LOAD_EFER
        | EXIT_SAVE_PAT
        | EXIT_LOAD_PAT;
    // SAFETY: every processor with VMX has PAT and EFER.
    let pat = unsafe { msr::read(Msr::PAT) };
    // SAFETY: likewise.
    let efer = unsafe { msr::read(Msr::EFER) };
    let mut write = |field, value| {
        // SAFETY: the values of this function are those of this processor's own state, controls
        // that trap whatever could reach the hypervisor, and tables that map only the guest.
        unsafe { vmcs.set_control(field, value) };
    };
    write(C::PIN_BASED, capabilities.pin_based.adjust(pin).into());
    write(C::PRIMARY, primary(capabilities, has_devices).into());
    write(C::SECONDARY, capabilities.secondary.adjust(secondary).into());
    write(C::EXIT, capabilities.exit.adjust(exit).into());
    write(C::ENTRY, capabilities.entry.adjust(ENTRY).into());
    for (field, value) in [
        (C::EXCEPTION_BITMAP, 0),
        (C::PAGE_FAULT_MASK, 0),
        (C::PAGE_FAULT_MATCH, 0),
        (C::CR3_TARGETS, 0),
        (C::EXIT_MSR_STORES, 0),
        (C::EXIT_MSR_LOADS, 0),
        (C::ENTRY_MSR_LOADS, 0),
        (C::VPID, vpid.into()),
        (C::TSC_OFFSET, 0),
        (C::IO_BITMAP_A, bitmaps.io()[0]),
        (C::IO_BITMAP_B, bitmaps.io()[1]),
        (C::MSR_BITMAP, bitmaps.msr()),
        (C::EPTP, tables.eptp(tables.accessed_dirty)),
        (C::CR0_MASK, CR0_NE | CR0_NW | CR0_CD),
        (C::CR4_MASK, CR4_NOT_OFFERED),
        (C::HOST_ES, segments::DATA.into()),
        (C::HOST_CS, segments::CODE.into()),
        (C::HOST_SS, segments::DATA.into()),
        (C::HOST_DS, segments::DATA.into()),
        (C::HOST_FS, 0),
        (C::HOST_GS, 0),
        (C::HOST_TR, segments::TASK.into()),
        (C::HOST_PAT, pat),
        (C::HOST_EFER, efer),
        (C::HOST_CR0, control::cr0()),
        (C::HOST_CR3, control::cr3()),
        (C::HOST_CR4, control::cr4()),
        (C::HOST_FS_BASE, 0),
        (C::HOST_GS_BASE, bases.gs),
        (C::HOST_TR_BASE, bases.task),
        (C::HOST_GDTR_BASE, bases.gdt),
        (C::HOST_IDTR_BASE, idt),
        (C::HOST_SYSENTER_CS, 0),
        (C::HOST_SYSENTER_ESP, 0),
        (C::HOST_SYSENTER_EIP, 0),
        (C::HOST_RIP, exit_address()),
    ] {
        write(field, value);
    }
    if let Some(sppt) = tables.sppt {
        write(C::SPPTP, sppt.hpa().as_u64());
    }
}

/// The primary controls when nothing is pending. With devices, CR8 is the guest's: it is the task
/// priority of its APIC.
pub fn primary(capabilities: &Capabilities, has_devices: bool) -> u32 {
    let task_priority = if has_devices { 0 } else { PRIMARY_CR8_LOAD | PRIMARY_CR8_STORE };
    capabilities.primary.adjust(
        PRIMARY_HLT
            | PRIMARY_MWAIT
            | task_priority
            | PRIMARY_IO_BITMAPS
            | PRIMARY_MSR_BITMAPS
            | PRIMARY_MONITOR
            | PRIMARY_SECONDARY,
    )
}

/// Guest segment fields: selector, base, limit, access rights.
pub const SEGMENT_FIELDS: [[G; 4]; 8] = [
    [G::ES_SELECTOR, G::ES_BASE, G::ES_LIMIT, G::ES_ACCESS],
    [G::CS_SELECTOR, G::CS_BASE, G::CS_LIMIT, G::CS_ACCESS],
    [G::SS_SELECTOR, G::SS_BASE, G::SS_LIMIT, G::SS_ACCESS],
    [G::DS_SELECTOR, G::DS_BASE, G::DS_LIMIT, G::DS_ACCESS],
    [G::FS_SELECTOR, G::FS_BASE, G::FS_LIMIT, G::FS_ACCESS],
    [G::GS_SELECTOR, G::GS_BASE, G::GS_LIMIT, G::GS_ACCESS],
    [G::LDTR_SELECTOR, G::LDTR_BASE, G::LDTR_LIMIT, G::LDTR_ACCESS],
    [G::TR_SELECTOR, G::TR_BASE, G::TR_LIMIT, G::TR_ACCESS],
];

/// Writes a segment register.
pub fn set_segment(vmcs: &mut CurrentVmcs, fields: [G; 4], segment: &Segment) {
    let [selector, base, limit, access] = fields;
    vmcs.set_guest(selector, segment.selector.into());
    vmcs.set_guest(base, segment.base);
    vmcs.set_guest(limit, segment.limit.into());
    vmcs.set_guest(access, segment.access.into());
}

/// Puts the guest into the state after INIT and a start-up IPI for `page` (SDM Vol. 3A,
/// "Processor State After Reset"; VMX keeps CR4.VMXE and CR0.NE set underneath).
pub fn reset(vmcs: &mut CurrentVmcs, capabilities: &Capabilities, page: u8) {
    let data = Segment { selector: 0, base: 0, limit: 0xFFFF, access: 0x93 };
    let code = Segment {
        selector: u16::from(page) << 8,
        base: u64::from(page) << 12,
        limit: 0xFFFF,
        access: 0x9B,
    };
    let local = Segment { access: 0x82, ..data };
    let task = Segment { access: 0x8B, ..data };
    let segments = [data, code, data, data, data, data, local, task];
    for (fields, segment) in SEGMENT_FIELDS.into_iter().zip(&segments) {
        set_segment(vmcs, fields, segment);
    }
    const EXTENSION_TYPE: u64 = 1 << 4;
    for (field, value) in [
        (G::LINK_POINTER, u64::MAX),
        (G::DEBUGCTL, 0),
        (G::PAT, 0x0007_0406_0007_0406),
        (G::EFER, 0),
        (G::PDPTE0, 0),
        (G::PDPTE1, 0),
        (G::PDPTE2, 0),
        (G::PDPTE3, 0),
        (G::ENTRY_EVENT, 0),
        (G::GDTR_BASE, 0),
        (G::GDTR_LIMIT, 0xFFFF),
        (G::IDTR_BASE, 0),
        (G::IDTR_LIMIT, 0xFFFF),
        (G::INTERRUPTIBILITY, 0),
        (G::ACTIVITY, 0),
        (G::SYSENTER_CS, 0),
        (G::SYSENTER_ESP, 0),
        (G::SYSENTER_EIP, 0),
        (G::CR0, EXTENSION_TYPE | CR0_NE),
        (G::CR0_SHADOW, EXTENSION_TYPE | CR0_CD | CR0_NW),
        (G::CR3, 0),
        (G::CR4, CR4_VMXE),
        (G::CR4_SHADOW, 0),
        (G::DR7, 0x400),
        (G::RSP, 0),
        (G::RIP, 0),
        (G::RFLAGS, 2),
        (G::PENDING_DEBUG, 0),
    ] {
        vmcs.set_guest(field, value);
    }
    let entry = capabilities.entry.adjust(ENTRY);
    // SAFETY: not IA-32e mode, which is what EFER and CR0 above say.
    unsafe { vmcs.set_control(C::ENTRY, entry.into()) };
}

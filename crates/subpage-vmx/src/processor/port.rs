//! I/O ports.
//!
//! Unsafe because writing to a port can do anything that a device can do to memory; the functions
//! here are for the ports that they name.
#![allow(unsafe_code)]

use core::arch::asm;

use crate::devices::{Own, PortAccess, Verdict, Width};

/// Writes a byte.
///
/// # Safety
/// The device behind the port does not touch memory that Rust owns.
pub unsafe fn write(port: u16, value: u8) {
    // SAFETY: the caller vouches for the device.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// Reads a byte.
///
/// # Safety
/// The device behind the port does not touch memory that Rust owns.
pub unsafe fn read(port: u16) -> u8 {
    let value: u8;
    // SAFETY: the caller vouches for the device.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

/// Reads ports for a guest that has the devices.
///
/// # Panics
/// If one of them is the hypervisor's.
pub fn read_for_guest(access: PortAccess, own: &Own) -> u32 {
    assert!(access.verdict(None, own) == Verdict::Pass, "{access:x?} is not the guest's");
    let port = access.port;
    match access.width {
        // SAFETY: the device is the guest's, and what it does to memory is the guest's as well.
        Width::Byte => unsafe { read(port) }.into(),
        Width::Word => {
            let value: u16;
            // SAFETY: likewise.
            unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack)) };
            value.into()
        }
        Width::Double => {
            let value: u32;
            // SAFETY: likewise.
            unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) };
            value
        }
    }
}

/// Writes ports for a guest that has the devices; of `value` as much as the access is wide.
///
/// # Panics
/// If one of them is the hypervisor's, or the value resets or suspends the machine.
#[allow(clippy::cast_possible_truncation)] // The low part is what is written.
pub fn write_for_guest(access: PortAccess, value: u32, own: &Own) {
    let verdict = access.verdict(Some(value), own);
    assert!(verdict == Verdict::Pass, "{value:#x} to {access:x?}: {verdict:?}");
    let port = access.port;
    match access.width {
        // SAFETY: the device is the guest's, and what it does to memory is the guest's as well.
        Width::Byte => unsafe { write(port, value as u8) },
        Width::Word => {
            let value = value as u16;
            // SAFETY: likewise.
            unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) };
        }
        Width::Double => {
            // SAFETY: likewise.
            unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) };
        }
    }
}

/// Resets the machine by the ways there are; returns where none of them works.
pub fn reset_machine() {
    for (port, value) in [(0xCF9, 2), (0xCF9, 6), (0x64, 0xFE)] {
        // SAFETY: nothing is done after it that needs the memory.
        unsafe { write(port, value) };
    }
}

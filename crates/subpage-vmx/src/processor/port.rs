//! I/O ports.
//!
//! Unsafe because writing to a port can do anything that a device can do to memory; the functions
//! here are for the ports that they name.
#![allow(unsafe_code)]

use core::arch::asm;

use crate::devices::{RESET_PORTS, is_reset};

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

/// Reads a port by which the machine can be reset, on behalf of a guest that has the devices.
///
/// # Panics
/// If it is another one.
pub fn read_for_guest(port: u16) -> u8 {
    assert!(RESET_PORTS.contains(&port), "port {port:#x} is the guest's");
    // SAFETY: a status register.
    unsafe { read(port) }
}

/// Writes such a port; not what resets the machine.
///
/// # Panics
/// If it is another one, or the value would.
pub fn write_for_guest(port: u16, value: u8) {
    assert!(RESET_PORTS.contains(&port) && !is_reset(port, value), "{value:#x} to port {port:#x}");
    // SAFETY: commands to the keyboard, A20, the kind of a reset that does not happen yet: the guest has
    // these devices, and none of them writes to memory.
    unsafe { write(port, value) };
}

/// Resets the machine by the ways there are; returns where none of them works.
pub fn reset_machine() {
    for (port, value) in [(0xCF9, 2), (0xCF9, 6), (0x64, 0xFE)] {
        // SAFETY: nothing is done after it that needs the memory.
        unsafe { write(port, value) };
    }
}

//! I/O ports.
//!
//! Unsafe because writing to a port can do anything that a device can do to memory; the functions
//! here are for the ports that they name.
#![allow(unsafe_code)]

use core::arch::asm;

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

//! Output to I/O ports.
//!
//! Unsafe: an instruction.

use core::arch::asm;

/// Writes a byte to a port that has no effect on memory.
pub(crate) fn write(port: u16, byte: u8) {
    // SAFETY: the ports of a guest are the hypervisor's, which touches none of the guest's memory.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") byte, options(nomem, nostack, preserves_flags));
    }
}

/// HLT.
pub(super) fn halt() {
    // SAFETY: waits; touches no memory.
    unsafe { asm!("hlt", options(nomem, nostack, preserves_flags)) }
}

//! What a running kernel's memory is read through.

use crate::address::RuntimeAddress;

/// Memory of a running guest by its linear addresses. It can change at any time, and its owner may
/// have put anything there.
pub trait Memory {
    /// Fills the buffer from an address on; false if some byte is not there, and then the buffer holds
    /// anything.
    fn read(&self, address: RuntimeAddress, buffer: &mut [u8]) -> bool;
}

/// A little-endian number of eight bytes.
pub(crate) fn long(memory: &dyn Memory, address: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    memory.read(RuntimeAddress::new(address), &mut bytes).then(|| u64::from_le_bytes(bytes))
}

/// A little-endian number of four bytes.
pub(crate) fn word(memory: &dyn Memory, address: u64) -> Option<u32> {
    let mut bytes = [0; 4];
    memory.read(RuntimeAddress::new(address), &mut bytes).then(|| u32::from_le_bytes(bytes))
}

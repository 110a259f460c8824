//! Guest memory for the emulation of stores.

use std::sync::atomic::{AtomicU64, Ordering};

use subpage::address::Gpa;
use subpage_emulate::guest::{NotMemory, PhysicalMemory};
use vm_memory::{
    Bytes as _, GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _, VolatileMemory as _,
};

use super::Ram;

impl PhysicalMemory for Ram {
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), NotMemory> {
        let at = GuestAddress(gpa.as_u64());
        // An entry of a page table, most often: read with one load.
        if let Ok(word) = <&mut [u8; 8]>::try_from(&mut *buffer)
            && gpa.as_u64().is_multiple_of(8)
        {
            *word = self.load(gpa).ok_or(NotMemory)?.to_ne_bytes();
            return Ok(());
        }
        self.direct.read_slice(buffer, at).map_err(|_| NotMemory)
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), NotMemory> {
        let at = GuestAddress(gpa.as_u64());
        if !self.direct.check_range(at, bytes.len()) {
            return Err(NotMemory);
        }
        self.direct.write_slice(bytes, at).map_err(|_| NotMemory)
    }

    fn set_bits(&self, gpa: Gpa, current: u64, bits: u64) -> Result<Result<(), u64>, NotMemory> {
        let at = GuestAddress(gpa.as_u64());
        let (region, offset) = self.direct.to_region_addr(at).ok_or(NotMemory)?;
        let slice = region.get_slice(offset, 8).map_err(|_| NotMemory)?;
        let word = slice.get_atomic_ref::<AtomicU64>(0).map_err(|_| NotMemory)?;
        let new = current | bits;
        Ok(word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire).map(drop))
    }
}

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
        // Entries of page tables and instructions, most often: an entry is read with one load.
        if buffer.len() <= SMALL {
            return self.read_words(gpa, buffer).ok_or(NotMemory);
        }
        let at = GuestAddress(gpa.as_u64());
        self.direct.read_slice(buffer, at).map_err(|_| NotMemory)
    }

    fn read_word(&self, gpa: Gpa) -> Result<u64, NotMemory> {
        self.load(gpa).ok_or(NotMemory)
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

/// Most bytes that are read word by word.
const SMALL: usize = 16;

impl Ram {
    /// Reads by aligned words of eight bytes; `None` if some byte is no memory.
    fn read_words(&self, gpa: Gpa, buffer: &mut [u8]) -> Option<()> {
        let mut at = gpa.as_u64();
        let mut rest = buffer;
        while !rest.is_empty() {
            let (word, skipped) = (at & !7, (at & 7) as usize);
            let bytes = self.load(Gpa::try_new(word).ok()?)?.to_ne_bytes();
            let (now, later) = rest.split_at_mut(rest.len().min(8 - skipped));
            now.copy_from_slice(&bytes[skipped..skipped + now.len()]);
            at = word + 8;
            rest = later;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MIN_BYTES;

    /// Whatever the alignment and length, the same bytes; and none beyond the end.
    #[test]
    fn words_and_slices_are_the_same_memory() {
        let ram = Ram::new(MIN_BYTES).expect("memory");
        let bytes: Vec<u8> = (0..64).collect();
        ram.write(Gpa::new(0x1ff0), &bytes).expect("memory");
        for at in 0..16 {
            for length in 0..=40 {
                let mut read = vec![0; length];
                ram.read(Gpa::new(0x1ff0 + at as u64), &mut read).expect("memory");
                assert_eq!(read, bytes[at..at + length], "{length} bytes at {at}");
            }
        }
        let mut read = [0; 12];
        ram.read(Gpa::new(MIN_BYTES - 12), &mut read).expect("the last bytes");
        for at in [MIN_BYTES - 11, MIN_BYTES, 1 << 40] {
            assert_eq!(ram.read(Gpa::new(at), &mut read), Err(NotMemory), "{at:#x}");
        }
    }
}

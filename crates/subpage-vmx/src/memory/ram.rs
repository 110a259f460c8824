//! The guest's memory, as the hypervisor reaches it.
//!
//! Unsafe because it is reached by physical addresses. No reference into it ever exists: guests
//! write it at any moment, so every access is volatile or atomic.
#![allow(unsafe_code)]

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use subpage::address::{Gpa, Hpa};

use crate::boot::information::MOST;
use subpage_emulate::guest::{NotMemory, PhysicalMemory};

/// Most runs of memory.
const MOST_RUNS: usize = MOST + 4;

/// The guest's memory: one run of host memory that it sees from address 0 on, or runs that it sees where
/// they are.
#[derive(Debug, Clone)]
pub struct GuestRam {
    /// Guest-physical, ascending.
    runs: ArrayVec<Range<u64>, MOST_RUNS>,
    /// How far behind its guest-physical address each byte lies.
    distance: u64,
}

impl GuestRam {
    /// Takes a run of memory.
    ///
    /// # Safety
    /// It is usable RAM, mapped at the same addresses forever, and only guests and this object
    /// use it.
    pub unsafe fn new(memory: Range<u64>) -> Self {
        let runs = core::iter::once(0..memory.end - memory.start).collect();
        Self { runs, distance: memory.start }
    }

    /// Takes runs that the guest sees where they are: ascending, of whole pages.
    ///
    /// # Safety
    /// As for [`new`](Self::new).
    pub const unsafe fn in_place(runs: ArrayVec<Range<u64>, MOST_RUNS>) -> Self {
        Self { runs, distance: 0 }
    }

    /// How many bytes.
    pub fn bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.end - run.start).sum()
    }

    /// Where a guest-physical address lies, if it is memory.
    pub fn host(&self, gpa: Gpa) -> Option<Hpa> {
        let gpa = gpa.as_u64();
        self.holds(gpa, gpa.checked_add(1)?).then(|| Hpa::new(self.distance + gpa))
    }

    fn holds(&self, start: u64, end: u64) -> bool {
        self.runs.iter().any(|run| run.start <= start && end <= run.end)
    }

    /// Pointer to a run of bytes that lies in the memory.
    fn pointer(&self, gpa: Gpa, length: usize) -> Result<*mut u8, NotMemory> {
        let end = gpa.as_u64().checked_add(length as u64).ok_or(NotMemory)?;
        if !self.holds(gpa.as_u64(), end) {
            return Err(NotMemory);
        }
        Ok((self.distance + gpa.as_u64()) as usize as *mut u8)
    }
}

/// Most bytes that are read word by word: as many as an instruction or a descriptor may have.
const SMALL: usize = 16;

impl GuestRam {
    /// Reads by aligned words of eight bytes, so that an entry of a page table is read by one load: half
    /// of an old one and half of a new one would be neither. Memory ends with a page, so with a word.
    fn read_small(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), NotMemory> {
        if gpa.as_u64().is_multiple_of(8) && buffer.len().is_multiple_of(8) {
            for (word, bytes) in (gpa.as_u64()..).step_by(8).zip(buffer.chunks_exact_mut(8)) {
                let word = self.read_word(Gpa::try_new(word).map_err(|_| NotMemory)?)?;
                bytes.copy_from_slice(&word.to_le_bytes());
            }
            return Ok(());
        }
        let mut word = gpa.as_u64() & !7;
        let mut value = self.read_word(Gpa::new(word))? >> (8 * (gpa.as_u64() & 7));
        let mut left = 8 - (gpa.as_u64() & 7);
        for byte in buffer {
            if left == 0 {
                word += 8;
                value = self.read_word(Gpa::try_new(word).map_err(|_| NotMemory)?)?;
                left = 8;
            }
            *byte = value.to_le_bytes()[0];
            value >>= 8;
            left -= 1;
        }
        Ok(())
    }
}

#[allow(clippy::cast_ptr_alignment)] // Checked where it is done.
impl PhysicalMemory for GuestRam {
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), NotMemory> {
        if (1..=SMALL).contains(&buffer.len()) {
            return self.read_small(gpa, buffer);
        }
        let pointer = self.pointer(gpa, buffer.len())?;
        for (at, byte) in buffer.iter_mut().enumerate() {
            // SAFETY: inside the memory; volatile, since the guest may write meanwhile.
            *byte = unsafe { pointer.wrapping_add(at).read_volatile() };
        }
        Ok(())
    }

    #[inline]
    fn read_word(&self, gpa: Gpa) -> Result<u64, NotMemory> {
        if !gpa.as_u64().is_multiple_of(8) {
            return Err(NotMemory);
        }
        let pointer = self.pointer(gpa, 8)?;
        // SAFETY: eight aligned bytes inside the memory, accessed atomically.
        let word = unsafe { &*pointer.cast::<AtomicU64>() };
        Ok(word.load(Ordering::SeqCst))
    }

    #[inline]
    fn read_code(&self, gpa: Gpa) -> Result<u128, NotMemory> {
        let shift = 8 * (gpa.as_u64() & 7);
        let first = gpa.as_u64() & !7;
        let word =
            |index: u64| self.read_word(Gpa::try_new(first + 8 * index).map_err(|_| NotMemory)?);
        let low = u128::from(word(0)?) | u128::from(word(1)?) << 64;
        if shift == 0 {
            return Ok(low);
        }
        Ok(low >> shift | u128::from(word(2)?) << (128 - shift))
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), NotMemory> {
        let pointer = self.pointer(gpa, bytes.len())?;
        for (at, &byte) in bytes.iter().enumerate() {
            // SAFETY: inside the memory; volatile, since the guest may read meanwhile.
            unsafe { pointer.wrapping_add(at).write_volatile(byte) };
        }
        Ok(())
    }

    fn set_bits(&self, gpa: Gpa, current: u64, bits: u64) -> Result<Result<(), u64>, NotMemory> {
        if !gpa.as_u64().is_multiple_of(8) {
            return Err(NotMemory);
        }
        let pointer = self.pointer(gpa, 8)?.cast::<AtomicU64>();
        // SAFETY: eight aligned bytes inside the memory, accessed atomically.
        let word = unsafe { &*pointer };
        let new = current | bits;
        let result = word.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst);
        Ok(result.map(|_| ()))
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn runs_in_place_are_what_they_say() {
        // SAFETY: nothing is accessed.
        let ram = unsafe { GuestRam::in_place([0..0x2000, 0x5000..0x6000].into_iter().collect()) };
        assert_eq!(ram.bytes(), 0x3000);
        for (gpa, there) in
            [(0, true), (0x1FFF, true), (0x2000, false), (0x5000, true), (0x6000, false)]
        {
            let host = there.then_some(Hpa::new(gpa));
            assert_eq!(ram.host(Gpa::new(gpa)), host, "{gpa:#x}");
        }
        assert!(ram.pointer(Gpa::new(0x1FF8), 9).is_err(), "from one run to the next");
        assert!(ram.pointer(Gpa::MAX, usize::MAX).is_err());
    }

    /// Whatever the alignment and the length, what is read is what is there, and nothing beyond the
    /// end.
    #[test]
    fn reads_of_all_lengths_and_alignments() {
        let words: Vec<u64> = (1..=8).map(|n: u64| n.wrapping_mul(0x0123_4567_89AB_CDEF)).collect();
        let words = words.leak();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let first = words.as_ptr().expose_provenance() as u64;
        // SAFETY: the words are leaked, and nothing else uses them from here on.
        let ram = unsafe { GuestRam::new(first..first + 64) };
        for at in 0..=64 {
            let gpa = Gpa::new(at as u64);
            for length in 0..=40 {
                let mut read = std::vec![0; length];
                let expected = bytes.get(at..at + length);
                let result = ram.read(gpa, &mut read);
                assert_eq!(result.ok().map(|()| &read[..]), expected, "{length} from {at}");
            }
            let expected = bytes.get(at..at + 16).and_then(|bytes| bytes.first_chunk());
            assert_eq!(
                ram.read_code(gpa).ok().as_ref().map(|code| code.to_le_bytes()).as_ref(),
                expected
            );
            let word = bytes.get(at..at + 8).filter(|_| at.is_multiple_of(8));
            assert_eq!(
                ram.read_word(gpa).ok().map(u64::to_le_bytes).as_ref().map(|w| &w[..]),
                word
            );
        }
    }
}

//! Guest memory for the emulation of stores, by guest-physical addresses.

use std::sync::atomic::Ordering;

use subpage::address::Gpa;
use subpage_emulate::guest::{NotMemory, PhysicalMemory};

use super::Memory;

impl PhysicalMemory for Memory {
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), NotMemory> {
        self.in_parts(gpa, buffer.len(), |memory, place, from, to| {
            let raw = memory.alias(place, (to - from) as u64).ok_or(NotMemory)?;
            raw.read(&mut buffer[from..to]);
            Ok(())
        })
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), NotMemory> {
        self.in_parts(gpa, bytes.len(), |memory, place, from, to| {
            memory.alias(place, (to - from) as u64).map(drop).ok_or(NotMemory)
        })?;
        self.in_parts(gpa, bytes.len(), |memory, place, from, to| {
            let raw = memory.alias(place, (to - from) as u64).ok_or(NotMemory)?;
            raw.write(&bytes[from..to]);
            Ok(())
        })
    }

    fn set_bits(&self, gpa: Gpa, current: u64, bits: u64) -> Result<Result<(), u64>, NotMemory> {
        let (place, _) = self.place(gpa.as_u64()).ok_or(NotMemory)?;
        let word = self.alias(place, 8).ok_or(NotMemory)?.word();
        let new = current | bits;
        Ok(word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire).map(drop))
    }
}

impl Memory {
    /// Calls `each` with the place of each part of some bytes, and which of the bytes it is.
    fn in_parts(
        &self,
        gpa: Gpa,
        length: usize,
        mut each: impl FnMut(&Self, u64, usize, usize) -> Result<(), NotMemory>,
    ) -> Result<(), NotMemory> {
        let mut from = 0;
        while from < length {
            let (place, have) = self.place(gpa.as_u64() + from as u64).ok_or(NotMemory)?;
            let to = usize::try_from(have).map_or(length, |have| length.min(from + have));
            each(self, place, from, to)?;
            from = to;
        }
        Ok(())
    }
}

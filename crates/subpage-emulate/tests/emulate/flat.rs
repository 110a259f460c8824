//! A guest's memory in a vector: for the tests of emulation, and for those of what stands on it.

use std::cell::RefCell;

use subpage::address::Gpa;
use subpage_emulate::guest::{NotMemory, PhysicalMemory};

/// Memory from guest-physical address 0 on.
pub(crate) struct Flat(pub RefCell<Vec<u8>>);

impl Flat {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(RefCell::new(vec![0; bytes]))
    }

    pub(crate) fn put(&self, at: u64, bytes: &[u8]) {
        self.write(Gpa::new(at), bytes).unwrap();
    }

    pub(crate) fn get<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.read(Gpa::new(at), &mut bytes).unwrap();
        bytes
    }
}

fn span(at: Gpa, length: usize, limit: usize) -> Result<std::ops::Range<usize>, NotMemory> {
    let start = usize::try_from(at.as_u64()).map_err(|_| NotMemory)?;
    let end = start.checked_add(length).ok_or(NotMemory)?;
    if end <= limit { Ok(start..end) } else { Err(NotMemory) }
}

impl PhysicalMemory for Flat {
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), NotMemory> {
        let memory = self.0.borrow();
        buffer.copy_from_slice(&memory[span(gpa, buffer.len(), memory.len())?]);
        Ok(())
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), NotMemory> {
        let mut memory = self.0.borrow_mut();
        let span = span(gpa, bytes.len(), memory.len())?;
        memory[span].copy_from_slice(bytes);
        Ok(())
    }

    fn set_bits(&self, gpa: Gpa, current: u64, bits: u64) -> Result<Result<(), u64>, NotMemory> {
        assert_eq!(gpa.as_u64() % 8, 0, "locked operations are on aligned memory");
        let mut now = [0; 8];
        self.read(gpa, &mut now)?;
        let now = u64::from_le_bytes(now);
        if now != current {
            return Ok(Err(now));
        }
        self.write(gpa, &(now | bits).to_le_bytes())?;
        Ok(Ok(()))
    }
}

//! Guest-physical memory, to be read and written by the hypervisor.

use subpage::address::Gpa;

/// Some of the bytes are not memory of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotMemory;

/// The guest's memory. Other virtual processors write it at any moment, so what is read once must
/// not be read again to be checked.
///
/// These are the hypervisor's own accesses: a caller that writes on behalf of the guest has asked the
/// domain first.
pub trait PhysicalMemory {
    /// Copies `buffer.len()` bytes from `gpa`; all or an error.
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), NotMemory>;

    /// The eight bytes at `gpa`, a multiple of 8, read with one load: half of an old page-table entry
    /// and half of a new one would be neither.
    ///
    /// The default is for memories whose [`read`](Self::read) reads eight aligned bytes so.
    fn read_word(&self, gpa: Gpa) -> Result<u64, NotMemory> {
        let mut bytes = [0; 8];
        self.read(gpa, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The sixteen bytes from `gpa` on, all in one page, the first one lowest.
    fn read_code(&self, gpa: Gpa) -> Result<u128, NotMemory> {
        let mut bytes = [0; 16];
        self.read(gpa, &mut bytes)?;
        Ok(u128::from_le_bytes(bytes))
    }

    /// Copies `bytes` to `gpa`; all or none.
    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), NotMemory>;

    /// Sets `bits` in the eight bytes at `gpa`, a multiple of 8, as one locked operation, if they
    /// still are `current`; the inner error is what they are instead.
    fn set_bits(&self, gpa: Gpa, current: u64, bits: u64) -> Result<Result<(), u64>, NotMemory>;
}

impl<M: PhysicalMemory + ?Sized> PhysicalMemory for &M {
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), NotMemory> {
        (**self).read(gpa, buffer)
    }

    fn read_word(&self, gpa: Gpa) -> Result<u64, NotMemory> {
        (**self).read_word(gpa)
    }

    fn read_code(&self, gpa: Gpa) -> Result<u128, NotMemory> {
        (**self).read_code(gpa)
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), NotMemory> {
        (**self).write(gpa, bytes)
    }

    fn set_bits(&self, gpa: Gpa, current: u64, bits: u64) -> Result<Result<(), u64>, NotMemory> {
        (**self).set_bits(gpa, current, bits)
    }
}

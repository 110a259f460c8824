//! Accesses that carry data: bytes move only once the whole access may continue.

use subpage::frames::TableFrames;

use crate::access::{Access, AccessKind};
use crate::exit::VmExit;
use crate::features::Roots;
use crate::memory::GuestMemory;
use crate::vcpu::{Translation, Vcpu};

impl Vcpu {
    /// Reads the bytes of an access that stores nothing.
    ///
    /// # Panics
    /// If `bytes` is not as long as the access, or the access is a write.
    pub fn read<F: TableFrames, M: GuestMemory>(
        &mut self,
        roots: &Roots,
        frames: &mut F,
        memory: &M,
        access: &Access,
        bytes: &mut [u8],
    ) -> Result<(), VmExit> {
        assert!(!access.kind().is_write(), "a write is performed as a read");
        assert_eq!(bytes.len(), access.length(), "one byte of buffer per byte of access");
        let at = self.access(roots, frames, access)?;
        load(memory, access, at, bytes);
        Ok(())
    }

    /// Stores `bytes`; on an exit none of them.
    ///
    /// # Panics
    /// If `bytes` is not as long as the access, or the access is not a write.
    pub fn write<F: TableFrames, M: GuestMemory>(
        &mut self,
        roots: &Roots,
        frames: &mut F,
        memory: &mut M,
        access: &Access,
        bytes: &[u8],
    ) -> Result<(), VmExit> {
        assert!(access.kind().is_write(), "a read is performed as a write");
        assert_eq!(bytes.len(), access.length(), "one byte of data per byte of access");
        let at = self.access(roots, frames, access)?;
        store(memory, access, at, bytes);
        Ok(())
    }

    /// Loads the bytes of a read-modify-write, lets `change` edit them, and stores them; on an exit
    /// `change` is not called.
    ///
    /// # Panics
    /// If the access is not a read-modify-write.
    pub fn modify<F: TableFrames, M: GuestMemory>(
        &mut self,
        roots: &Roots,
        frames: &mut F,
        memory: &mut M,
        access: &Access,
        change: impl FnOnce(&mut [u8]),
    ) -> Result<(), VmExit> {
        assert_eq!(
            access.kind(),
            AccessKind::ReadModifyWrite,
            "another access is performed as one"
        );
        let at = self.access(roots, frames, access)?;
        let mut buffer = [0; 64];
        let bytes = &mut buffer[..access.length()];
        load(memory, access, at, bytes);
        change(bytes);
        store(memory, access, at, bytes);
        Ok(())
    }

    /// Stores `bytes` with one instruction that makes several accesses (FXSAVE, XSAVE).
    ///
    /// All parts are checked before the first byte is stored, unless
    /// [`parts_not_atomic`](crate::Deviations::parts_not_atomic) is on. The architecture promises neither,
    /// so no test of an engine may rest on it.
    ///
    /// # Panics
    /// If the parts' lengths do not add up to that of `bytes`, or a part is not a write.
    pub fn write_parts<F: TableFrames, M: GuestMemory>(
        &mut self,
        roots: &Roots,
        frames: &mut F,
        memory: &mut M,
        parts: &[Access],
        bytes: &[u8],
    ) -> Result<(), VmExit> {
        let length: usize = parts.iter().map(Access::length).sum();
        assert_eq!(bytes.len(), length, "one byte of data per byte of access");
        if !self.deviations().parts_not_atomic {
            for part in parts {
                self.access(roots, frames, part)?;
            }
        }
        let mut rest = bytes;
        for part in parts {
            let (now, later) = rest.split_at(part.length());
            self.write(roots, frames, memory, part, now)?;
            rest = later;
        }
        Ok(())
    }
}

fn load<M: GuestMemory>(memory: &M, access: &Access, at: Translation, bytes: &mut [u8]) {
    let (first, second) = bytes.split_at_mut(usize::from(access.first().length()));
    memory.read(at.first, first);
    if let Some(hpa) = at.second {
        memory.read(hpa, second);
    }
}

fn store<M: GuestMemory>(memory: &mut M, access: &Access, at: Translation, bytes: &[u8]) {
    let (first, second) = bytes.split_at(usize::from(access.first().length()));
    memory.write(at.first, first);
    if let Some(hpa) = at.second {
        memory.write(hpa, second);
    }
}

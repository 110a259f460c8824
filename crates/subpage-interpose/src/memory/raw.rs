//! Bytes of this process by their addresses.
//!
//! Unsafe because addresses are numbers. Guest memory is reached by single loads and stores; others
//! write it at any time.
#![allow(unsafe_code)]

use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use subpage_emulate::Window;

fn pointer<T>(at: u64) -> *mut T {
    ptr::with_exposed_provenance_mut(usize::try_from(at).expect("64 bits"))
}

/// Bytes that may be read, or read and written, from an address on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Raw {
    at: u64,
    bytes: u64,
}

impl Raw {
    /// These bytes.
    ///
    /// # Safety
    /// As long as the value is used they are mapped, readable, and writable if they are written by it;
    /// and no Rust reference covers them but for bytes that are only read.
    pub(crate) const unsafe fn new(at: u64, bytes: u64) -> Self {
        Self { at, bytes }
    }

    /// The first address.
    pub(crate) const fn at(self) -> u64 {
        self.at
    }

    /// Reads all of them, in words where that is possible: an entry of a page table is whole.
    pub(crate) fn read(self, buffer: &mut [u8]) {
        assert_eq!(buffer.len() as u64, self.bytes, "as many bytes as there are");
        let mut at = self.at;
        let mut rest = buffer;
        while !rest.is_empty() {
            if at.is_multiple_of(8) && rest.len() >= 8 {
                let (now, later) = rest.split_at_mut(8);
                now.copy_from_slice(
                    &Self { at, bytes: 8 }.word().load(Ordering::Acquire).to_ne_bytes(),
                );
                (at, rest) = (at + 8, later);
            } else {
                // SAFETY: one of the bytes, which are readable.
                rest[0] = unsafe { pointer::<u8>(at).read_volatile() };
                (at, rest) = (at + 1, &mut rest[1..]);
            }
        }
    }

    /// Writes all of them.
    pub(crate) fn write(self, bytes: &[u8]) {
        assert_eq!(bytes.len() as u64, self.bytes, "as many bytes as there are");
        let mut at = self.at;
        let mut rest = bytes;
        while !rest.is_empty() {
            if at.is_multiple_of(8) && rest.len() >= 8 {
                let (now, later) = rest.split_at(8);
                let value = u64::from_ne_bytes(now.try_into().expect("eight bytes"));
                Self { at, bytes: 8 }.word().store(value, Ordering::Release);
                (at, rest) = (at + 8, later);
            } else {
                // SAFETY: one of the bytes, which are writable.
                unsafe { pointer::<u8>(at).write_volatile(rest[0]) };
                (at, rest) = (at + 1, &rest[1..]);
            }
        }
    }

    /// The eight bytes as one word.
    ///
    /// # Panics
    /// If they are not eight at a multiple of 8.
    pub(crate) fn word(self) -> &'static AtomicU64 {
        assert!(self.bytes == 8 && self.at.is_multiple_of(8), "a word lies at a multiple of 8");
        // SAFETY: eight readable bytes that others may write, and that are written if they are writable.
        // The reference does not outlive the calls in this crate, which hold what keeps them mapped.
        unsafe { AtomicU64::from_ptr(pointer(self.at)) }
    }

    /// A window on all of them.
    pub(crate) fn with_window<T>(self, work: impl FnOnce(&mut Window<'_>) -> T) -> T {
        let length = usize::try_from(self.bytes).expect("64 bits");
        // SAFETY: the bytes are writable and no reference covers them.
        work(&mut unsafe { Window::new(pointer(self.at), length) })
    }
}

/// Bytes of this process that an instruction of it reads: it is stopped at that instruction, which
/// could read them.
pub(crate) fn read_own(at: u64, buffer: &mut [u8]) {
    // SAFETY: this is only asked for what the stopped instruction reads, or for that instruction
    // itself.
    unsafe { Raw::new(at, buffer.len() as u64) }.read(buffer);
}

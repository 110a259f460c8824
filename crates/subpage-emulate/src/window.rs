//! The bytes on which an instruction's store is done.
//!
//! Unsafe because a window is memory that the guest writes too, which no Rust reference may cover:
//! it is a raw pointer, and stores to it are single instructions.
#![allow(unsafe_code)]

use core::arch::asm;
use core::marker::PhantomData;

use super::MAX_STORE_BYTES;

/// Alignment that a destination keeps in its window: nothing in the allow list asks for more.
const ALIGNMENT: usize = 64;

/// The destination of a store, in the hypervisor's address space.
#[derive(Debug)]
pub struct Window<'a> {
    first: *mut u8,
    length: usize,
    memory: PhantomData<&'a mut u8>,
}

impl Window<'_> {
    /// A window of `length` bytes from `first` on.
    ///
    /// `first` must be as far into an aligned 64 bytes as the linear address of the destination is,
    /// so that alignment faults and atomicity are what they would be for the guest.
    ///
    /// # Safety
    /// For the lifetime of the window:
    /// 1. the bytes are mapped readable and writable;
    /// 2. no Rust reference covers any of them. Other processors may write them.
    pub const unsafe fn new(first: *mut u8, length: usize) -> Self {
        Self { first, length, memory: PhantomData }
    }

    /// How many bytes.
    pub const fn length(&self) -> usize {
        self.length
    }

    /// Address of the first byte.
    pub(super) fn address(&self) -> u64 {
        self.first.expose_provenance() as u64
    }

    /// Stores `bytes`, as many as the window has: 1, 2, 4 or 8 bytes with one instruction, more in
    /// units of `unit` bytes, a power of two up to 8, from the last to the first.
    ///
    /// From the last, because stacks grow that way: pushing several registers writes in that order.
    ///
    /// # Panics
    /// If there are more or fewer bytes than the window has, or `unit` is not as described.
    pub fn store(&mut self, bytes: &[u8], unit: usize) {
        assert_eq!(bytes.len(), self.length, "a window is as long as its store");
        let unit = if matches!(bytes.len(), 1 | 2 | 4 | 8) { bytes.len() } else { unit };
        assert!(matches!(unit, 1 | 2 | 4 | 8) && bytes.len().is_multiple_of(unit));
        for (index, part) in bytes.chunks_exact(unit).enumerate().rev() {
            let to = self.first.wrapping_add(index * unit);
            let mut value = [0; 8];
            value[..unit].copy_from_slice(part);
            let value = u64::from_le_bytes(value);
            // SAFETY: `unit` bytes at `to` lie in the window, which is writable memory that no
            // reference covers.
            unsafe { store(to, value, unit) };
        }
    }
}

/// Stores the low `unit` bytes of `value` with one instruction, whatever the alignment.
///
/// # Safety
/// The bytes are writable memory, and no reference covers them.
unsafe fn store(to: *mut u8, value: u64, unit: usize) {
    match unit {
        1 => {
            // SAFETY: the caller's promise.
            unsafe {
                asm!("mov [{}], {:l}", in(reg) to, in(reg_abcd) value, options(nostack, preserves_flags));
            }
        }
        2 => {
            // SAFETY: as above.
            unsafe {
                asm!("mov [{}], {:x}", in(reg) to, in(reg) value, options(nostack, preserves_flags));
            }
        }
        4 => {
            // SAFETY: as above.
            unsafe {
                asm!("mov [{}], {:e}", in(reg) to, in(reg) value, options(nostack, preserves_flags));
            }
        }
        _ => {
            // SAFETY: as above; the caller has checked that it is 8.
            unsafe {
                asm!("mov [{}], {}", in(reg) to, in(reg) value, options(nostack, preserves_flags));
            }
        }
    }
}

/// A copy of the destination, aligned as the original is, to find out what a store would write.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub struct Scratch {
    bytes: [u8; ALIGNMENT + MAX_STORE_BYTES],
    start: usize,
    length: usize,
}

impl Scratch {
    /// A copy of `current`, the bytes at linear address `linear`.
    ///
    /// Panics if they are more than [`MAX_STORE_BYTES`].
    pub fn new(linear: u64, current: &[u8]) -> Self {
        assert!(current.len() <= MAX_STORE_BYTES, "no store is that long");
        let start = usize::try_from(linear % ALIGNMENT as u64).expect("less than 64");
        let mut bytes = [0; ALIGNMENT + MAX_STORE_BYTES];
        bytes[start..start + current.len()].copy_from_slice(current);
        Self { bytes, start, length: current.len() }
    }

    /// The copy, to be written.
    pub fn window(&mut self) -> Window<'_> {
        let first = self.bytes[self.start..].as_mut_ptr();
        // SAFETY: the bytes are this struct's own, and it is borrowed mutably while the window
        // lives.
        unsafe { Window::new(first, self.length) }
    }

    /// The bytes as they are now.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }
}

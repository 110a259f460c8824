//! The bytes on which an instruction's store is done.
//!
//! Unsafe because a window is memory that the guest writes too, which no Rust reference may cover:
//! it is a raw pointer, and stores to it are single instructions.
#![allow(unsafe_code)]

use alloc::vec;
use alloc::vec::Vec;
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

    /// Stores `bytes`, 1, 2, 4 or 8 of them, with one instruction, from byte `at` of the window on.
    ///
    /// # Panics
    /// If they are not that many, or do not lie in the window.
    pub fn store_element(&mut self, at: usize, bytes: &[u8]) {
        let unit = bytes.len();
        assert!(matches!(unit, 1 | 2 | 4 | 8), "an element is stored at once");
        assert!(at < self.length && unit <= self.length - at, "an element lies in its window");
        let mut value = [0; 8];
        value[..unit].copy_from_slice(bytes);
        // SAFETY: checked to lie in the window, which is writable memory that no reference covers.
        unsafe { store(self.first.wrapping_add(at), u64::from_le_bytes(value), unit) };
    }

    /// Stores the low bytes of `value`, as many as the window has, with one instruction.
    ///
    /// # Panics
    /// If those are not 1, 2, 4 or 8.
    #[inline]
    pub(super) fn store_number(&mut self, value: u64) {
        assert!(matches!(self.length, 1 | 2 | 4 | 8), "a number is stored at once");
        // SAFETY: the window is writable memory that no reference covers.
        unsafe { store(self.first, value, self.length) };
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

/// Bytes of a copy that needs no heap.
const SHORT: usize = 512;

/// A copy of the destination, aligned as the original is, to find out what a store would write.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Scratch {
    short: [u8; ALIGNMENT + SHORT],
    /// Where a longer one is, with room to align it.
    long: Option<Vec<u8>>,
    /// Linear address of the first byte within an aligned 64 bytes.
    misaligned: usize,
    length: usize,
}

impl Scratch {
    /// A copy of `current`, the bytes at linear address `linear`.
    ///
    /// Panics if they are more than [`MAX_STORE_BYTES`].
    pub fn new(linear: u64, current: &[u8]) -> Self {
        let filled = Self::filled(linear, current.len(), |bytes| {
            bytes.copy_from_slice(current);
            Ok::<(), core::convert::Infallible>(())
        });
        match filled {
            Ok(scratch) => scratch,
            Err(never) => match never {},
        }
    }

    /// A copy of the `length` bytes at linear address `linear`, as `fill` tells them.
    ///
    /// Panics if they are more than [`MAX_STORE_BYTES`].
    pub fn filled<E>(
        linear: u64,
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        assert!(length <= MAX_STORE_BYTES, "no store is that long");
        let misaligned = usize::try_from(linear % ALIGNMENT as u64).expect("less than 64");
        let long = (length > SHORT).then(|| vec![0; 2 * ALIGNMENT + length]);
        let mut scratch = Self { short: [0; ALIGNMENT + SHORT], long, misaligned, length };
        let start = scratch.start();
        fill(&mut scratch.room_mut()[start..start + length])?;
        Ok(scratch)
    }

    fn room(&self) -> &[u8] {
        self.long.as_deref().unwrap_or(&self.short)
    }

    fn room_mut(&mut self) -> &mut [u8] {
        self.long.as_deref_mut().unwrap_or(&mut self.short)
    }

    /// Where in its room the copy begins: the same wherever this value is moved, since what is on the
    /// heap stays there and this struct is aligned.
    fn start(&self) -> usize {
        let room = self.room().as_ptr() as usize;
        room.next_multiple_of(ALIGNMENT) - room + self.misaligned
    }

    /// The copy, to be written.
    pub fn window(&mut self) -> Window<'_> {
        let (start, length) = (self.start(), self.length);
        let first = self.room_mut()[start..].as_mut_ptr();
        // SAFETY: the bytes are this struct's own, and it is borrowed mutably while the window
        // lives.
        unsafe { Window::new(first, length) }
    }

    /// The bytes as they are now.
    pub fn bytes(&self) -> &[u8] {
        let start = self.start();
        &self.room()[start..start + self.length]
    }
}

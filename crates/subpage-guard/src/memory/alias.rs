//! A second, always writable mapping of memory that somebody else has mapped.
//!
//! Unsafe because it is made by the kernel's calls.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use nix::errno::Errno;

const PAGE: usize = 4096;

/// A second mapping of shared memory; dropping it unmaps it.
#[derive(Debug)]
pub(super) struct Alias {
    at: NonNull<c_void>,
    bytes: usize,
}

// SAFETY: an address and a length; what is there is reached by raw pointers and atomics only.
unsafe impl Send for Alias {}
// SAFETY: as above.
unsafe impl Sync for Alias {}

impl Alias {
    /// Maps `bytes` at `host` a second time, as writable as they are there now. Both are multiples of a
    /// page. `EINVAL`: the memory is not shared.
    ///
    /// # Safety
    /// The bytes are mapped.
    pub(super) unsafe fn new(host: usize, bytes: usize) -> Result<Self, Errno> {
        let from = ptr::with_exposed_provenance_mut(host);
        // SAFETY: an old size of 0 leaves what is there alone and maps it once more (mremap(2)).
        let at = unsafe { libc::mremap(from, 0, bytes, libc::MREMAP_MAYMOVE) };
        if at == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let at = NonNull::new(at).ok_or(Errno::ENOMEM)?;
        Ok(Self { at, bytes })
    }

    /// Address of a byte.
    pub(super) fn byte(&self, offset: usize) -> *mut u8 {
        self.at.as_ptr().cast::<u8>().wrapping_add(offset)
    }
}

impl Drop for Alias {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's; who points into it holds the value.
        let _ = unsafe { libc::munmap(self.at.as_ptr(), self.bytes) };
    }
}

/// Two pages of guest memory next to each other.
#[derive(Debug)]
pub(super) struct Pair(NonNull<c_void>);

impl Pair {
    /// The pages that begin at these addresses.
    ///
    /// # Safety
    /// Both are mapped, and shared.
    pub(super) unsafe fn new(pages: [*mut u8; 2]) -> Result<Self, Errno> {
        let (none, flags) = (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(ptr::null_mut(), 2 * PAGE, none, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let pair = Self(NonNull::new(at).ok_or(Errno::ENOMEM)?);
        for (number, page) in pages.into_iter().enumerate() {
            let to = pair.byte(number * PAGE);
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            // SAFETY: maps the page once more, in place of one of the two that belong to `pair`.
            let moved = unsafe { libc::mremap(page.cast(), 0, PAGE, flags, to) };
            if moved == libc::MAP_FAILED {
                return Err(Errno::last());
            }
        }
        Ok(pair)
    }

    /// Address of a byte.
    pub(super) fn byte(&self, offset: usize) -> *mut u8 {
        self.0.as_ptr().cast::<u8>().wrapping_add(offset)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and no window on it is left.
        let _ = unsafe { libc::munmap(self.0.as_ptr(), 2 * PAGE) };
    }
}

//! The guest's bytes under an instruction that is carried out here.
//!
//! Unsafe because a window is memory that the guest writes, too.
#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use subpage::address::{ByteRange, Gpa, PAGE_BYTES};
use subpage::domain::WriteParts;
use subpage_emulate::Window;

use super::{NoWindow, Ram};

const PAGE: usize = 4096;

impl Ram {
    /// Does `work` on the bytes of a write.
    ///
    /// Runs that are not neighbours are mapped next to each other for as long, as they are for the
    /// guest: an instruction that crosses pages sees one run of bytes.
    pub fn with_window<T>(
        &self,
        write: &WriteParts,
        work: impl FnOnce(&mut Window<'_>) -> T,
    ) -> Result<T, NoWindow> {
        if let &[whole] = write.runs()
            && let Some(first) = self.host(whole.first(), whole.bytes())
        {
            let length = usize::try_from(whole.bytes()).map_err(|_| NoWindow)?;
            // SAFETY: the bytes lie in one region, whose direct mapping is readable and writable and
            // lives as long as `self`. No Rust reference covers guest memory.
            let mut window = unsafe { Window::new(first, length) };
            return Ok(work(&mut window));
        }
        let joined = Joined::new(self, write)?;
        let length = usize::try_from(write.bytes()).map_err(|_| NoWindow)?;
        let first = joined.first(write.first());
        // SAFETY: two pages are mapped readable and writable until `joined` is dropped, after the
        // work; the bytes begin in the first and end in the second. No Rust reference covers them.
        let mut window = unsafe { Window::new(first, length) };
        Ok(work(&mut window))
    }
}

impl Ram {
    /// The eight bytes at a multiple of 8, read with one load; `None` if they are no memory.
    #[inline]
    pub(super) fn load(&self, gpa: Gpa) -> Option<u64> {
        #[allow(clippy::cast_ptr_alignment)] // Checked below.
        let at = self.host(gpa, 8)?.cast::<u64>();
        assert!(at.is_aligned(), "a page begins at a multiple of 8");
        // SAFETY: the bytes lie in the direct mapping, which lives as long as `self`, and are read as an
        // atomic. Nothing that this program writes guest memory with takes it for unshared: single
        // instructions, volatile copies, atomic operations.
        Some(unsafe { AtomicU64::from_ptr(at) }.load(Ordering::Acquire))
    }

    /// Where bytes of one region lie in the direct mapping; `None` if they are no memory, or of two
    /// regions.
    #[inline]
    fn host(&self, first: Gpa, bytes: u64) -> Option<*mut u8> {
        self.spans.iter().find_map(|span| {
            let offset = first.as_u64().wrapping_sub(span.first);
            if offset >= span.bytes || bytes > span.bytes - offset {
                return None;
            }
            let offset = usize::try_from(offset).ok()?;
            Some(ptr::with_exposed_provenance_mut::<u8>(span.host).wrapping_add(offset))
        })
    }
}

/// Two pages of guest memory next to each other.
struct Joined(NonNull<std::ffi::c_void>);

impl Joined {
    fn new(ram: &Ram, write: &WriteParts) -> Result<Self, NoWindow> {
        // A write in one run that crosses from one region to the next has its pages joined, too.
        let (first, last) = match write.runs() {
            &[whole] => (whole.first(), whole.last()),
            runs => (runs[0].first(), runs[1].first()),
        };
        let both = NonZeroUsize::new(2 * PAGE).ok_or(NoWindow)?;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let place =
            unsafe { mmap_anonymous(None, both, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE) }
                .map_err(|_| NoWindow)?;
        let joined = Self(place);
        for (number, page) in [first, last].into_iter().enumerate() {
            let offset = ram.offset(page.gfn()).ok_or(NoWindow)?;
            let offset = i64::try_from(offset).map_err(|_| NoWindow)?;
            let at = place.as_ptr().wrapping_byte_add(number * PAGE);
            let one = NonZeroUsize::new(PAGE).ok_or(NoWindow)?;
            let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
            let address = NonZeroUsize::new(at.expose_provenance());
            // SAFETY: replaces one of the two pages that were mapped above and belong to `joined`.
            unsafe { mmap(address, one, protection, flags, ram.file().as_fd(), offset) }
                .map_err(|_| NoWindow)?;
        }
        Ok(joined)
    }

    fn first(&self, run: ByteRange) -> *mut u8 {
        let offset = usize::try_from(run.first().as_u64() % PAGE_BYTES).expect("less than a page");
        self.0.as_ptr().cast::<u8>().wrapping_add(offset)
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and no window on it is left.
        let _ = unsafe { munmap(self.0, 2 * PAGE) };
    }
}

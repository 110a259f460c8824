//! A second mapping of guest memory, in which single pages can be copies of their own.
//!
//! KVM maps its second address space to it. There a processor executes one instruction while a page
//! that traps everywhere else may be written: what it writes goes to the copy, and from there to the
//! guest's memory only as far as it is permitted. All other pages are the guest's, and those that trap
//! trap there as well.
//!
//! Unsafe because pages are mapped, and copied to and from while KVM may have them mapped.
#![allow(unsafe_code)]

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::AsFd as _;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous};
use subpage::address::{Gfn, GfnRange, PAGE_BYTES};
use vm_memory::{GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};

use super::ViewError;
use super::view::protect;
use super::{Region, Regions, map};

const PAGE: usize = 4096;

/// Words of eight bytes in a page.
pub const PAGE_WORDS: usize = PAGE / 8;

/// A page as words, in the guest's byte order.
pub type PageImage = [u64; PAGE_WORDS];

/// Guest memory with copies of some of its pages.
#[derive(Debug)]
pub struct Twin {
    memory: GuestMemoryMmap,
    file: Arc<File>,
    regions: Regions,
    /// The pages that are copies. The guard's lock orders all changes; this one only makes them visible.
    copies: Mutex<Vec<Gfn>>,
}

impl Twin {
    /// Maps it, without copies. Every page may be written.
    pub(super) fn new(regions: &Regions, file: &Arc<File>) -> Result<Self, String> {
        Ok(Self {
            memory: map(regions, file)?,
            file: Arc::clone(file),
            regions: regions.clone(),
            copies: Mutex::new(Vec::new()),
        })
    }

    fn copies(&self) -> std::sync::MutexGuard<'_, Vec<Gfn>> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a region begins in this process, for a memory slot.
    pub fn host_address(&self, region: &Region) -> u64 {
        let at = self.memory.get_host_address(GuestAddress(region.pages.first().gpa().as_u64()));
        at.expect("a region is mapped").expose_provenance() as u64
    }

    /// Lets pages of one region be written in the second address space, or not. Copies among them
    /// become the guest's pages again.
    pub(super) fn set_writable(&self, pages: GfnRange, writable: bool) -> Result<(), ViewError> {
        let inside: Vec<Gfn> =
            self.copies().iter().copied().filter(|gfn| pages.contains(*gfn)).collect();
        for gfn in inside {
            self.share(gfn)?;
        }
        protect(&self.memory, pages, writable)
    }

    /// The pages that are copies.
    pub fn copied(&self) -> Vec<Gfn> {
        self.copies().clone()
    }

    /// Makes a page a copy, whose bytes are zero; nothing if it is one.
    pub fn copy(&self, gfn: Gfn) -> Result<(), ViewError> {
        let mut copies = self.copies();
        if copies.contains(&gfn) {
            return Ok(());
        }
        let (at, one) = self.place(gfn);
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: replaces one page of this value's own mapping, which no Rust reference covers.
        unsafe { mmap_anonymous(at, one, protection, flags) }.map_err(ViewError::of)?;
        copies.push(gfn);
        Ok(())
    }

    /// Makes a copy the guest's own page again, which may not be written there; nothing if it is none.
    pub fn share(&self, gfn: Gfn) -> Result<(), ViewError> {
        let mut copies = self.copies();
        let Some(number) = copies.iter().position(|copy| *copy == gfn) else { return Ok(()) };
        let (at, one) = self.place(gfn);
        let region = self.regions.iter().find(|region| region.pages.contains(gfn));
        let region = region.expect("a copy is memory");
        let page = gfn.as_u64() - region.pages.first().as_u64();
        let offset = i64::try_from(region.offset + page * PAGE_BYTES).expect("a file's offset");
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
        // SAFETY: replaces one page of this value's own mapping, which no Rust reference covers.
        unsafe { mmap(at, one, ProtFlags::PROT_READ, flags, self.file.as_fd(), offset) }
            .map_err(ViewError::of)?;
        copies.swap_remove(number);
        Ok(())
    }

    fn place(&self, gfn: Gfn) -> (Option<NonZeroUsize>, NonZeroUsize) {
        let one = NonZeroUsize::new(PAGE).expect("a page has bytes");
        (NonZeroUsize::new(self.words(gfn).expose_provenance()), one)
    }

    #[expect(
        clippy::cast_ptr_alignment,
        reason = "a page of the mapping starts at a page of the host"
    )]
    fn words(&self, gfn: Gfn) -> *mut u64 {
        let at = self.memory.get_host_address(GuestAddress(gfn.gpa().as_u64()));
        at.expect("a copy is memory").cast::<u64>()
    }

    /// A word of a copy.
    ///
    /// # Panics
    /// If there is no such word.
    fn word(&self, gfn: Gfn, number: usize) -> &AtomicU64 {
        assert!(number < PAGE_WORDS, "a page has 512 words");
        let at = ptr::with_exposed_provenance_mut::<u64>(
            self.words(gfn).expose_provenance() + number * 8,
        );
        // SAFETY: inside of the mapping, which lives as long as `self`, at a multiple of 8. Nobody in
        // this process accesses it otherwise than by this function; KVM's processors do as the
        // hardware does.
        unsafe { AtomicU64::from_ptr(at) }
    }

    /// Sets a copy's bytes.
    pub fn fill(&self, gfn: Gfn, image: &PageImage) {
        for (number, value) in image.iter().enumerate() {
            self.word(gfn, number).store(*value, Ordering::Relaxed);
        }
    }

    /// Eight bytes of a copy.
    pub fn get(&self, gfn: Gfn, number: usize) -> u64 {
        self.word(gfn, number).load(Ordering::Relaxed)
    }

    /// Sets eight bytes of a copy.
    pub fn set(&self, gfn: Gfn, number: usize, value: u64) {
        self.word(gfn, number).store(value, Ordering::Relaxed);
    }

    /// Calls `differs` with the number and value of each word of a copy that is not as in `image`.
    pub fn compare(&self, gfn: Gfn, image: &PageImage, mut differs: impl FnMut(usize, u64)) {
        for (number, before) in image.iter().enumerate() {
            let now = self.word(gfn, number).load(Ordering::Relaxed);
            if now != *before {
                differs(number, now);
            }
        }
    }
}

//! The mapping that KVM maps the guest to, and its write protection.
//!
//! Unsafe because it changes the protection of mapped pages; nobody but KVM ever writes through them.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::OnceLock;

use nix::sys::mman::{ProtFlags, mprotect};
use subpage::address::{GfnRange, Gpa, PAGE_BYTES};
use vm_memory::{GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};

use super::Twin;
use subpage_guard::memory::ViewError;

/// The guest's memory as KVM reaches it.
#[derive(Debug)]
pub struct View {
    memory: GuestMemoryMmap,
    /// For the second address space, once one is needed.
    twin: OnceLock<Twin>,
}

impl View {
    pub(super) const fn new(memory: GuestMemoryMmap) -> Self {
        Self { memory, twin: OnceLock::new() }
    }

    /// The mapping of the second address space, if there is one.
    pub fn twin(&self) -> Option<&Twin> {
        self.twin.get()
    }

    /// Keeps `twin`, in which the pages of `closed` may not be written either. The caller holds what
    /// orders changes of this view.
    pub(super) fn add_twin(
        &self,
        twin: Twin,
        closed: impl Iterator<Item = GfnRange>,
    ) -> Result<&Twin, ViewError> {
        for pages in closed {
            twin.set_writable(pages, false)?;
        }
        Ok(self.twin.get_or_init(|| twin))
    }

    /// Address of a byte in this process, for a memory slot; `None` if it is no memory.
    pub fn host_address(&self, gpa: Gpa) -> Option<u64> {
        let address = self.memory.get_host_address(GuestAddress(gpa.as_u64())).ok()?;
        Some(address.expose_provenance() as u64)
    }

    /// Lets the guest write the pages, or not. All of them must belong to one region.
    ///
    /// When this returns, no processor of the guest has a translation that says otherwise: the
    /// kernel tells KVM of the change, which invalidates before `mprotect` returns.
    ///
    /// # Panics
    /// If the pages are no memory, or not of one region.
    pub fn set_writable(&self, pages: GfnRange, writable: bool) -> Result<(), ViewError> {
        protect(&self.memory, pages, writable)?;
        let Some(twin) = self.twin() else { return Ok(()) };
        twin.set_writable(pages, writable).inspect_err(|_| {
            // As it was: that needs no more mappings than there were.
            let _ = protect(&self.memory, pages, !writable);
        })
    }
}

/// Changes the protection of pages of one region of a mapping of guest memory.
pub(super) fn protect(
    memory: &GuestMemoryMmap,
    pages: GfnRange,
    writable: bool,
) -> Result<(), ViewError> {
    let first = memory.get_host_address(GuestAddress(pages.first().gpa().as_u64()));
    let last = memory.get_host_address(GuestAddress(pages.last().gpa().as_u64()));
    let (first, last) = first.and_then(|first| Ok((first, last?))).expect("guest memory");
    let bytes = usize::try_from(pages.pages() * PAGE_BYTES).expect("64 bits");
    let span = last.expose_provenance() - first.expose_provenance();
    assert_eq!(span + 4096, bytes, "pages of one region");
    let protection =
        if writable { ProtFlags::PROT_READ | ProtFlags::PROT_WRITE } else { ProtFlags::PROT_READ };
    let first = NonNull::new(first.cast()).expect("a mapping is not at address 0");
    // SAFETY: the pages are a mapping that KVM maps the guest to. No Rust code writes through it but
    // to the twin's copies, which are no pages of it any more when their protection changes: for KVM,
    // a write to a read-only page is a fault that it reports.
    unsafe { mprotect(first, bytes, protection) }.map_err(ViewError::of)
}

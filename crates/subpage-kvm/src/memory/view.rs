//! The mapping that KVM maps the guest to, and its write protection.
//!
//! Unsafe because it changes the protection of mapped pages; nobody but KVM ever writes through them.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{ProtFlags, mprotect};
use subpage::address::{GfnRange, Gpa, PAGE_BYTES};
use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};

/// Why the protection of pages could not be changed; nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ViewError {
    /// Each run of read-only pages is a mapping of its own, and the kernel has a limit.
    #[error(
        "the kernel has no more mappings for this process: too many separate runs of guarded pages \
         (sysctl vm.max_map_count, 65,530 by default; each run needs two)"
    )]
    TooManyMappings,
    /// Anything else that the kernel says.
    #[error("cannot change the protection of guest pages: {0}")]
    Host(Errno),
}

/// The guest's memory as KVM reaches it.
#[derive(Debug)]
pub struct View {
    memory: GuestMemoryMmap,
}

impl View {
    pub(super) const fn new(memory: GuestMemoryMmap) -> Self {
        Self { memory }
    }

    /// Address of a byte in this process, for a memory slot; none if it is no memory.
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
        let first = self.memory.get_host_address(GuestAddress(pages.first().gpa().as_u64()));
        let last = self.memory.get_host_address(GuestAddress(pages.last().gpa().as_u64()));
        let (first, last) = first.and_then(|first| Ok((first, last?))).expect("guest memory");
        let bytes = usize::try_from(pages.pages() * PAGE_BYTES).expect("64 bits");
        let span = last.expose_provenance() - first.expose_provenance();
        assert_eq!(span + 4096, bytes, "pages of one region");
        let protection = if writable {
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE
        } else {
            ProtFlags::PROT_READ
        };
        let first = NonNull::new(first.cast()).expect("a mapping is not at address 0");
        // SAFETY: the pages are this view's mapping. No Rust code writes through it: the only user
        // is KVM, for which a write to a read-only page is a fault that it reports.
        match unsafe { mprotect(first, bytes, protection) } {
            Ok(()) => Ok(()),
            Err(Errno::ENOMEM) => Err(ViewError::TooManyMappings),
            Err(error) => Err(ViewError::Host(error)),
        }
    }
}

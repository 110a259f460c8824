//! Mappings of this process, changed.
//!
//! Unsafe because mappings of guest memory are replaced, protected and copied. Guest memory is no
//! Rust value: it is only ever reached by pointers, by single instructions and by copies.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::ptr;

use super::maps::HostMapping;
use crate::next;

pub(crate) const PAGE: u64 = 4096;

fn pointer(at: u64) -> *mut c_void {
    ptr::with_exposed_provenance_mut(usize::try_from(at).expect("64 bits"))
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).expect("64 bits")
}

fn mapped(at: *mut c_void) -> io::Result<u64> {
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(at.expose_provenance() as u64)
}

fn done(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets the protection of pages of guest memory: what the processors of the guest and the VMM may do.
///
/// When it returns, no processor has a translation that says otherwise: the kernel tells KVM first.
pub(crate) fn set_writable(at: u64, bytes: u64, writable: bool) -> io::Result<()> {
    let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
    // SAFETY: the pages belong to a slot. Nothing of this library writes through them; what the VMM
    // writes arrives as a signal.
    done(unsafe { next::mprotect(pointer(at), size(bytes), protection) })
}

/// A second mapping of shared pages, readable and writable, at an address of the kernel's choice. Not
/// for children, and not in core dumps.
pub(crate) fn second(at: u64, bytes: u64) -> io::Result<u64> {
    // SAFETY: an old size of 0 leaves the old mapping as it is, and makes a new one elsewhere.
    let made = mapped(unsafe {
        next::mremap(pointer(at), 0, size(bytes), libc::MREMAP_MAYMOVE, ptr::null_mut())
    })?;
    let all = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the mapping was made above.
    done(unsafe { next::mprotect(pointer(made), size(bytes), all) })?;
    for advice in [libc::MADV_DONTFORK, libc::MADV_DONTDUMP] {
        // SAFETY: as above. Without it, a child has one mapping more.
        let _ = unsafe { next::madvise(pointer(made), size(bytes), advice) };
    }
    Ok(made)
}

/// Puts another mapping of one shared page to an address.
fn second_at(at: u64, to: u64) -> io::Result<()> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: as in `second`; `to` is a page of a mapping of this module's own.
    mapped(unsafe { next::mremap(pointer(at), 0, size(PAGE), flags, pointer(to)) }).map(drop)
}

/// Two pages next to each other: new mappings of the pages at `first` and `second`.
pub(crate) fn side_by_side(first: u64, second: u64) -> io::Result<u64> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let both = mapped(unsafe {
        next::mmap(ptr::null_mut(), size(2 * PAGE), libc::PROT_NONE, flags, -1, 0)
    })?;
    second_at(first, both).and_then(|()| second_at(second, both + PAGE)).inspect_err(|_| {
        unmap(both, 2 * PAGE);
    })?;
    Ok(both)
}

/// Removes a mapping of this module.
pub(crate) fn unmap(at: u64, bytes: u64) {
    // SAFETY: the caller has it from this module, and nothing points there any more.
    let _ = unsafe { next::munmap(pointer(at), size(bytes)) };
}

/// Turns private pages into shared ones with the same bytes, protection and advice, in place.
///
/// What other threads write meanwhile is lost: a VMM that tells KVM of memory does not write it at the
/// same time.
pub(crate) fn share(mapping: &HostMapping) -> io::Result<()> {
    let bytes = mapping.end - mapping.start;
    // SAFETY: a name that ends with 0.
    let file = unsafe { libc::memfd_create(c"subpage".as_ptr(), libc::MFD_CLOEXEC) };
    if file < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that is this function's own.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(file) });
    file.set_len(bytes)?;
    let map = |at: u64, protection: i32, flags: i32| {
        let flags = flags | libc::MAP_SHARED | libc::MAP_NORESERVE;
        // SAFETY: either a new mapping at an address of the kernel's choice, or one over the VMM's
        // private pages, whose bytes were copied.
        mapped(unsafe {
            next::mmap(pointer(at), size(bytes), protection, flags, file.as_raw_fd(), 0)
        })
    };
    let copy = map(0, libc::PROT_READ | libc::PROT_WRITE, 0)?;
    let copied =
        if mapping.of_file { copy_all(mapping, copy) } else { copy_present(mapping, copy) };
    unmap(copy, bytes);
    copied?;
    map(mapping.start, mapping.protection, libc::MAP_FIXED)?;
    for advice in &mapping.advice {
        // SAFETY: mapped above. Advice that shared memory does not take changes nothing.
        let _ = unsafe { next::madvise(pointer(mapping.start), size(bytes), *advice) };
    }
    Ok(())
}

/// Copies every page that there is: those of a file have bytes also before somebody touches them.
fn copy_all(mapping: &HostMapping, to: u64) -> io::Result<()> {
    /// Bytes of one read.
    const CHUNK: u64 = 1 << 20;
    // To read past the end of a file by a pointer is a signal, and by this an error.
    let memory = File::open("/proc/self/mem")?;
    let mut buffer = vec![0u8; size(CHUNK)];
    let mut at = mapping.start;
    while at < mapping.end {
        let wanted = CHUNK.min(mapping.end - at);
        let read = match memory.read_at(&mut buffer[..size(wanted)], at) {
            Ok(read) => read as u64 / PAGE * PAGE,
            Err(error) if error.raw_os_error() == Some(libc::EIO) => 0,
            Err(error) => return Err(error),
        };
        for (number, page) in buffer[..size(read)].chunks_exact(size(PAGE)).enumerate() {
            // The copy is of zeros.
            if page.iter().all(|byte| *byte == 0) {
                continue;
            }
            let to = to + (at - mapping.start) + number as u64 * PAGE;
            // SAFETY: a page of the copy, to which nobody else has a pointer.
            unsafe {
                ptr::copy_nonoverlapping(page.as_ptr(), pointer(to).cast::<u8>(), size(PAGE));
            }
        }
        // A page that cannot be read has no bytes: it lies behind the file's end.
        at += read.max(PAGE);
    }
    Ok(())
}

/// Copies the pages that have been touched.
fn copy_present(mapping: &HostMapping, to: u64) -> io::Result<()> {
    /// In memory, or swapped out.
    const THERE: u64 = 3 << 62;
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut entries = vec![0u8; 8 << 10];
    let mut at = mapping.start;
    while at < mapping.end {
        let pages = ((mapping.end - at) / PAGE).min(entries.len() as u64 / 8);
        let entries = &mut entries[..size(pages * 8)];
        pagemap.read_exact_at(entries, at / PAGE * 8)?;
        for (number, entry) in entries.chunks_exact(8).enumerate() {
            let entry = u64::from_ne_bytes(entry.try_into().expect("eight bytes"));
            if entry & THERE == 0 {
                continue;
            }
            let from = at + number as u64 * PAGE;
            let to = to + (from - mapping.start);
            // SAFETY: the page is readable, as all of the mapping is, and does not overlap the copy.
            unsafe {
                ptr::copy_nonoverlapping(
                    pointer(from).cast::<u8>(),
                    pointer(to).cast::<u8>(),
                    size(PAGE),
                );
            }
        }
        at += pages * PAGE;
    }
    Ok(())
}

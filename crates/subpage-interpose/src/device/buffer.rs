//! Calls by which the kernel writes a buffer of the VMM: `read` and its kin.
//!
//! The kernel cannot write closed pages (EFAULT), and asks nobody. So a buffer in a closed page is
//! replaced by one of this library; what the kernel wrote there is judged byte by byte.
//!
//! Unsafe because buffers are the VMM's pointers.
#![allow(unsafe_code)]

use std::io;
use std::ptr;

use crate::machine::{Machine, Writer, find};
use crate::memory::host::PAGE;
use crate::memory::raw::Raw;
use crate::{machine, next};

/// A buffer in this library's place of the VMM's.
struct Bounce {
    at: *mut libc::c_void,
    bytes: usize,
}

impl Bounce {
    fn new(bytes: u64) -> io::Result<Self> {
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?.max(1);
        let both = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { next::mmap(ptr::null_mut(), bytes, both, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { at, bytes })
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        // SAFETY: mapped by this value, and nothing points there any more.
        let _ = unsafe { next::munmap(self.at, self.bytes) };
    }
}

/// The machine of which a closed page lies in one of the buffers.
fn concerned(parts: &[libc::iovec]) -> Option<std::sync::Arc<Machine>> {
    find(|machine| {
        if !machine.guards() || !machine.judges_devices() {
            return None;
        }
        let core = machine.core();
        let closed = parts.iter().any(|part| {
            core.closes_host(part.iov_base.expose_provenance() as u64, part.iov_len as u64)
        });
        closed.then(|| std::sync::Arc::clone(machine))
    })
}

/// `read` into buffers: `call` with other buffers, if one of them lies in a closed page; `None` if not,
/// and the call is to be passed on. `call` gives how many bytes it has read, or -1.
pub(crate) fn bounced(
    parts: &[libc::iovec],
    call: impl FnOnce(&mut [libc::iovec]) -> isize,
) -> Option<isize> {
    if !machine::any() {
        return None;
    }
    let machine = concerned(parts)?;
    let total: u64 = parts.iter().map(|part| (part.iov_len as u64).next_multiple_of(PAGE)).sum();
    let Ok(bounce) = Bounce::new(total + PAGE) else {
        next::set_errno(libc::ENOMEM);
        return Some(-1);
    };
    // Each at the beginning of a page: files that are read past the cache ask for whole blocks.
    let mut at = bounce.at.expose_provenance() as u64;
    let mut other: Vec<libc::iovec> = Vec::with_capacity(parts.len());
    for part in parts {
        other.push(libc::iovec {
            iov_base: ptr::with_exposed_provenance_mut(usize::try_from(at).expect("64 bits")),
            iov_len: part.iov_len,
        });
        at += (part.iov_len as u64).next_multiple_of(PAGE);
    }
    let read = call(&mut other);
    let errno = next::errno();
    let mut left = u64::try_from(read).unwrap_or(0);
    for (part, other) in parts.iter().zip(&other) {
        let bytes = (part.iov_len as u64).min(left);
        left -= bytes;
        let mut buffer = vec![0; usize::try_from(bytes).expect("a buffer's length")];
        // SAFETY: the kernel has written as many bytes there, in this value's mapping.
        let from = unsafe { Raw::new(other.iov_base.expose_provenance() as u64, bytes) };
        from.read(&mut buffer);
        deliver(&machine, part.iov_base.expose_provenance() as u64, &buffer);
    }
    next::set_errno(errno);
    Some(read)
}

/// Puts what was read to where the VMM wanted it, as far as that is permitted.
fn deliver(machine: &Machine, host: u64, bytes: &[u8]) {
    let mut core = machine.core();
    let mut from = 0;
    while from < bytes.len() {
        let at = host + from as u64;
        let piece = core.memory.at_host(at).copied();
        let starts = core.memory.pieces().iter().map(|piece| piece.host);
        let end = match piece {
            Some(piece) => piece.host + piece.bytes,
            None => starts.filter(|start| *start > at).min().unwrap_or(u64::MAX),
        };
        let have = usize::try_from(end - at).unwrap_or(usize::MAX);
        let to = from.saturating_add(have).min(bytes.len());
        match piece {
            Some(piece) => {
                let place = piece.place + (at - piece.host);
                let writer = Writer { vcpu: 0 };
                if core.write(&machine.publisher, writer, place, &bytes[from..to]).stop {
                    machine.stop();
                }
            }
            None => {
                // SAFETY: a part of a buffer that the VMM gave for this.
                unsafe { Raw::new(at, (to - from) as u64) }.write(&bytes[from..to]);
            }
        }
        from = to;
    }
}

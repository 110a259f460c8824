//! Executable memory for the substitutes of instructions.
//!
//! Unsafe because memory is mapped executable.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::ptr;

use subpage_emulate::{CODE_BYTES, Trampoline};

use crate::next;

const BYTES: usize = 4096;

thread_local! {
    /// The code that this thread executes a substitute in; 0 if it does not.
    static CODE: Cell<u64> = const { Cell::new(0) };
}

/// A trampoline with its memory, for one thread.
#[derive(Debug)]
pub(crate) struct OwnTrampoline {
    trampoline: Box<Trampoline>,
    at: u64,
}

impl OwnTrampoline {
    /// Maps memory for it, which stays as long as the process.
    pub(crate) fn new() -> io::Result<Self> {
        let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let memory = unsafe { next::mmap(ptr::null_mut(), BYTES, all, flags, -1, 0) };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let code: *mut [u8; CODE_BYTES] = memory.cast();
        // SAFETY: writable and executable, this value's own and never unmapped; faults are caught by the
        // handler of `device::fault`, which was installed before the first machine, and whose frame goes
        // below the red zone; Linux enables SSE. One thread alone uses it: when the kernel moves that to
        // another processor, it gets there by an interrupt's return, which serializes.
        let trampoline = Box::new(unsafe { Trampoline::new(code) });
        Ok(Self { trampoline, at: memory.expose_provenance() as u64 })
    }

    /// The trampoline, for `work` on this thread.
    pub(crate) fn with<T>(&mut self, work: impl FnOnce(&mut Trampoline) -> T) -> T {
        let before = CODE.replace(self.at);
        let result = work(&mut self.trampoline);
        CODE.set(before);
        result
    }
}

/// Where a fault at `rip` of this thread goes on, if it comes from a substitute.
pub(crate) fn recovery(rip: u64) -> Option<u64> {
    let code = CODE.get();
    let inside = code != 0 && rip.wrapping_sub(code) < CODE_BYTES as u64;
    inside.then(Trampoline::recovery_address)
}

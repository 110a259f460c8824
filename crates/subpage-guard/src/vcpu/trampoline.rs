//! Executable memory for the substitutes of a processor's instructions, in a process with signals.
//!
//! Unsafe because memory is mapped executable and a signal handler changes where a thread continues.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::{Once, OnceLock};

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use subpage_emulate::{CODE_BYTES, Trampoline};

const BYTES: usize = 4096;

thread_local! {
    /// The code that this thread is executing a substitute in; 0 if it is not.
    static CODE: Cell<u64> = const { Cell::new(0) };
}

/// A trampoline with its memory.
#[derive(Debug)]
pub struct OwnTrampoline {
    trampoline: Trampoline,
    memory: NonNull<c_void>,
}

// SAFETY: the memory belongs to this value alone.
unsafe impl Send for OwnTrampoline {}

impl OwnTrampoline {
    /// Maps memory for it.
    ///
    /// # Panics
    /// If the host has not a page left, or forbids memory that is writable and executable.
    pub fn new() -> Self {
        catch_faults();
        let all = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE | ProtFlags::PROT_EXEC;
        let bytes = NonZeroUsize::new(BYTES).expect("not 0");
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let memory = unsafe { mmap_anonymous(None, bytes, all, MapFlags::MAP_PRIVATE) }
            .expect("the host lets this process have one page that is executable");
        let code: *mut [u8; CODE_BYTES] = memory.as_ptr().cast();
        // SAFETY: writable and executable, this value's own and as long-lived; faults are caught by
        // the handler of `catch_faults`, whose frame goes below the red zone; Linux enables SSE. It is
        // used by the thread of its processor alone. When that thread is moved to another processor of
        // the host, it gets there by an interrupt's return, which serializes, or through the kernel's
        // scheduler and KVM_RUN, which write control and model-specific registers on the way.
        let trampoline = unsafe { Trampoline::new(code) };
        Self { trampoline, memory }
    }

    /// The trampoline, for `work` on this thread.
    pub fn with<T>(&mut self, work: impl FnOnce(&mut Trampoline) -> T) -> T {
        let before = CODE.replace(self.memory.as_ptr().expose_provenance() as u64);
        let result = work(&mut self.trampoline);
        CODE.set(before);
        result
    }
}

impl Default for OwnTrampoline {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for OwnTrampoline {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and nothing points into it any more.
        let _ = unsafe { munmap(self.memory, BYTES) };
    }
}

/// The components of extended state that XSAVE and XRSTOR handle in this process, as in XCR0; 0
/// without XSAVE.
pub fn components() -> u64 {
    /// x87, SSE, AVX, and AVX-512's three: all that lies in the 4096 bytes that KVM gives.
    const KNOWN: u64 = 0xe7;
    if !std::arch::is_x86_feature_detected!("xsave") {
        return 0;
    }
    // SAFETY: XSAVE is there, and Linux has set CR4.OSXSAVE where it says so.
    (unsafe { core::arch::x86_64::_xgetbv(0) }) & KNOWN
}

/// Signals of faults.
const CAUGHT: [Signal; 4] = [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE];

/// What they did before.
static BEFORE: OnceLock<[SigAction; 4]> = OnceLock::new();

/// Lets faults in a trampoline continue at its recovery address. All others do what they did.
fn catch_faults() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let action = SigAction::new(
            SigHandler::SigAction(recover),
            SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK | SaFlags::SA_NODEFER,
            SigSet::empty(),
        );
        let before = CAUGHT.map(|signal| {
            // SAFETY: the handler is async-signal-safe: it reads and writes thread-local cells without
            // destructor, compares numbers and writes the frame it was given.
            unsafe { sigaction(signal, &action) }.expect("a signal of this process")
        });
        // A fault of another thread in between is fatal one way or the other.
        let _ = BEFORE.set(before);
    });
}

extern "C" fn recover(signal: i32, _: *mut libc::siginfo_t, context: *mut c_void) {
    let context: *mut libc::ucontext_t = context.cast();
    // SAFETY: the kernel passes the interrupted context of this thread.
    let registers = unsafe { &mut (*context).uc_mcontext.gregs };
    let rip = registers[libc::REG_RIP as usize];
    let code = CODE.get();
    if code != 0 && rip.cast_unsigned().wrapping_sub(code) < CODE_BYTES as u64 {
        registers[libc::REG_RIP as usize] = Trampoline::recovery_address().cast_signed();
        registers[libc::REG_RAX as usize] = registers[libc::REG_TRAPNO as usize];
        return;
    }
    // Not ours: the instruction faults again, and then happens what would have before.
    let at = CAUGHT.iter().position(|caught| *caught as i32 == signal);
    if let (Some(at), Some(before)) = (at, BEFORE.get()) {
        // SAFETY: what was in force before.
        let _ = unsafe { sigaction(CAUGHT[at], &before[at]) };
    }
}

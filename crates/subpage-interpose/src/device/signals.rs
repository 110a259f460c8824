//! Signals of this library's own threads, and handlers that were there before its own.
//!
//! Unsafe because signal handlers are foreign functions.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::mem::{MaybeUninit, transmute};
use std::sync::{Once, RwLock};

use crate::next;

/// Signals of faults: an instruction of a substitute may raise each.
const FAULTS: [c_int; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE];

/// What the VMM wants to happen, in the order of [`FAULTS`]; none: what happens by default.
static WANTED: RwLock<[Option<libc::sigaction>; 4]> = RwLock::new([None; 4]);

static INSTALLED: Once = Once::new();

/// A handler with all that the kernel tells.
type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// Installs `handler` for faults; once. What was there is kept.
pub(crate) fn install(handler: Handler) {
    INSTALLED.call_once(|| {
        // SAFETY: all zeros is a value of the structure.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = handler as usize;
        // Not on a stack of its own: that of a thread may have little room, and whoever overflows
        // another one is done for anyway. Faults in a substitute come inside of the handler.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        let mut wanted = WANTED.write().expect("nothing panics with it");
        for (number, signal) in FAULTS.into_iter().enumerate() {
            // SAFETY: as above.
            let mut before: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
            // SAFETY: a handler of this signature, and places for both structures.
            let result = unsafe { next::sigaction(signal, &raw const action, &raw mut before) };
            assert_eq!(result, 0, "a signal of this process");
            wanted[number] = Some(before);
        }
    });
}

/// `sigaction` of the VMM, if it is about a fault and this library's handler is in force: what it
/// wants is kept; `None` if the call is to be passed on.
///
/// # Safety
/// That of `sigaction`.
pub(crate) unsafe fn change(
    signal: c_int,
    action: *const libc::sigaction,
    before: *mut libc::sigaction,
) -> Option<c_int> {
    let number = FAULTS.iter().position(|fault| *fault == signal)?;
    if !INSTALLED.is_completed() {
        return None;
    }
    let mut wanted = WANTED.write().expect("nothing panics with it");
    if !before.is_null()
        && let Some(kept) = wanted[number]
    {
        // SAFETY: the caller's promise.
        unsafe { before.write(kept) };
    }
    if !action.is_null() {
        // SAFETY: the caller's promise.
        wanted[number] = Some(unsafe { action.read() });
    }
    Some(0)
}

/// Does what the VMM wants to happen with a fault that is its own.
pub(crate) fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let wanted = FAULTS.iter().position(|fault| *fault == signal).and_then(|number| {
        let kept = WANTED.read().expect("nothing panics with it");
        kept[number]
    });
    let handler = wanted.map_or(libc::SIG_DFL, |wanted| wanted.sa_sigaction);
    let flags = wanted.map_or(0, |wanted| wanted.sa_flags);
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        // The instruction faults again, and then happens what would have without this library.
        // SAFETY: all zeros is a value of the structure, and says that.
        let default: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        // SAFETY: a structure and no place for the one before.
        let _ = unsafe { next::sigaction(signal, &raw const default, std::ptr::null_mut()) };
    } else if flags & libc::SA_SIGINFO != 0 {
        // SAFETY: the VMM has installed it as such a handler.
        let handler = unsafe { transmute::<usize, Handler>(handler) };
        handler(signal, info, context);
    } else {
        // SAFETY: the VMM has installed it as such a handler.
        let handler = unsafe { transmute::<usize, extern "C" fn(c_int)>(handler) };
        handler(signal);
    }
}

/// Blocks all signals of this thread, and so of those that it makes; they belong to the VMM's threads.
pub(crate) fn block() -> libc::sigset_t {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: a place for a set.
    let _ = unsafe { libc::sigfillset(all.as_mut_ptr()) };
    let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: filled above, and a place for another set.
    let _ = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    // SAFETY: zeros, or what the kernel said.
    unsafe { before.assume_init() }
}

/// As it was.
pub(crate) fn unblock(before: &libc::sigset_t) {
    // SAFETY: a set that was in force.
    let _ = unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const *before, std::ptr::null_mut())
    };
}

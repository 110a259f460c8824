//! The calls as they are without this library.
//!
//! Unsafe because they are foreign functions, found by name at run time.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_uint, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// A function of the library behind this one.
pub(crate) struct Next {
    name: &'static CStr,
    found: AtomicPtr<c_void>,
}

impl Next {
    const fn new(name: &'static CStr) -> Self {
        Self { name, found: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Its address.
    ///
    /// # Panics
    /// If the C library has no such function: then nobody can have called it.
    fn address(&self) -> *mut c_void {
        let found = self.found.load(Ordering::Relaxed);
        if !found.is_null() {
            return found;
        }
        // SAFETY: a name that ends with 0.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
        assert!(!found.is_null(), "the C library has {:?}", self.name);
        self.found.store(found, Ordering::Relaxed);
        found
    }
}

/// Defines functions that call the next ones.
macro_rules! next {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $result:ty;)*) => {$(
        /// The C library's function of this name.
        ///
        /// # Safety
        /// That of the C library's function.
        #[inline]
        pub(crate) unsafe fn $name($($argument: $kind),*) -> $result {
            static NEXT: Next = Next::new(
                match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                    Ok(name) => name,
                    Err(_) => unreachable!(),
                },
            );
            // SAFETY: the C library's function has this signature; variable arguments are passed like
            // others on this architecture, and what they are is the caller's promise.
            let function = unsafe {
                std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($kind),*) -> $result>(NEXT.address())
            };
            // SAFETY: the caller's promise.
            unsafe { function($($argument),*) }
        }
    )*};
}

next! {
    ioctl(fd: c_int, request: u64, argument: *mut c_void) -> c_int;
    close(fd: c_int) -> c_int;
    dup(fd: c_int) -> c_int;
    dup2(fd: c_int, to: c_int) -> c_int;
    dup3(fd: c_int, to: c_int, flags: c_int) -> c_int;
    fcntl(fd: c_int, command: c_int, argument: usize) -> c_int;
    mmap(at: *mut c_void, length: usize, protection: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void;
    munmap(at: *mut c_void, length: usize) -> c_int;
    mremap(at: *mut c_void, length: usize, new: usize, flags: c_int, to: *mut c_void) -> *mut c_void;
    mprotect(at: *mut c_void, length: usize, protection: c_int) -> c_int;
    madvise(at: *mut c_void, length: usize, advice: c_int) -> c_int;
    sigaction(signal: c_int, action: *const libc::sigaction, before: *mut libc::sigaction) -> c_int;
    read(fd: c_int, buffer: *mut c_void, length: usize) -> isize;
    pread(fd: c_int, buffer: *mut c_void, length: usize, offset: i64) -> isize;
    readv(fd: c_int, parts: *const libc::iovec, count: c_int) -> isize;
    preadv(fd: c_int, parts: *const libc::iovec, count: c_int, offset: i64) -> isize;
    preadv2(fd: c_int, parts: *const libc::iovec, count: c_int, offset: i64, flags: c_int) -> isize;
    recv(fd: c_int, buffer: *mut c_void, length: usize, flags: c_int) -> isize;
    recvfrom(fd: c_int, buffer: *mut c_void, length: usize, flags: c_int, from: *mut libc::sockaddr, size: *mut libc::socklen_t) -> isize;
    recvmsg(fd: c_int, message: *mut libc::msghdr, flags: c_int) -> isize;
    io_setup(events: c_int, context: *mut c_void) -> c_int;
    io_uring_queue_init(entries: c_uint, ring: *mut c_void, flags: c_uint) -> c_int;
}

/// The calling thread's error number.
pub(crate) fn errno() -> c_int {
    // SAFETY: the C library gives the address of a number of this thread.
    let at = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    unsafe { *at }
}

/// Sets the calling thread's error number.
pub(crate) fn set_errno(errno: c_int) {
    // SAFETY: as above.
    let at = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    unsafe { *at = errno }
}

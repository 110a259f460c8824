//! The calls that this library takes, under the C library's names.
//!
//! Unsafe because they are called by C programs.
#![allow(unsafe_code)]
// Each is the C library's function of that name, with its contract.
#![allow(clippy::missing_safety_doc)]

use std::ffi::{c_int, c_uint, c_void};

use crate::descriptors;
use crate::device::buffer::bounced;
use crate::{device, hooks, kvm, machine, next};

#[unsafe(no_mangle)]
unsafe extern "C" fn ioctl(fd: c_int, request: u64, argument: *mut c_void) -> c_int {
    // Programs declare the request as `int`, too.
    let number = request & 0xffff_ffff;
    match number >> 8 & 0xff {
        // SAFETY: the caller's promise.
        kvm::TYPE => unsafe { hooks::kvm_call(fd, number, argument) },
        kind => {
            if machine::any() {
                if kind == kvm::VHOST && number == kvm::VHOST_SET_MEM_TABLE {
                    hooks::warn_kernel_writes("vhost");
                } else if number == kvm::VFIO_MAP_DMA {
                    hooks::warn_pinned();
                }
            }
            // SAFETY: the caller's promise.
            unsafe { next::ioctl(fd, request, argument) }
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn close(fd: c_int) -> c_int {
    descriptors::forget(fd);
    // SAFETY: the caller's promise.
    unsafe { next::close(fd) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dup(fd: c_int) -> c_int {
    // SAFETY: the caller's promise.
    let to = unsafe { next::dup(fd) };
    if to >= 0 {
        descriptors::copy(fd, to);
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dup2(fd: c_int, to: c_int) -> c_int {
    // SAFETY: the caller's promise.
    let result = unsafe { next::dup2(fd, to) };
    if result >= 0 {
        descriptors::copy(fd, to);
    }
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn dup3(fd: c_int, to: c_int, flags: c_int) -> c_int {
    // SAFETY: the caller's promise.
    let result = unsafe { next::dup3(fd, to, flags) };
    if result >= 0 {
        descriptors::copy(fd, to);
    }
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int {
    // SAFETY: the caller's promise.
    let result = unsafe { next::fcntl(fd, command, argument) };
    if result >= 0 && matches!(command, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) {
        descriptors::copy(fd, result);
    }
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn fcntl64(fd: c_int, command: c_int, argument: usize) -> c_int {
    // SAFETY: the caller's promise; both are the same on this architecture.
    unsafe { fcntl(fd, command, argument) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mmap(
    at: *mut c_void,
    length: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    let mapped = unsafe { next::mmap(at, length, protection, flags, fd, offset) };
    if flags & libc::MAP_FIXED != 0 && mapped != libc::MAP_FAILED {
        hooks::mapping_changed(mapped, length);
    }
    mapped
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mmap64(
    at: *mut c_void,
    length: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    // SAFETY: the caller's promise; both are the same on this architecture.
    unsafe { mmap(at, length, protection, flags, fd, offset) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn munmap(at: *mut c_void, length: usize) -> c_int {
    // SAFETY: the caller's promise.
    let result = unsafe { next::munmap(at, length) };
    if result == 0 {
        hooks::mapping_changed(at, length);
    }
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mremap(
    at: *mut c_void,
    length: usize,
    new: usize,
    flags: c_int,
    to: *mut c_void,
) -> *mut c_void {
    // SAFETY: the caller's promise.
    let mapped = unsafe { next::mremap(at, length, new, flags, to) };
    if mapped != libc::MAP_FAILED {
        if length != 0 {
            hooks::mapping_changed(at, length);
        }
        hooks::mapping_changed(mapped, new);
    }
    mapped
}

#[unsafe(no_mangle)]
unsafe extern "C" fn mprotect(at: *mut c_void, length: usize, protection: c_int) -> c_int {
    // SAFETY: the caller's promise.
    let result = unsafe { next::mprotect(at, length, protection) };
    if result == 0 && protection & libc::PROT_WRITE != 0 {
        hooks::protection_changed(at, length);
    }
    result
}

#[unsafe(no_mangle)]
unsafe extern "C" fn madvise(at: *mut c_void, length: usize, advice: c_int) -> c_int {
    let discards = matches!(advice, libc::MADV_DONTNEED | libc::MADV_REMOVE | libc::MADV_FREE);
    if !discards || !hooks::was_private(at, length) {
        // SAFETY: the caller's promise.
        return unsafe { next::madvise(at, length, advice) };
    }
    if hooks::is_guarded(at, length) {
        // A device that discards a page writes zeros to all of it: the page stays as it is.
        return 0;
    }
    // What was private memory for the VMM is shared now: to discard it is another advice there.
    // SAFETY: the caller's promise.
    unsafe { next::madvise(at, length, libc::MADV_REMOVE) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sigaction(
    signal: c_int,
    action: *const libc::sigaction,
    before: *mut libc::sigaction,
) -> c_int {
    // SAFETY: the caller's promise.
    match unsafe { device::change_signal(signal, action, before) } {
        Some(result) => result,
        // SAFETY: the caller's promise.
        None => unsafe { next::sigaction(signal, action, before) },
    }
}

/// The parts of a list.
///
/// # Safety
/// `parts` has `count` of them.
unsafe fn list(parts: *const libc::iovec, count: usize) -> Vec<libc::iovec> {
    // SAFETY: the caller's promise.
    let one = |number: usize| unsafe { parts.wrapping_add(number).read() };
    (0..count).map(one).collect()
}

/// A list of one part.
const fn one(buffer: *mut c_void, length: usize) -> [libc::iovec; 1] {
    [libc::iovec { iov_base: buffer, iov_len: length }]
}

/// The lists that the kernel takes: IOV_MAX.
const MOST: c_int = 1024;

#[unsafe(no_mangle)]
unsafe extern "C" fn read(fd: c_int, buffer: *mut c_void, length: usize) -> isize {
    // SAFETY: the caller's promise, or a buffer of the same length.
    let call = |at: *mut c_void| unsafe { next::read(fd, at, length) };
    bounced(&one(buffer, length), |parts| call(parts[0].iov_base)).unwrap_or_else(|| call(buffer))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pread(fd: c_int, buffer: *mut c_void, length: usize, offset: i64) -> isize {
    // SAFETY: the caller's promise, or a buffer of the same length.
    let call = |at: *mut c_void| unsafe { next::pread(fd, at, length, offset) };
    bounced(&one(buffer, length), |parts| call(parts[0].iov_base)).unwrap_or_else(|| call(buffer))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn pread64(fd: c_int, buffer: *mut c_void, length: usize, offset: i64) -> isize {
    // SAFETY: the caller's promise; both are the same on this architecture.
    unsafe { pread(fd, buffer, length, offset) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn readv(fd: c_int, parts: *const libc::iovec, count: c_int) -> isize {
    // SAFETY: the caller's promise, or buffers of the same lengths.
    let call = |parts: *const libc::iovec| unsafe { next::readv(fd, parts, count) };
    // SAFETY: the caller's promise.
    unsafe { vectored(parts, count, call) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn preadv(
    fd: c_int,
    parts: *const libc::iovec,
    count: c_int,
    offset: i64,
) -> isize {
    // SAFETY: the caller's promise, or buffers of the same lengths.
    let call = |parts: *const libc::iovec| unsafe { next::preadv(fd, parts, count, offset) };
    // SAFETY: the caller's promise.
    unsafe { vectored(parts, count, call) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn preadv64(
    fd: c_int,
    parts: *const libc::iovec,
    count: c_int,
    offset: i64,
) -> isize {
    // SAFETY: the caller's promise; both are the same on this architecture.
    unsafe { preadv(fd, parts, count, offset) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn preadv2(
    fd: c_int,
    parts: *const libc::iovec,
    count: c_int,
    offset: i64,
    flags: c_int,
) -> isize {
    // SAFETY: the caller's promise, or buffers of the same lengths.
    let call =
        |parts: *const libc::iovec| unsafe { next::preadv2(fd, parts, count, offset, flags) };
    // SAFETY: the caller's promise.
    unsafe { vectored(parts, count, call) }
}

/// # Safety
/// That of `readv`.
unsafe fn vectored(
    parts: *const libc::iovec,
    count: c_int,
    call: impl Fn(*const libc::iovec) -> isize,
) -> isize {
    if !machine::any() || !(1..=MOST).contains(&count) {
        return call(parts);
    }
    // SAFETY: the caller's promise.
    let all = unsafe { list(parts, usize::try_from(count).expect("positive")) };
    bounced(&all, |other| call(other.as_ptr())).unwrap_or_else(|| call(parts))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn recv(fd: c_int, buffer: *mut c_void, length: usize, flags: c_int) -> isize {
    // SAFETY: the caller's promise, or a buffer of the same length.
    let call = |at: *mut c_void| unsafe { next::recv(fd, at, length, flags) };
    bounced(&one(buffer, length), |parts| call(parts[0].iov_base)).unwrap_or_else(|| call(buffer))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn recvfrom(
    fd: c_int,
    buffer: *mut c_void,
    length: usize,
    flags: c_int,
    from: *mut libc::sockaddr,
    size: *mut libc::socklen_t,
) -> isize {
    // SAFETY: the caller's promise, or a buffer of the same length.
    let call = |at: *mut c_void| unsafe { next::recvfrom(fd, at, length, flags, from, size) };
    bounced(&one(buffer, length), |parts| call(parts[0].iov_base)).unwrap_or_else(|| call(buffer))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn recvmsg(fd: c_int, message: *mut libc::msghdr, flags: c_int) -> isize {
    // SAFETY: the caller's promise.
    let call = move || unsafe { next::recvmsg(fd, message, flags) };
    if !machine::any() || message.is_null() {
        return call();
    }
    // SAFETY: the caller's promise.
    let parts = unsafe { (*message).msg_iov };
    // SAFETY: the caller's promise.
    let count = unsafe { (*message).msg_iovlen };
    if count == 0 || count > 1024 {
        return call();
    }
    // SAFETY: the caller's promise.
    let all = unsafe { list(parts, count) };
    let received = bounced(&all, |other| {
        // SAFETY: the caller's structure, with buffers of the same lengths for as long as the call takes.
        unsafe { (*message).msg_iov = other.as_mut_ptr() };
        call()
    });
    // SAFETY: as above.
    unsafe { (*message).msg_iov = parts };
    received.unwrap_or_else(call)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn io_setup(events: c_int, context: *mut c_void) -> c_int {
    hooks::warn_kernel_writes("native AIO");
    // SAFETY: the caller's promise.
    unsafe { next::io_setup(events, context) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn io_uring_queue_init(
    entries: c_uint,
    ring: *mut c_void,
    flags: c_uint,
) -> c_int {
    // QEMU has a ring for its own waiting, too, through which nothing is read.
    if std::fs::read("/proc/self/cmdline")
        .is_ok_and(|line| line.windows(8).any(|part| part == b"io_uring"))
    {
        hooks::warn_kernel_writes("io_uring");
    }
    // SAFETY: the caller's promise.
    unsafe { next::io_uring_queue_init(entries, ring, flags) }
}

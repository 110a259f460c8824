//! Buffers that C passes as a pointer and a length: one of the two places with `unsafe`.

use crate::status::{Failed, NULL};

/// The elements of an input buffer; none if `length` is 0, whatever the pointer.
///
/// # Safety
/// Where `pointer` is not null, it is aligned and readable for `length` elements, which nobody writes
/// for as long as `'a`.
pub(crate) unsafe fn input<'a, T: Copy>(
    pointer: *const T,
    length: usize,
) -> Result<&'a [T], Failed> {
    if length == 0 {
        return Ok(&[]);
    }
    if pointer.is_null() || length > isize::MAX.unsigned_abs() / size_of::<T>() {
        return Err(NULL);
    }
    // SAFETY: it is not null, not longer than an object can be, and the rest is the caller's promise.
    Ok(unsafe { core::slice::from_raw_parts(pointer, length) })
}

/// The elements of a buffer for results.
///
/// # Safety
/// As for [`input`], and writable, and initialised; nobody else reads or writes it for as long as `'a`.
pub(crate) unsafe fn output<'a, T: Copy>(
    pointer: *mut T,
    length: usize,
) -> Result<&'a mut [T], Failed> {
    if length == 0 {
        return Ok(&mut []);
    }
    if pointer.is_null() || length > isize::MAX.unsigned_abs() / size_of::<T>() {
        return Err(NULL);
    }
    // SAFETY: it is not null, not longer than an object can be, and the rest is the caller's promise.
    Ok(unsafe { core::slice::from_raw_parts_mut(pointer, length) })
}

/// Copies `bytes` into a buffer for results, which may hold anything before, and returns their number;
/// copies nothing if it is too small for all of them.
///
/// # Safety
/// Where `pointer` is not null, it is writable for `capacity` bytes, which nobody else reads or writes.
pub(crate) unsafe fn copy_out(bytes: &[u8], pointer: *mut u8, capacity: usize) -> usize {
    if !pointer.is_null() && bytes.len() <= capacity {
        // SAFETY: both are valid for this many bytes; the source is memory of ours, so they are apart.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), pointer, bytes.len()) };
    }
    bytes.len()
}

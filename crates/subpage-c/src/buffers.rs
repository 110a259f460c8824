//! Buffers that C passes as a pointer and a length: one of the two places with `unsafe`.

use core::mem::MaybeUninit;
use core::slice;

use subpage::errno::Errno;

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
    Ok(unsafe { slice::from_raw_parts(pointer, length) })
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
    Ok(unsafe { slice::from_raw_parts_mut(pointer, length) })
}

/// Writes `elements` into a buffer for results, which may hold anything before; nothing if it is too small
/// for all of them. Their number, and whether they were written.
///
/// # Safety
/// Where `pointer` is not null, it is aligned and writable for `capacity` elements, which nobody else
/// reads or writes.
pub(crate) unsafe fn write_out<T: Copy>(
    elements: impl ExactSizeIterator<Item = T>,
    pointer: *mut T,
    capacity: usize,
) -> Result<(i64, bool), Failed> {
    let count = elements.len();
    let number = i64::try_from(count).map_err(|_| Failed(Errno::NoSpace))?;
    if count > capacity {
        return Ok((number, false));
    }
    if count > 0 {
        if pointer.is_null() {
            return Err(NULL);
        }
        // SAFETY: it is not null, `count` is not above `capacity`, and the rest is the caller's promise.
        let room = unsafe { slice::from_raw_parts_mut(pointer.cast::<MaybeUninit<T>>(), count) };
        for (place, element) in room.iter_mut().zip(elements) {
            place.write(element);
        }
    }
    Ok((number, true))
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

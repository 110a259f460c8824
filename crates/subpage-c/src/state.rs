//! Rules and maps as bytes, for snapshots and migration.

use core::mem::MaybeUninit;

use subpage::errno::Errno;

use crate::buffers;
use crate::domain::Domain;
use crate::status::{Failed, given, of_import, status};

/// Writes rules, maps and tracked ranges as bytes. Returns their number; if it is greater than `capacity`,
/// nothing was written, so that a first call with NULL and 0 tells how much room is needed.
///
/// # Safety
/// `bytes` is NULL or has `capacity` bytes, which may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn subpage_export(
    domain: Option<&Domain>,
    bytes: *mut u8,
    capacity: usize,
) -> i64 {
    status((|| {
        let state = given(domain)?.engine.export()?;
        // SAFETY: the caller's promise.
        let length = unsafe { buffers::copy_out(&state, bytes, capacity) };
        i64::try_from(length).map_err(|_| Failed(Errno::NoSpace))
    })())
}

/// Takes what `subpage_export` wrote into a domain that is enabled and has no rules and maps. At most
/// `max_pages` pages may be concerned.
///
/// -EINVAL: it is damaged, or no such state. -ENOSPC: too many pages. -EEXIST: the domain is not empty.
///
/// # Safety
/// `bytes` has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn subpage_import(
    domain: Option<&mut Domain>,
    bytes: *const u8,
    length: usize,
    max_pages: u64,
    change: Option<&mut MaybeUninit<u64>>,
) -> i64 {
    status((|| {
        // SAFETY: the caller's promise.
        let state = unsafe { buffers::input(bytes, length) }?;
        given(domain)?
            .change(change, |engine| Ok((0, engine.import(state, max_pages).map_err(of_import)?)))
    })())
}

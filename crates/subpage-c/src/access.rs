//! Access maps: 32 bits a page, bit i permits writes to bytes 128 i to 128 i + 127.

use core::mem::MaybeUninit;

use alloc::vec::Vec;

use subpage::access::AccessMap;
use subpage::address::Gfn;
use subpage::errno::Errno;
use subpage::uapi::{self, Fault, HEADER_BYTES, MAX_PAGES, RequestMemory};

use crate::buffers;
use crate::domain::Domain;
use crate::status::{Failed, NULL, given, status, valid};

fn count(pages: usize) -> Result<i64, Failed> {
    i64::try_from(pages).map_err(|_| Failed(Errno::NoSpace))
}

fn all_permitting(pages: usize) -> Result<Vec<AccessMap>, Failed> {
    let mut maps = Vec::new();
    maps.try_reserve_exact(pages).map_err(|_| Failed(Errno::NoMemory))?;
    maps.resize(pages, AccessMap::ALL);
    Ok(maps)
}

/// Sets the maps of `pages` frames from `first_gfn` on, all or none, and returns their number.
///
/// -EINVAL: no frames. -EFAULT: a frame belongs to no slot. -EPERM: a locked rule forbids it.
///
/// # Safety
/// `maps` has `pages` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn subpage_set_access(
    domain: Option<&mut Domain>,
    first_gfn: u64,
    maps: *const u32,
    pages: usize,
    change: Option<&mut MaybeUninit<u64>>,
) -> i64 {
    status((|| {
        let first = valid(Gfn::try_new(first_gfn))?;
        // SAFETY: the caller's promise.
        let bits = unsafe { buffers::input(maps, pages) }?;
        let mut maps = all_permitting(pages)?;
        for (map, bits) in maps.iter_mut().zip(bits) {
            *map = AccessMap::from_bits(*bits);
        }
        given(domain)?.change(change, |engine| Ok(((), engine.set_access(first, &maps)?)))?;
        count(pages)
    })())
}

/// Reads the maps of `pages` frames, as they follow from maps and rules, and returns their number.
///
/// # Safety
/// `maps` has `pages` elements, which may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn subpage_get_access(
    domain: Option<&Domain>,
    first_gfn: u64,
    maps: *mut u32,
    pages: usize,
) -> i64 {
    status((|| {
        let first = valid(Gfn::try_new(first_gfn))?;
        if maps.is_null() && pages > 0 {
            return Err(NULL);
        }
        let mut found = all_permitting(pages)?;
        given(domain)?.engine.get_access(first, &mut found)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(pages * size_of::<u32>()).map_err(|_| Failed(Errno::NoMemory))?;
        bytes.extend(found.iter().flat_map(|map| map.bits().to_ne_bytes()));
        // SAFETY: the caller's promise: `pages` elements are this many bytes.
        unsafe { buffers::copy_out(&bytes, maps.cast(), bytes.len()) };
        count(pages)
    })())
}

/// A request of the KVM series in a buffer of the caller's.
struct Request<'a>(&'a mut [u8]);

impl RequestMemory for Request<'_> {
    fn read(&mut self, offset: usize, buffer: &mut [u8]) -> Result<(), Fault> {
        let end = offset.checked_add(buffer.len()).ok_or(Fault)?;
        buffer.copy_from_slice(self.0.get(offset..end).ok_or(Fault)?);
        Ok(())
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Fault> {
        let end = offset.checked_add(bytes.len()).ok_or(Fault)?;
        self.0.get_mut(offset..end).ok_or(Fault)?.copy_from_slice(bytes);
        Ok(())
    }
}

/// Bytes of the longest `struct kvm_subpage`.
const LONGEST_REQUEST: usize = HEADER_BYTES + MAX_PAGES as usize * size_of::<u32>();

/// KVM_SUBPAGES_SET_ACCESS of the KVM series: `request` is a `struct kvm_subpage` in a buffer of `length`
/// bytes. Returns the number of pages; errors are the series'.
///
/// # Safety
/// `request` has `length` bytes that nobody else writes during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn subpage_request_set(
    domain: Option<&mut Domain>,
    request: *mut u8,
    length: usize,
    change: Option<&mut MaybeUninit<u64>>,
) -> i64 {
    status((|| {
        // SAFETY: the caller's promise.
        let bytes = unsafe { buffers::output(request, length.min(LONGEST_REQUEST)) }?;
        given(domain)?.change(change, |engine| {
            let (pages, token) = uapi::set_access(engine, &mut Request(bytes))?;
            Ok((i64::from(pages), token))
        })
    })())
}

/// KVM_SUBPAGES_GET_ACCESS of the KVM series: fills the map of `request`.
///
/// # Safety
/// As for `subpage_request_set`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn subpage_request_get(
    domain: Option<&Domain>,
    request: *mut u8,
    length: usize,
) -> i64 {
    status((|| {
        // SAFETY: the caller's promise.
        let bytes = unsafe { buffers::output(request, length.min(LONGEST_REQUEST)) }?;
        Ok(i64::from(uapi::get_access(&given(domain)?.engine, &mut Request(bytes))?))
    })())
}

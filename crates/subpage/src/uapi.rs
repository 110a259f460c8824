//! The interface of the KVM series, spoken exactly: `struct kvm_subpage` and its errno values.
//!
//! The request comes from a guest or from another process, which may change it at any moment. So
//! each byte is read once, into memory of our own, and only that copy is checked and used: the
//! series read the header twice and trusted the second reading (D3).

use alloc::vec::Vec;

use arrayvec::ArrayVec;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::access::AccessMap;
use crate::address::Gfn;
use crate::domain::{Domain, Observer};
use crate::errno::Errno;
use crate::frames::TableFrames;
use crate::invalidate::Invalidation;

/// Most pages that one request may name (`KVM_SUBPAGE_MAX_PAGES`; `docs/spp.md` 2.2).
pub const MAX_PAGES: u32 = 512;

/// Bytes before the map: 16.
pub const HEADER_BYTES: usize = size_of::<Header>();

/// `struct kvm_subpage` without its map.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    gfn_base: U64,
    npages: U32,
    flags: U32,
}

const _: () = assert!(size_of::<Header>() == 16, "the map begins at byte 16");

/// The requester's memory cannot be accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault;

/// The requester's memory around a request, addressed by offset from its first byte.
pub trait RequestMemory {
    /// Copies `buffer.len()` bytes from `offset`. Each byte of a request is asked for once.
    fn read(&mut self, offset: usize, buffer: &mut [u8]) -> Result<(), Fault>;

    /// Copies `bytes` to `offset`.
    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Fault>;
}

/// A checked header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Request {
    first: Gfn,
    pages: usize,
}

/// Reads the header; `None` if the request is for no page, wherever it points.
fn read_header(memory: &mut impl RequestMemory) -> Result<Option<Request>, Errno> {
    let mut bytes = [0; HEADER_BYTES];
    memory.read(0, &mut bytes).map_err(|Fault| Errno::Fault)?;
    let header = Header::read_from_bytes(&bytes).map_err(|_| Errno::Fault)?;
    if header.flags.get() != 0 || header.npages.get() > MAX_PAGES {
        return Err(Errno::Invalid);
    }
    let pages = usize::try_from(header.npages.get()).map_err(|_| Errno::Invalid)?;
    if pages == 0 {
        return Ok(None);
    }
    let first = Gfn::try_new(header.gfn_base.get()).map_err(|_| Errno::Invalid)?;
    Ok(Some(Request { first, pages }))
}

/// Maps of a request that are read at a time.
const PIECE: usize = 16;

fn maps_of(pages: usize) -> Result<Vec<AccessMap>, Errno> {
    let mut maps = Vec::new();
    maps.try_reserve_exact(pages).map_err(|_| Errno::NoMemory)?;
    maps.resize(pages, AccessMap::ALL);
    Ok(maps)
}

fn bytes_of(pages: usize) -> Result<Vec<u8>, Errno> {
    let length = pages * size_of::<U32>();
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length).map_err(|_| Errno::NoMemory)?;
    bytes.resize(length, 0);
    Ok(bytes)
}

/// `KVM_SUBPAGES_GET_ACCESS`: fills the request's map; returns the number of pages.
///
/// Errors, in this order: ENODEV, EFAULT (header unreadable), EINVAL, ENOMEM, EFAULT (no slot, map
/// not writable). No page is a success that does nothing.
pub fn get_access<F: TableFrames, O: Observer>(
    domain: &Domain<F, O>,
    memory: &mut impl RequestMemory,
) -> Result<u32, Errno> {
    if domain.sppt().is_none() {
        return Err(Errno::NoDevice);
    }
    let Some(request) = read_header(memory)? else { return Ok(0) };
    let mut maps = maps_of(request.pages)?;
    let mut bytes = bytes_of(request.pages)?;
    domain.get_access(request.first, &mut maps)?;
    for (bytes, map) in bytes.chunks_exact_mut(size_of::<U32>()).zip(&maps) {
        bytes.copy_from_slice(&map.bits().to_le_bytes());
    }
    memory.write(HEADER_BYTES, &bytes).map_err(|Fault| Errno::Fault)?;
    u32::try_from(request.pages).map_err(|_| Errno::Invalid)
}

/// `KVM_SUBPAGES_SET_ACCESS`: sets the request's maps, all or none; returns the number of pages and
/// what must be invalidated before the call may return to the requester.
///
/// Errors as for [`get_access`], and EPERM if a map would permit what a locked rule denies.
pub fn set_access<F: TableFrames, O: Observer>(
    domain: &mut Domain<F, O>,
    memory: &mut impl RequestMemory,
) -> Result<(u32, Invalidation), Errno> {
    if domain.sppt().is_none() {
        return Err(Errno::NoDevice);
    }
    let Some(request) = read_header(memory)? else { return Ok((0, Invalidation::none())) };
    let mut maps: ArrayVec<AccessMap, { MAX_PAGES as usize }> = ArrayVec::new();
    while maps.len() < request.pages {
        let mut bytes = [0; PIECE * size_of::<U32>()];
        let pages = PIECE.min(request.pages - maps.len());
        let bytes = &mut bytes[..pages * size_of::<U32>()];
        let offset = HEADER_BYTES + maps.len() * size_of::<U32>();
        memory.read(offset, bytes).map_err(|Fault| Errno::Fault)?;
        for word in bytes.chunks_exact(size_of::<U32>()) {
            let word = U32::read_from_bytes(word).map_err(|_| Errno::Fault)?;
            maps.push(AccessMap::from_bits(word.get()));
        }
    }
    let token = domain.set_access(request.first, &maps)?;
    Ok((u32::try_from(request.pages).map_err(|_| Errno::Invalid)?, token))
}

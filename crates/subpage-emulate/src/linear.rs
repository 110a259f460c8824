//! Reads of guest memory by linear address.

use arrayvec::ArrayVec;
use subpage::address::PAGE_BYTES;

use super::bits::EFER_LMA;
use super::{Access, Fault, PagingFeatures, Translation, translate, translate_marked};
use crate::guest::{PhysicalMemory, State};

/// The linear address `bytes` after `linear`; linear addresses of 32 bits wrap.
pub(super) const fn advance(state: &State, linear: u64, bytes: u64) -> u64 {
    let next = linear.wrapping_add(bytes);
    if state.efer & EFER_LMA != 0 { next } else { next & 0xffff_ffff }
}

/// Fills `buffer` from `linear` on, across page ends; all of it or a fault.
pub fn read_linear<M: PhysicalMemory>(
    memory: &M,
    paging: PagingFeatures,
    state: &State,
    linear: u64,
    access: Access,
    buffer: &mut [u8],
) -> Result<(), Fault> {
    let mut linear = advance(state, linear, 0);
    let mut rest = buffer;
    while !rest.is_empty() {
        let in_page = PAGE_BYTES - linear % PAGE_BYTES;
        let take = usize::try_from(in_page).map_or(rest.len(), |page| page.min(rest.len()));
        let (part, after) = rest.split_at_mut(take);
        let gpa = match translate_marked(memory, paging, state, linear, access) {
            Some(gpa) => gpa,
            None => translate(memory, paging, state, linear, access)?.gpa,
        };
        memory.read(gpa, part).map_err(|_| Fault::NotMemory(gpa.as_u64()))?;
        linear = advance(state, linear, in_page);
        rest = after;
    }
    Ok(())
}

/// Reads a little-endian number of `bytes`, 1 to 8, from `linear`.
pub(super) fn read_number<M: PhysicalMemory>(
    memory: &M,
    paging: PagingFeatures,
    state: &State,
    linear: u64,
    access: Access,
    bytes: usize,
) -> Result<u64, Fault> {
    let mut buffer = [0; 8];
    read_linear(memory, paging, state, linear, access, &mut buffer[..bytes])?;
    Ok(u64::from_le_bytes(buffer))
}

/// The part of a store that lies in one page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Where it begins, and what the walk has to mark.
    pub translation: Translation,
    /// How many bytes, at least 1. They do not cross a page end.
    pub bytes: u64,
}

/// The one or two pages to which `bytes` from `linear` on go, in order.
///
/// Two linear pages that follow each other need not do so in guest-physical memory: decide about
/// each part and join the decisions.
///
/// Panics if there are no bytes or more than a page of them.
pub fn translate_span<M: PhysicalMemory>(
    memory: &M,
    paging: PagingFeatures,
    state: &State,
    linear: u64,
    bytes: usize,
    access: Access,
) -> Result<ArrayVec<Part, 2>, Fault> {
    let bytes = bytes as u64;
    assert!(0 < bytes && bytes <= PAGE_BYTES, "a store goes to one or two pages");
    let linear = advance(state, linear, 0);
    let first = bytes.min(PAGE_BYTES - linear % PAGE_BYTES);
    let mut parts = ArrayVec::new();
    for (linear, bytes) in [(linear, first), (advance(state, linear, first), bytes - first)] {
        if bytes > 0 {
            let translation = translate(memory, paging, state, linear, access)?;
            parts.push(Part { translation, bytes });
        }
    }
    Ok(parts)
}

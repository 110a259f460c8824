//! Reads of guest memory by linear address.

use subpage::address::PAGE_BYTES;

use super::bits::EFER_LMA;
use super::{Access, Fault, Processor, translate};
use crate::guest::{PhysicalMemory, State};

/// The linear address `bytes` after `linear`; linear addresses of 32 bits wrap.
pub(super) const fn advance(state: &State, linear: u64, bytes: u64) -> u64 {
    let next = linear.wrapping_add(bytes);
    if state.efer & EFER_LMA != 0 { next } else { next & 0xffff_ffff }
}

/// Fills `buffer` from `linear` on, across page ends; all of it or a fault.
pub fn read_linear<M: PhysicalMemory>(
    memory: &M,
    processor: Processor,
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
        let gpa = translate(memory, processor, state, linear, access)?.gpa;
        memory.read(gpa, part).map_err(|_| Fault::NotMemory(gpa.as_u64()))?;
        linear = advance(state, linear, in_page);
        rest = after;
    }
    Ok(())
}

/// Reads a little-endian number of `bytes`, 1 to 8, from `linear`.
pub(super) fn read_number<M: PhysicalMemory>(
    memory: &M,
    processor: Processor,
    state: &State,
    linear: u64,
    access: Access,
    bytes: usize,
) -> Result<u64, Fault> {
    let mut buffer = [0; 8];
    read_linear(memory, processor, state, linear, access, &mut buffer[..bytes])?;
    Ok(u64::from_le_bytes(buffer))
}

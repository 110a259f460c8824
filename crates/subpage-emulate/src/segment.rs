//! From an offset in a segment to a linear address.

use iced_x86::Register as Name;

use super::bits::{CR0_PE, RFLAGS_VM};
use super::{Exception, is_canonical};
use crate::guest::{Segment, State};

/// The segment register that an instruction names.
pub(super) const fn segment(state: &State, name: Name) -> Segment {
    let segments = &state.segments;
    match name {
        Name::ES => segments.es,
        Name::CS => segments.cs,
        Name::SS => segments.ss,
        Name::FS => segments.fs,
        Name::GS => segments.gs,
        _ => segments.ds,
    }
}

/// The linear address of `bytes` at `offset`, if the segment permits the access.
///
/// In 64-bit mode only FS and GS have a base, and what is checked is that the address is canonical;
/// elsewhere type and limit are checked (SDM Vol. 3A, "Limit Checking", "Type Checking"). Errors: #SS
/// for the stack segment, #GP for any other.
pub(super) fn linear(
    state: &State,
    name: Name,
    offset: u64,
    bytes: u64,
    write: bool,
) -> Result<u64, Exception> {
    debug_assert!(bytes > 0, "an access has bytes");
    if state.is_64_bit() {
        return linear_of_64_bits(state, name, offset, bytes);
    }
    let segment = segment(state, name);
    let protected = state.cr0 & CR0_PE != 0 && state.rflags & RFLAGS_VM == 0;
    if protected && !type_permits(segment, write) || !within_limit(segment, offset, bytes) {
        return Err(denied(name));
    }
    Ok(segment.base.wrapping_add(offset) & 0xffff_ffff)
}

/// [`linear`] in 64-bit mode.
#[inline]
pub(super) fn linear_of_64_bits(
    state: &State,
    name: Name,
    offset: u64,
    bytes: u64,
) -> Result<u64, Exception> {
    let base = match name {
        Name::FS => state.segments.fs.base,
        Name::GS => state.segments.gs.base,
        _ => 0,
    };
    let first = base.wrapping_add(offset);
    let last = first.wrapping_add(bytes - 1);
    let whole = is_canonical(first) && is_canonical(last) && first <= last;
    if whole { Ok(first) } else { Err(denied(name)) }
}

/// What an access causes that its segment does not permit.
const fn denied(name: Name) -> Exception {
    match name {
        Name::SS => Exception::stack(0),
        _ => Exception::general_protection(0),
    }
}

/// The linear address of an offset, whatever the segment permits.
pub(super) const fn unchecked(state: &State, name: Name, offset: u64) -> u64 {
    let base = segment(state, name).base;
    if state.is_64_bit() {
        let has_base = matches!(name, Name::FS | Name::GS);
        return if has_base { base.wrapping_add(offset) } else { offset };
    }
    base.wrapping_add(offset) & 0xffff_ffff
}

const fn type_permits(segment: Segment, write: bool) -> bool {
    const UNUSABLE: u32 = 1 << 16;
    const CODE: u32 = 1 << 3;
    const READABLE_OR_WRITABLE: u32 = 1 << 1;
    if segment.access & UNUSABLE != 0 {
        return false;
    }
    let second = segment.access & READABLE_OR_WRITABLE != 0;
    match (segment.access & CODE != 0, write) {
        (true, true) => false,
        (true, false) | (false, true) => second,
        (false, false) => true,
    }
}

const fn within_limit(segment: Segment, offset: u64, bytes: u64) -> bool {
    const EXPAND_DOWN_DATA: u32 = 1 << 2;
    const CODE: u32 = 1 << 3;
    let limit = segment.limit as u64;
    let Some(last) = offset.checked_add(bytes - 1) else { return false };
    if segment.access & (CODE | EXPAND_DOWN_DATA) == EXPAND_DOWN_DATA {
        let top = if segment.is_big() { 0xffff_ffff } else { 0xffff };
        return offset > limit && last <= top;
    }
    last <= limit
}

//! XSAVE and its kin: which state components go where (SDM Vol. 1, "XSAVE Area").

use core::arch::x86_64::__cpuid_count;
use core::ops::Range;

use iced_x86::Mnemonic;

use super::extent::Extent;
use super::store::{Refusal, Store};
use super::{Exception, MAX_STORE_BYTES, Unsupported};
use crate::guest::{Register, State};

/// The leaf of CPUID that tells of state components.
const LEAF: u32 = 0xd;

/// The legacy region and the header.
const FIXED_BYTES: usize = 576;

/// The first component behind the header: AVX.
const FIRST: u32 = 2;

/// The components that an instruction is asked for and the area that they take.
///
/// All of the area counts as written, although the instruction may leave components in their initial
/// configuration, unchanged ones and gaps as they are. IA32_XSS is 0 in guests: what it would enable is not
/// offered to them.
pub(super) fn settle(store: &Store, state: &State, xcr0: u64) -> Result<Store, Refusal> {
    let mnemonic = store.instruction().mnemonic();
    if matches!(mnemonic, Mnemonic::Xsaves | Mnemonic::Xsaves64) && state.cpl > 0 {
        return Err(Exception::general_protection(0).into());
    }
    let half = |register| state.registers[register] & 0xffff_ffff;
    let components = (half(Register::Rdx) << 32 | half(Register::Rax)) & xcr0;
    if !state.is_64_bit() && components & !NARROW != 0 {
        return Err(Unsupported::ExtendedState.into());
    }
    // Each component has a place of its own.
    let standard = matches!(
        mnemonic,
        Mnemonic::Xsave | Mnemonic::Xsave64 | Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64
    );
    let length = if standard { standard_bytes(components) } else { compacted_bytes(components) };
    if length > MAX_STORE_BYTES {
        return Err(Unsupported::ExtendedState.into());
    }
    store.narrowed(state, 0, length, Extent::Components(components))
}

/// Components that are known outside of 64-bit mode: x87, SSE, AVX and protection keys.
const NARROW: u64 = 7 | 1 << 9;

/// What the instruction leaves as it is outside of 64-bit mode: the upper eight of the vector registers. AVX
/// follows the header in either format, so their upper halves have one place.
pub(super) const LEFT_OUT: [Range<usize>; 2] = [288..512, 704..832];

/// Size, offset in the standard format, and whether it is aligned in the compacted one.
fn layout(component: u32) -> (usize, usize, bool) {
    let leaf = __cpuid_count(LEAF, component);
    (leaf.eax as usize, leaf.ebx as usize, leaf.ecx & 1 << 1 != 0)
}

fn extended(components: u64) -> impl Iterator<Item = u32> {
    (FIRST..63).filter(move |component| components >> component & 1 != 0)
}

fn standard_bytes(components: u64) -> usize {
    let ends = extended(components).map(|component| {
        let (size, offset, _) = layout(component);
        offset + size
    });
    ends.max().unwrap_or(0).max(FIXED_BYTES)
}

fn compacted_bytes(components: u64) -> usize {
    extended(components).fold(FIXED_BYTES, |end, component| {
        let (size, _, aligned) = layout(component);
        (if aligned { end.next_multiple_of(64) } else { end }) + size
    })
}

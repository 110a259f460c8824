//! Reads the memory-type range registers.
//!
//! Unsafe because they are model-specific.
#![allow(unsafe_code)]

use super::{cpuid, msr, msr::Msr};
use crate::devices::{FIXED, MAX_VARIABLE, MemoryTypes};

/// What this processor's registers hold.
pub fn read() -> MemoryTypes {
    let mut types =
        MemoryTypes { default: None, fixed: [0; FIXED.len()], variable: arrayvec::ArrayVec::new() };
    // CPUID leaf 1, EDX bit 12.
    if cpuid::leaf(1, 0).edx & 1 << 12 == 0 {
        return types;
    }
    // SAFETY: CPUID says that the registers exist (so the next).
    let capability = unsafe { msr::read(Msr::MTRR_CAP) };
    // SAFETY: as above.
    types.default = Some(unsafe { msr::read(Msr::MTRR_DEF_TYPE) });
    const HAS_FIXED: u64 = 1 << 8;
    if capability & HAS_FIXED != 0 {
        for (value, (number, ..)) in types.fixed.iter_mut().zip(FIXED) {
            // SAFETY: IA32_MTRRCAP says that they exist.
            *value = unsafe { msr::read(Msr(number)) };
        }
    }
    for number in (0..u32::from(capability.to_le_bytes()[0])).take(MAX_VARIABLE) {
        let base = Msr(Msr::MTRR_VARIABLE.0 + 2 * number);
        // SAFETY: IA32_MTRRCAP counts them.
        let first = unsafe { msr::read(base) };
        // SAFETY: as above.
        let mask = unsafe { msr::read(Msr(base.0 + 1)) };
        types.variable.push((first, mask));
    }
    types
}

//! What CPUID tells guests of the processor's features: none that the hypervisor refuses, and none whose
//! state or memory it could not decide about.

use crate::processor::cpuid::CpuidResult;

/// Components of XCR0 that guests may enable: x87, SSE, AVX, AVX-512. A store in software knows no other.
pub(super) const XCR0_OFFERED: u64 = 7 | 7 << 5;

/// Answers of CPUID as the processor gives them, by leaf and subleaf.
pub(super) type Read<'a> = &'a dyn Fn(u32, u32) -> CpuidResult;

const NOTHING: CpuidResult = CpuidResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };

/// Leaf and subleaf without what no guest is offered, and for one with devices without what would go past
/// its tables. What else a leaf tells is left as it is.
pub(super) fn offered(leaf: u32, subleaf: u32, has_devices: bool, read: Read<'_>) -> CpuidResult {
    let mut result = read(leaf, subleaf);
    match leaf {
        1 => {
            const VMX: u32 = 1 << 5;
            const SMX: u32 = 1 << 6;
            const MONITOR: u32 = 1 << 3;
            const HYPERVISOR: u32 = 1 << 31;
            result.ecx = result.ecx & !(VMX | SMX | MONITOR) | HYPERVISOR;
            // Records of stores and branches, which go to linear addresses: the hypervisor's own, if one
            // is written while it runs.
            const STORE_64: u32 = 1 << 2;
            const STORE_BY_LEVEL: u32 = 1 << 4;
            const DEBUG_STORE: u32 = 1 << 21;
            result.ecx &= !(STORE_64 | STORE_BY_LEVEL);
            result.edx &= !DEBUG_STORE;
        }
        // Tables of hardware feedback, which the processor writes to physical memory.
        6 => result.eax &= !(1 << 19 | 1 << 23),
        7 => features(&mut result, subleaf, has_devices),
        0xD => state(&mut result, subleaf, read),
        // Processor trace, tiles.
        0x14 if has_devices => result = NOTHING,
        0x1D | 0x1E => result = NOTHING,
        _ => {}
    }
    result
}

/// Leaf 7, "Structured Extended Feature Flags".
fn features(result: &mut CpuidResult, subleaf: u32, has_devices: bool) {
    match subleaf {
        0 => {
            // What `CR4_NOT_OFFERED` refuses, no enclaves, and no component that XCR0 does not take.
            const LA57: u32 = 1 << 16;
            const PROTECTION_KEYS: u32 = 1 << 3 | 1 << 4 | 1 << 31;
            const SHADOW_STACKS: u32 = 1 << 7;
            const KEY_LOCKER: u32 = 1 << 23;
            const USER_INTERRUPTS: u32 = 1 << 5;
            const BRANCH_TRACKING: u32 = 1 << 20;
            const TILES: u32 = 1 << 22 | 1 << 24 | 1 << 25;
            const SGX: u32 = 1 << 2;
            const BOUNDS: u32 = 1 << 14;
            result.ecx &= !(LA57 | PROTECTION_KEYS | SHADOW_STACKS | KEY_LOCKER);
            result.edx &= !(USER_INTERRUPTS | BRANCH_TRACKING | TILES);
            result.ebx &= !(SGX | BOUNDS);
            if has_devices {
                // What the controls refuse, and traces, which write to physical memory.
                const PROCESSOR_TRACE: u32 = 1 << 25;
                const WAIT: u32 = 1 << 5;
                const CONFIGURE: u32 = 1 << 18;
                result.ebx &= !PROCESSOR_TRACE;
                result.ecx &= !WAIT;
                result.edx &= !CONFIGURE;
            }
        }
        1 => {
            const FRED_LKGS: u32 = 3 << 17;
            const LINEAR_ADDRESS_SEPARATION: u32 = 1 << 6;
            const LINEAR_ADDRESS_MASKING: u32 = 1 << 26;
            const TILES_FP16: u32 = 1 << 21;
            const TILES_COMPLEX: u32 = 1 << 8;
            const MORE_REGISTERS: u32 = 1 << 21;
            result.eax &=
                !(FRED_LKGS | LINEAR_ADDRESS_SEPARATION | LINEAR_ADDRESS_MASKING | TILES_FP16);
            result.edx &= !(TILES_COMPLEX | MORE_REGISTERS);
        }
        _ => {}
    }
}

/// Leaf DH, "Processor Extended State Enumeration": what XCR0 takes of guests, and an IA32_XSS that
/// takes nothing.
fn state(result: &mut CpuidResult, subleaf: u32, read: Read<'_>) {
    const EXTENDED_DISABLE: u32 = 1 << 4;
    let is_offered = |component: u32| component < 64 && XCR0_OFFERED >> component & 1 != 0;
    #[allow(clippy::cast_possible_truncation)] // Both halves are taken.
    let (low, high) = (XCR0_OFFERED as u32, (XCR0_OFFERED >> 32) as u32);
    match subleaf {
        0 => {
            result.eax &= low;
            result.edx &= high;
            // Bytes for all that can be enabled; EBX is of what is.
            const LEGACY_AND_HEADER: u32 = 512 + 64;
            let ends =
                (2..32).filter(|&component| result.eax >> component & 1 != 0).map(|component| {
                    let place = read(0xD, component);
                    place.eax.saturating_add(place.ebx)
                });
            result.ecx = ends.fold(LEGACY_AND_HEADER, u32::max);
        }
        1 => {
            result.eax &= !EXTENDED_DISABLE;
            result.ecx = 0;
            result.edx = 0;
        }
        component if !is_offered(component) => *result = NOTHING,
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A processor that has everything; its components lie one behind the other.
    fn read(leaf: u32, subleaf: u32) -> CpuidResult {
        match (leaf, subleaf) {
            (0xD, 0) => CpuidResult { eax: 0x000E_02FF, ebx: 0x240, ecx: 0x2B00, edx: 0 },
            (0xD, 1) => CpuidResult { eax: 0x1F, ebx: 0x240, ecx: 0x1_FD00, edx: 1 },
            (0xD, component) => {
                CpuidResult { eax: 0x100, ebx: 0x240 + (component - 2) * 0x100, ecx: 0, edx: 0 }
            }
            _ => CpuidResult { eax: !0, ebx: !0, ecx: !0, edx: !0 },
        }
    }

    #[test]
    fn every_component_that_is_offered_can_be_enabled_and_no_other_is_told_of() {
        let all = offered(0xD, 0, true, &read);
        assert_eq!((all.eax, all.edx), (0xE7, 0));
        // The end of component 7.
        assert_eq!((all.ebx, all.ecx), (0x240, 0x240 + 6 * 0x100));
        for component in 2..64 {
            let told = offered(0xD, component, true, &read) != NOTHING;
            assert_eq!(told, matches!(component, 2 | 5..=7), "component {component}");
        }
        let without_avx = |leaf, subleaf| match (leaf, subleaf) {
            (0xD, 0) => CpuidResult { eax: 3, ..NOTHING },
            _ => read(leaf, subleaf),
        };
        assert_eq!(offered(0xD, 0, true, &without_avx).ecx, 576);
        for has_devices in [false, true] {
            let features = offered(7, 0, has_devices, &read);
            assert_eq!(features.ebx & 1 << 14, 0, "MPX");
            assert_eq!(features.edx & (1 << 22 | 1 << 24 | 1 << 25), 0, "AMX");
            assert_eq!(offered(7, 1, has_devices, &read).eax & 1 << 21, 0, "AMX-FP16");
            assert_eq!(offered(0x1D, 1, has_devices, &read), NOTHING);
        }
    }

    #[test]
    fn nothing_is_offered_that_writes_past_the_tables() {
        let state = offered(0xD, 1, true, &read);
        assert_eq!((state.eax, state.ecx, state.edx), (0xF, 0, 0), "IA32_XSS");
        let first = offered(1, 0, true, &read);
        assert_eq!(first.edx & 1 << 21, 0, "debug store");
        assert_eq!(first.ecx & (1 << 2 | 1 << 4 | 1 << 5), 0, "debug store, VMX");
        assert_eq!(offered(6, 0, true, &read).eax & (1 << 19 | 1 << 23), 0, "hardware feedback");
        assert_eq!(offered(7, 0, true, &read).ebx & 1 << 25, 0, "processor trace");
        assert_eq!(offered(0x14, 0, true, &read), NOTHING);
        // What is harmless stays.
        assert_eq!(offered(7, 0, true, &read).ebx & 1 << 5, 1 << 5, "AVX2");
        assert_eq!(offered(0x8000_0001, 0, true, &read), read(0x8000_0001, 0));
    }
}

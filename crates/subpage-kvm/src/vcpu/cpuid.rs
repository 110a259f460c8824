//! What the guest is told of its processor.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use subpage::address::PhysicalWidth;
use subpage_emulate::PagingFeatures;

const FEATURES: u32 = 1;
const STRUCTURED: u32 = 7;
const XSTATE: u32 = 0xd;
const TOPOLOGY: [u32; 2] = [0xb, 0x1f];
const EXTENDED_FEATURES: u32 = 0x8000_0001;
const WIDTHS: u32 = 0x8000_0008;
const AMD_TOPOLOGY: u32 = 0x8000_001e;
const HYPERVISOR: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4000_ffff;

/// KVM's CPUID without what a guarded guest must not have, for the processor `number` of `cpus`.
///
/// Taken away: nested virtualization (a second-level guest writes through tables that nobody here
/// fills), KVM's paravirtual services (through which KVM itself writes guest memory), and what the
/// software page walk does not know: five-level paging, protection keys, shadow stacks. AMX goes
/// because its state does not fit what is saved.
pub fn for_guest(supported: &CpuId, number: u32, cpus: u32) -> CpuId {
    let mut entries = supported.as_slice().to_vec();
    entries.retain(|entry| !HYPERVISOR.contains(&entry.function));
    for entry in &mut entries {
        match (entry.function, entry.index) {
            (FEATURES, _) => {
                // VMX; MONITOR, whose wait KVM does not do.
                entry.ecx &= !(1 << 5 | 1 << 3);
                entry.ebx = entry.ebx & 0xff00 | number << 24 | cpus.min(255) << 16;
                entry.edx = entry.edx & !(1 << 28) | u32::from(cpus > 1) << 28;
            }
            (STRUCTURED, 0) => {
                // SGX; PKU, OSPKE, CET_SS, LA57, PKS.
                entry.ebx &= !(1 << 2);
                entry.ecx &= !(1 << 3 | 1 << 4 | 1 << 7 | 1 << 16 | 1 << 31);
                // CET_IBT, AMX-BF16, AMX-TILE, AMX-INT8.
                entry.edx &= !(1 << 20 | 1 << 22 | 1 << 24 | 1 << 25);
            }
            (STRUCTURED, 1) => {
                // FRED, LKGS, AMX-FP16, LAM.
                entry.eax &= !(1 << 17 | 1 << 18 | 1 << 21 | 1 << 26);
            }
            (XSTATE, 0) => {
                // PKRU and the tiles.
                entry.eax &= !(1 << 9 | 1 << 17 | 1 << 18);
            }
            (XSTATE, 1) => {
                // Shadow-stack state.
                entry.ecx &= !(1 << 11 | 1 << 12);
            }
            (leaf, _) if TOPOLOGY.contains(&leaf) => entry.edx = number,
            (EXTENDED_FEATURES, _) => entry.ecx &= !(1 << 2), // SVM
            (WIDTHS, _) => entry.ecx = entry.ecx & !0xff | (cpus - 1).min(255),
            (AMD_TOPOLOGY, _) => entry.eax = number,
            _ => {}
        }
    }
    CpuId::from_entries(&entries).expect("fewer entries than KVM gave")
}

/// What page walks in software go by.
pub fn paging_features(cpuid: &CpuId) -> PagingFeatures {
    let leaf = |function: u32| -> Option<&kvm_cpuid_entry2> {
        cpuid.as_slice().iter().find(|entry| entry.function == function)
    };
    let bits = leaf(WIDTHS).map_or(36, |entry| entry.eax & 0xff);
    PagingFeatures {
        physical_width: PhysicalWidth::try_new(bits.clamp(32, 52)).expect("32 to 52 bits"),
        gigabyte_pages: leaf(EXTENDED_FEATURES).is_some_and(|entry| entry.edx & 1 << 26 != 0),
    }
}

//! What a guest has seen of its processor, and must find again.

use kvm_bindings::CpuId;
use serde::{Deserialize, Serialize};

/// The registers of CPUID that tell features: leaf, subleaf, EAX, EBX, ECX, EDX. Those that tell
/// numbers of the host's processor at hand are left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features(Vec<[u32; 6]>);

/// Leaf, subleaf, and the bits of EAX, EBX, ECX and EDX that are features.
const TOLD: [(u32, u32, [u32; 4]); 6] = [
    // OSXSAVE follows CR4.
    (1, 0, [!0, 0, !(1 << 27), !0]),
    (7, 0, [0, !0, !0, !0]),
    (7, 1, [!0, !0, !0, !0]),
    (0xd, 0, [!0, 0, 0, !0]),
    (0x8000_0001, 0, [0, 0, !0, !0]),
    (0x8000_0008, 0, [0xffff, !0, 0, 0]),
];

impl Features {
    /// The features in a guest's CPUID.
    pub fn of(cpuid: &CpuId) -> Self {
        let told = TOLD.iter().filter_map(|&(leaf, subleaf, [a, b, c, d])| {
            let entry = cpuid
                .as_slice()
                .iter()
                .find(|entry| entry.function == leaf && entry.index == subleaf)?;
            Some([leaf, subleaf, entry.eax & a, entry.ebx & b, entry.ecx & c, entry.edx & d])
        });
        Self(told.collect())
    }
}

//! What a guest has seen of its processor, and must find again.

use kvm_bindings::CpuId;
use serde::{Deserialize, Serialize};

use crate::vcpu::features::names_of;

/// The registers of CPUID that tell features: leaf, subleaf, EAX, EBX, ECX, EDX. Those that tell
/// numbers of the host's processor at hand are left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features(Vec<[u32; 6]>);

/// Leaf, subleaf, and the bits of EAX, EBX, ECX and EDX that are features.
const TOLD: [(u32, u32, [u32; 4]); 8] = [
    // OSXSAVE follows CR4; that there is a hypervisor is no feature.
    (1, 0, [!0, 0, !(1 << 27 | 1 << 31), !0]),
    (7, 0, [0, !0, !0, !0]),
    (7, 1, [!0, !0, !0, !0]),
    (0xd, 0, [!0, 0, 0, !0]),
    LATER[0],
    LATER[1],
    (0x8000_0001, 0, [0, 0, !0, !0]),
    (0x8000_0008, 0, [0xffff, !0, 0, 0]),
];

/// Rows that snapshots of older versions do not have.
const LATER: [(u32, u32, [u32; 4]); 2] = [(0xd, 1, [!0, 0, 0, 0]), (0x4000_0001, 0, [!0, 0, 0, 0])];

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

    /// The features that a guest has seen and does not find `here`, and those that it would find besides.
    pub fn differences(&self, here: &Self) -> (Vec<String>, Vec<String>) {
        let (mut gone, mut new) = (Vec::new(), Vec::new());
        for (leaf, subleaf, _) in TOLD {
            let row = |of: &Self| of.0.iter().copied().find(|row| row[..2] == [leaf, subleaf]);
            let saved = match row(self) {
                Some(row) => row,
                None if LATER.iter().any(|row| (leaf, subleaf) == (row.0, row.1)) => continue,
                None => [leaf, subleaf, 0, 0, 0, 0],
            };
            let found = row(here).unwrap_or([leaf, subleaf, 0, 0, 0, 0]);
            for output in 0..4 {
                let (saved, found) = (saved[2 + output], found[2 + output]);
                gone.extend(names_of(leaf, subleaf, output, saved & !found));
                new.extend(names_of(leaf, subleaf, output, found & !saved));
            }
        }
        // What a hostile file has besides is no feature.
        (gone, new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named() {
        let saved = Features(vec![[1, 0, 7, 0, 1 << 13, 0], [0xd, 0, 7, 0, 0, 0]]);
        let here =
            Features(vec![[1, 0, 7, 0, 1 << 28, 0], [0xd, 0, 7, 0, 0, 0], [0xd, 1, 2, 0, 0, 0]]);
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        // An older snapshot says nothing of XSAVEC.
        assert_eq!(saved.differences(&here), (names(&["cx16"]), names(&["avx"])));
        assert_eq!(here.differences(&saved), (names(&["avx", "xsavec"]), names(&["cx16"])));
        let none = (Vec::new(), Vec::new());
        assert_eq!(here.differences(&here), none);
        let odd =
            Features(vec![[1, 0, 7, 0, 1 << 13, 0], [0xd, 0, 7, 0, 0, 0], [99, 0, 1, 1, 1, 1]]);
        assert_eq!(saved.differences(&odd), none);
    }
}

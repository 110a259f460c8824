//! Starts that the hypervisor has to refuse: a line that says why, and an orderly end.

use std::time::Duration;

use crate::bochs::{
    images::Images,
    machine::{Contents, Machine},
    probe,
};

/// None of them takes more than a moment.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

/// A start that goes wrong.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) name: &'static str,
    /// Words of the reason that the hypervisor gives.
    pub(super) reason: &'static str,
    /// Makes a start that would succeed into this one.
    alter: fn(&mut Machine),
}

impl Refusal {
    pub(super) fn machine(&self, images: &Images) -> Machine {
        let mut machine = super::guest(images, probe::WITH_SPP, 1, "list");
        (self.alter)(&mut machine);
        machine
    }
}

pub(super) const ALL: &[Refusal] = &[
    Refusal {
        name: "no_vmx",
        reason: "VMX",
        alter: |machine| machine.model = probe::WITHOUT_VMX.into(),
    },
    Refusal {
        name: "too_little_memory",
        reason: "memory",
        alter: |machine| machine.memory_mib = 4,
    },
    Refusal { name: "no_guest_module", reason: "guest", alter: |machine| machine.modules.clear() },
    Refusal {
        name: "damaged_guest_module",
        reason: "guest",
        alter: |machine| {
            machine.modules = vec![("guest".into(), Contents::Bytes(noise(8192)))];
        },
    },
    Refusal {
        name: "damaged_policy_module",
        reason: "policy",
        alter: |machine| {
            machine.modules.push(("policy".into(), Contents::Bytes(noise(777))));
        },
    },
    Refusal {
        name: "truncated_multiboot_information",
        reason: "Multiboot2 information",
        alter: |machine| {
            machine.damage = Some(|block| block.truncate(20));
        },
    },
    Refusal {
        name: "unknown_option",
        reason: "\"colour=red\" is no option",
        alter: |machine| machine.command_line = "subpage colour=red".into(),
    },
];

/// Bytes that mean nothing, the same each time.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        // Xorshift, Marsaglia 2003.
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

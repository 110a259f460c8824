//! Starts that the hypervisor has to refuse: a line that says why, and an orderly end.

use std::time::Duration;

use crate::bochs::{
    images::Images,
    machine::{BochsMachine, Contents},
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
    alter: fn(&mut BochsMachine),
}

impl Refusal {
    pub(super) fn machine(&self, images: &Images) -> BochsMachine {
        let mut machine = super::guest(images, probe::WITH_SPP, 1, "list");
        (self.alter)(&mut machine);
        machine
    }
}

/// A policy, made by the tool, that is in force from the guest's first instruction on: it guards the
/// guest itself, its data included, so the first store to it ends the machine.
pub(super) const POLICY: Refusal =
    Refusal { name: "policy_in_force", reason: "rule 1 was violated", alter: |_| {} };

/// The policy, and the arguments that make a module of it.
pub(super) const POLICY_SOURCE: &str = "examples/hypervisor/policy.toml";

pub(super) const ALL: &[Refusal] = &[
    Refusal {
        name: "no_64_bit_mode",
        reason: "this processor has no 64-bit mode (CPUID 80000001H EDX bit 29)",
        alter: |machine| machine.model = "core_duo_t2400_yonah".into(),
    },
    Refusal {
        name: "no_vmx",
        reason: "this processor has no VMX (CPUID 1 ECX bit 5 is 0)",
        alter: |machine| machine.model = probe::WITHOUT_VMX.into(),
    },
    Refusal {
        name: "no_monitor_trap_flag",
        reason: "IA32_VMX_PROCBASED_CTLS (MSR 482H) does not allow bit 27",
        alter: |machine| machine.model = "core2_penryn_t9600".into(),
    },
    Refusal {
        name: "no_unrestricted_guest",
        reason: "IA32_VMX_PROCBASED_CTLS2 (MSR 48BH) does not allow bit 7",
        alter: |machine| machine.model = "corei5_lynnfield_750".into(),
    },
    Refusal {
        name: "too_few_processors",
        reason: "cpus=2, but only 1 processors have started",
        alter: |machine| machine.command_line = "subpage memory=32 cpus=2 -- list".into(),
    },
    Refusal {
        name: "too_little_memory",
        reason: "too little memory: no free area of 16 MiB for the hypervisor",
        alter: |machine| machine.memory_mib = 4,
    },
    Refusal {
        name: "too_little_memory_for_the_guest",
        reason: "too little memory: no free area of 32 MiB for the guest",
        alter: |machine| machine.memory_mib = 40,
    },
    Refusal {
        name: "guest_does_not_fit",
        reason: "the guest's segment of ",
        alter: |machine| machine.command_line = "subpage memory=1 -- list".into(),
    },
    Refusal {
        name: "unknown_option",
        reason: "command line: \"colour=red\" is no option",
        alter: |machine| machine.command_line = "subpage colour=red".into(),
    },
    Refusal {
        name: "no_guest_module",
        reason: "no Multiboot2 module is named \"guest\"",
        alter: |machine| machine.modules.clear(),
    },
    Refusal {
        name: "empty_guest_module",
        reason: "the guest module is no ELF64 image",
        alter: |machine| machine.modules = vec![("guest".into(), Contents::Bytes(Vec::new()))],
    },
    Refusal {
        name: "damaged_guest_module",
        reason: "the guest module is no ELF64 image",
        alter: |machine| machine.modules = vec![("guest".into(), Contents::Bytes(noise(8192)))],
    },
    Refusal {
        name: "damaged_policy_module",
        reason: "the policy module cannot be used",
        alter: |machine| machine.modules.push(("policy".into(), Contents::Bytes(noise(777)))),
    },
    Refusal {
        name: "module_that_ends_before_it_begins",
        reason: "the Multiboot2 information is damaged at byte ",
        alter: |machine| {
            machine.damage = Some(|block| {
                let module = tag(block, 3);
                block[module + 8..module + 16].rotate_left(4);
            });
        },
    },
    Refusal {
        name: "no_memory_map",
        reason: "the Multiboot2 information has no memory map (tag 6)",
        alter: |machine| {
            machine.damage = Some(|block| {
                let map = tag(block, 6);
                block[map..map + 4].copy_from_slice(&99_u32.to_le_bytes());
            });
        },
    },
    Refusal {
        name: "truncated_information",
        reason: "the Multiboot2 information is damaged at byte ",
        alter: |machine| machine.damage = Some(|block| block.truncate(20)),
    },
    Refusal {
        name: "endless_information",
        reason: " claims 4294967295 bytes",
        alter: |machine| machine.damage = Some(|block| block[..4].fill(0xff)),
    },
    Refusal {
        name: "tag_without_end",
        reason: "the Multiboot2 information is damaged at byte ",
        alter: |machine| {
            machine.damage = Some(|block| {
                let map = tag(block, 6);
                block[map + 4..map + 8].fill(0xff);
            });
        },
    },
    Refusal {
        name: "command_line_that_is_no_text",
        reason: "has a text that is not UTF-8",
        alter: |machine| {
            machine.damage = Some(|block| {
                let command_line = tag(block, 1);
                block[command_line + 8] = 0xff;
            });
        },
    },
];

/// Where the first tag of a kind begins in an information block.
fn tag(block: &[u8], kind: u32) -> usize {
    let word = |at: usize| {
        let bytes = block[at..at + 4].try_into().expect("four bytes are four bytes");
        u32::from_le_bytes(bytes)
    };
    let mut at = 8;
    while word(at) != kind {
        let size = usize::try_from(word(at + 4)).expect("a small number");
        at += size.next_multiple_of(8);
    }
    at
}

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

//! Starts of a Linux kernel that the hypervisor refuses, each with one line, before the guest runs.

use std::time::Duration;

use super::{Expectation, Expected, Test};
use crate::bochs::linux::LinuxMachine;

/// A refusal takes a moment.
const LIMIT: Duration = Duration::from_secs(60);

/// The starts, each with words of the reason that the hypervisor gives.
pub(super) fn all(plain: &LinuxMachine, policy: &[u8], low: &[u8]) -> Vec<Test> {
    let refused = |name: &str, last, alter: &dyn Fn(&mut LinuxMachine)| {
        let mut machine = plain.clone();
        alter(&mut machine);
        let expected = Expectation::Lines(Expected { console: &[], lines: &[], last });
        Test { name: name.into(), machine, limit: LIMIT, expected }
    };
    vec![
        refused("no_kernel", "the module \"linux\": it is no bzImage", &|machine| {
            machine.kernel = b"\x7fELF".repeat(4096);
        }),
        refused("old_kernel", "boot protocol 2.11, 2.12 (Linux 3.8) is needed", &|machine| {
            machine.kernel[0x206] = 0x0b;
        }),
        refused("cut_kernel", "the bzImage is cut off", &|machine| {
            machine.kernel.truncate(machine.kernel.len() / 2);
        }),
        refused("too_little_memory", "the kernel runs at 0x1000000 to ", &|machine| {
            machine.told_memory_mib = Some(48);
        }),
        refused(
            "initrd_does_not_fit",
            "the initrd has 32768 KiB, for which no room is",
            &|machine| {
                machine.told_memory_mib = Some(96);
                machine.initrd = Some(vec![0; 32 << 20]);
            },
        ),
        refused("a_kernel_that_moves", "add `nokaslr` to its command line", &|machine| {
            machine.policy = Some(policy.to_vec());
            machine.command_line = machine.command_line.replace("nokaslr ", "");
        }),
        refused(
            "rule_on_the_first_page_tables",
            "where the kernel has its first stack and page tables",
            &|machine| machine.policy = Some(low.to_vec()),
        ),
        refused("damaged_policy", "the policy module cannot be used", &|machine| {
            machine.policy = Some(policy[..policy.len() - 1].to_vec());
        }),
        refused("damaged_names", "the module \"names\" cannot be used: it has ", &|machine| {
            machine.names = Some([&b"SPNAMES\x01"[..], &[0xff; 64]].concat());
        }),
        refused("names_of_another_kernel", "it is of another kernel", &|machine| {
            machine.names = Some([&b"SPNAMES\x01"[..], &[0; 56]].concat());
        }),
        refused("long_command_line", "the kernel's command line has ", &|machine| {
            machine.command_line += &" x".repeat(1100);
        }),
        refused("two_guests_of_one_console", "COM1 is the Linux kernel's", &|machine| {
            machine.options += " console=com1";
        }),
    ]
}

//! Attacks by a module in the kernel, and a module that guards itself: examples/linux-module.

use super::{BOOT_LIMIT, Expected, HALTED, Test};
use crate::{
    bochs::{linux::LinuxMachine, probe},
    linux::command_line,
};

/// What asks for an attack, one after the other, between two runs of the same work; then the guest
/// removes a rule that is its own, and the write that it denied succeeds.
const COMMANDS: [&str; 25] = [
    "work 20",
    "insmod /attack.ko",
    "echo modprobe_path > /proc/attack",
    "cat /proc/attack",
    "echo core_pattern > /proc/attack",
    "cat /proc/attack",
    "echo system_call > /proc/attack",
    "cat /proc/attack",
    "echo interrupt_gate > /proc/attack",
    "cat /proc/attack",
    "echo alias > /proc/attack",
    "cat /proc/attack",
    "echo own_entry > /proc/attack",
    "cat /proc/attack",
    "echo entry_of_modprobe_path > /proc/attack",
    "cat /proc/attack",
    "echo /tmp/evil > /proc/sys/kernel/modprobe",
    "cat /proc/sys/kernel/modprobe",
    "insmod /locked.ko",
    "echo remove 2 > /proc/locked",
    "cat /proc/locked",
    "echo core_pattern > /proc/attack",
    "cat /proc/attack",
    "work 20",
    "poweroff",
];

/// What the kernel calls where a store came from, in the line of its event.
const STORED_BY: &str = " function=copy_to_kernel_nofault+0x";

const DENIED: Expected = Expected {
    console: &[
        "work: 20 rounds",
        "modprobe_path: unchanged, ",
        "core_pattern: unchanged, ",
        "system_call: unchanged, ",
        "interrupt_gate: unchanged, ",
        "alias: unchanged, ",
        "own_entry: unchanged, ",
        "entry_of_modprobe_path: unchanged, ",
        "# cat /proc/sys/kernel/modprobe",
        "/sbin/modprobe",
        "remove 2: 0",
        "core_pattern: changed, ",
        "work: 20 rounds",
        "# poweroff",
    ],
    lines: &[
        "; EPT flags off; 1 processors;",
        "hypervisor: the first program starts; 4 rules more are in force",
        " denied rule=1 \"modprobe_path\" ",
        STORED_BY,
        " denied rule=2 \"core_pattern\" ",
        STORED_BY,
        " denied rule=3 \"system calls\" ",
        STORED_BY,
        " denied rule=4 \"interrupt gates\" ",
        STORED_BY,
        " denied rule=1 \"modprobe_path\" ",
        STORED_BY,
        " denied rule=1 \"modprobe_path\" ",
        STORED_BY,
        " denied rule=5 \"page table of the kernel\" ",
        STORED_BY,
        " denied rule=1 \"modprobe_path\" ",
        " function=proc_dostring+0x",
        " comm=\"init\" uid=0 task=0xffff888",
        "hypervisor: writes that trapped: 17 denied, ",
    ],
    last: HALTED,
};

/// Without a policy each of them succeeds.
const SUCCEEDED: Expected = Expected {
    console: &[
        "work: 20 rounds",
        "modprobe_path: changed, ",
        "core_pattern: changed, ",
        "system_call: changed, ",
        "interrupt_gate: changed, ",
        "alias: changed, ",
        "own_entry: changed, ",
        "entry_of_modprobe_path: changed, ",
        "# cat /proc/sys/kernel/modprobe",
        "/tmp/evil",
        "remove 2: -2",
        "work: 20 rounds",
        "# poweroff",
    ],
    lines: &["hypervisor: writes that trapped: 0 denied, 0 reported, 0 completed in software"],
    last: HALTED,
};

/// A module locks 128 bytes of its own: its own store is denied then, and nobody removes the rule.
const LOCK: [&str; 13] = [
    "insmod /locked.ko",
    "echo store > /proc/locked",
    "cat /proc/locked",
    "echo lock > /proc/locked",
    "cat /proc/locked",
    "echo store > /proc/locked",
    "cat /proc/locked",
    "echo event > /proc/locked",
    "cat /proc/locked",
    "echo remove > /proc/locked",
    "cat /proc/locked",
    "echo store > /proc/locked",
    "cat /proc/locked",
];

const LOCKED: Expected = Expected {
    console: &[
        "store: inside changed, beside changed",
        "lock: rule 1",
        "store: inside unchanged, beside changed",
        "event: rule 1, outcome 1, 8 bytes inside, by this module",
        "remove 1: -1",
        "store: inside unchanged, beside changed",
        "# poweroff",
    ],
    lines: &[
        " denied rule=1 \"the module's own\" ",
        " denied rule=1 \"the module's own\" ",
        "hypervisor: writes that trapped: 2 denied, 0 reported, 0 completed in software",
    ],
    last: HALTED,
};

/// Their names.
pub(super) const NAMES: [&str; 4] = [
    "attacks_of_a_module",
    "attacks_of_a_module_in_software",
    "attacks_of_a_module_unguarded",
    "a_module_guards_itself",
];

/// The tests; `plain` has an initrd with the modules.
pub(super) fn all(plain: &LinuxMachine, policy: &[u8]) -> Vec<Test> {
    let test = |name: &str, machine, expected| Test {
        name: name.into(),
        machine,
        limit: BOOT_LIMIT,
        expected,
    };
    let attacked = LinuxMachine { command_line: command_line(1, &COMMANDS), ..plain.clone() };
    let guarded = LinuxMachine { policy: Some(policy.to_vec()), ..attacked.clone() };
    let lock: Vec<_> = LOCK.into_iter().chain(["poweroff"]).collect();
    let itself = LinuxMachine { command_line: command_line(1, &lock), ..plain.clone() };
    let [by_processor, in_software, unguarded, locked] = NAMES;
    let software = LinuxMachine { model: probe::WITHOUT_SPP.into(), ..guarded.clone() };
    vec![
        test(by_processor, guarded, DENIED),
        test(in_software, software, DENIED),
        test(unguarded, attacked, SUCCEEDED),
        test(locked, itself, LOCKED),
    ]
}

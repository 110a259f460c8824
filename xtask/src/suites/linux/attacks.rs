//! Attacks by a module in the kernel, and a module that guards itself: examples/linux-module.

use super::{BOOT_LIMIT, Expectation, Expected, Test};
use crate::{
    bochs::{linux::LinuxMachine, probe},
    linux::{
        command_line,
        scenario::{HALTED, Scenario},
    },
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
    let scenario = Scenario::whole();
    let attacked =
        LinuxMachine { command_line: command_line(1, &scenario.commands()), ..plain.clone() };
    let guarded = LinuxMachine { policy: Some(policy.to_vec()), ..attacked.clone() };
    let lock: Vec<_> = LOCK.into_iter().chain(["poweroff"]).collect();
    let itself = LinuxMachine { command_line: command_line(1, &lock), ..plain.clone() };
    let [by_processor, in_software, unguarded, locked] = NAMES;
    let software = LinuxMachine { model: probe::WITHOUT_SPP.into(), ..guarded.clone() };
    let steps = |guarded, line| Expectation::Scenario { guarded, line };
    vec![
        test(
            by_processor,
            guarded,
            steps(true, "by the processor (SPP); EPT flags off; 1 processors;"),
        ),
        test(
            in_software,
            software,
            steps(true, "in software (no SPP); EPT flags off; 1 processors;"),
        ),
        test(unguarded, attacked, steps(false, "; EPT flags off; 1 processors;")),
        test(locked, itself, Expectation::Lines(LOCKED)),
    ]
}

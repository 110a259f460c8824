//! Whole Linux guests under `subpage guard`: the host's own kernel, with a shell that attacks it, and that
//! ends it in each way.

use std::path::Path;

use super::{DENIED, Expected, command};
use crate::lab::{
    Host,
    linux::{KERNEL, LinuxGuest, Policy},
};

/// How the titles of all its parts begin.
pub(super) const NAME: &str = "Linux";

/// Why they do not run unasked on this host, if they do not.
pub(super) fn by_name_alone(host: Host) -> Option<&'static str> {
    match host {
        Host::Amd => None,
        Host::Intel => Some("minutes for each"),
    }
}

/// The status of `subpage guard` for a guest that has failed.
const GUEST_FAILED: u8 = 4;

const SWITCHED_OFF: &str = "the guest has switched itself off";

/// The parts of a host's job that boot Linux.
pub(super) fn parts(host: Host, example: &Path) -> Vec<Expected> {
    let processors: &[&str] = match host {
        Host::Amd => &["1", "2", "4"],
        Host::Intel => &["1"],
    };
    let mut parts = Vec::new();
    // Where the processor runs the kernel itself there is one way to trap.
    for processors in processors {
        parts.push(guarded(example, processors));
    }
    if host == Host::Amd {
        parts.push(unguarded(example));
        parts.push(by_default(example));
        parts.push(panics(example));
        parts.push(reboots(example));
    }
    parts
}

/// The kernel's own table of symbols.
pub(super) fn names(example: &Path) -> Expected {
    let policy = example.join("policy.toml").to_string_lossy().into_owned();
    command(
        "names of the kernel".into(),
        &["subpage", "--color", "never", "policy", "check", &policy, KERNEL],
        0,
        &[&["modprobe path", "1 rule, no mistake"]],
    )
}

/// What a guest with a policy of the example says, told nothing, with two processors.
fn guest(example: &Path, policy: Policy) -> LinuxGuest<'_> {
    LinuxGuest { example, processors: "2", policy, told: "", options: "", console_last: true }
}

fn part(title: String, guest: &LinuxGuest<'_>, status: u8, said: &[&[&str]]) -> Expected {
    let words = guest.command();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    command(title, &words, status, said)
}

/// The rules that the tool itself writes for this kernel, of which some arm at the first program.
fn by_default(example: &Path) -> Expected {
    part(
        "Linux with the default pack".into(),
        &guest(example, Policy::DefaultPack),
        DENIED,
        &[&["armed at the first program", "denied"], &["/sbin/modprobe", "# poweroff"]],
    )
}

/// Root's write is denied, and the path stays.
fn guarded(example: &Path, processors: &str) -> Expected {
    part(
        format!("Linux, {processors} CPU"),
        &LinuxGuest { processors, ..guest(example, Policy::File("policy.toml")) },
        DENIED,
        &[
            &[
                "# cat /proc/sys/kernel/modprobe",
                "/sbin/modprobe",
                "# echo /tmp/evil > /proc/sys/kernel/modprobe",
                "# cat /proc/sys/kernel/modprobe",
                "/sbin/modprobe",
                "# poweroff",
            ],
            &["in proc_dostring+0x", "ksys_write+0x", "process 1 init uid 0"],
            &[SWITCHED_OFF, "the most expensive rules", "modprobe path"],
        ],
    )
}

/// The same attack without a rule.
fn unguarded(example: &Path) -> Expected {
    part(
        "Linux without a rule".into(),
        &guest(example, Policy::File("none.toml")),
        0,
        &[
            &[
                "# echo /tmp/evil > /proc/sys/kernel/modprobe",
                "# cat /proc/sys/kernel/modprobe",
                "/tmp/evil",
                "# poweroff",
            ],
            &[SWITCHED_OFF, "nothing denied"],
        ],
    )
}

/// A panic is told with the end of the console, where nothing has shown the console before.
fn panics(example: &Path) -> Expected {
    part(
        "Linux panics".into(),
        &LinuxGuest {
            told: "panic=-1 -- panic",
            options: "--console none --on-failure exit",
            console_last: false,
            ..guest(example, Policy::File("none.toml"))
        },
        GUEST_FAILED,
        &[&[
            "the guest's kernel has panicked (sysrq triggered crash) and asked for a reset",
            "Kernel panic - not syncing: sysrq triggered crash",
            "Call Trace:",
            "sysrq_handle_crash+0x",
            "nothing denied",
        ]],
    )
}

/// A reset that the guest asks for without a panic is no failure.
fn reboots(example: &Path) -> Expected {
    part(
        "Linux reboots".into(),
        &LinuxGuest { told: "-- reboot", ..guest(example, Policy::File("none.toml")) },
        0,
        &[&["# reboot"], &["the guest has asked for a reset", "nothing denied"]],
    )
}

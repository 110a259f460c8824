//! Whole Linux guests under `subpage guard`: the host's own kernel, with a shell that attacks it.

use std::path::Path;

use super::{DENIED, Expected, command};
use crate::lab::Host;

/// How the titles of all its parts begin.
pub(super) const NAME: &str = "Linux";

/// Why they do not run unasked on this host, if they do not.
pub(super) fn by_name_alone(host: Host) -> Option<&'static str> {
    match host {
        Host::Amd => None,
        Host::Intel => Some("minutes for each"),
    }
}

/// Keeps a guest on one processor of its host. In QEMU 10.0 a guest of any VMM whose threads move from
/// one to the other gets an interrupt a second time, while they are off (docs/kvm.md, "Limits").
const STAY: [&str; 2] = ["taskset", "1"];

/// Where the host has its own kernel.
const KERNEL: &str = "/lab/vmlinuz";

/// What is asked of the guest's kernel: nothing on the console but what the shell prints.
const QUIET: &str = "console=ttyS0 quiet";

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
    }
    parts
}

/// The rules that the tool itself writes for this kernel, of which some arm at the first program.
fn by_default(example: &Path) -> Expected {
    let initrd = example.join("initrd.cpio").to_string_lossy().into_owned();
    let stay = STAY.join(" ");
    let script = format!(
        "subpage policy linux --kernel {KERNEL} >/tmp/default.toml && exec {stay} subpage --color never guard --cpus 2 --memory 256M \
         --cmdline '{QUIET}' --initrd {initrd} --policy /tmp/default.toml {KERNEL}"
    );
    command(
        "Linux with the default pack".into(),
        &["sh", "-c", &script],
        DENIED,
        &[&["armed at the first program", "denied"], &["/sbin/modprobe", "# poweroff"]],
    )
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

fn guard(example: &Path, processors: &str, policy: &str) -> Vec<String> {
    let policy = example.join(policy).to_string_lossy().into_owned();
    let initrd = example.join("initrd.cpio").to_string_lossy().into_owned();
    let mut all = Vec::from(STAY);
    all.extend(["subpage", "--color", "never", "guard", "--memory", "256M", "--cpus", processors]);
    all.extend(["--cmdline", QUIET]);
    all.extend(["--initrd", &initrd, "--policy", &policy, KERNEL]);
    all.into_iter().map(str::to_owned).collect()
}

/// Root's write is denied, and the path stays.
fn guarded(example: &Path, processors: &str) -> Expected {
    let words = guard(example, processors, "policy.toml");
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    command(
        format!("Linux, {processors} CPU"),
        &words,
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
        ],
    )
}

/// The same attack without a rule.
fn unguarded(example: &Path) -> Expected {
    let words = guard(example, "2", "none.toml");
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    command(
        "Linux without a rule".into(),
        &words,
        0,
        &[&[
            "# echo /tmp/evil > /proc/sys/kernel/modprobe",
            "# cat /proc/sys/kernel/modprobe",
            "/tmp/evil",
            "# poweroff",
        ]],
    )
}

//! Whole Linux guests under `subpage guard`: the host's own kernel, with a shell that attacks it.

use std::path::Path;

use super::{DENIED, Expected, command};
use crate::lab::Host;

/// How the titles of all its parts begin.
pub(super) const NAME: &str = "Linux";

/// Why they do not run unasked.
pub(super) const BY_NAME_ALONE: &str =
    "now and then one hangs while it starts, which is not explained yet";

/// Where the host has its own kernel.
const KERNEL: &str = "/lab/vmlinuz";

/// What is asked of the guest's kernel: nothing on the console but what the shell prints.
const QUIET: &str = "console=ttyS0 quiet";

/// The parts of a host's job that boot Linux.
pub(super) fn parts(host: Host, example: &Path) -> Vec<Expected> {
    let processors: &[&str] = match host {
        Host::Amd => &["1", "2"],
        // Minutes for each.
        Host::Intel => &["1"],
    };
    let mut parts = Vec::new();
    // Where the processor runs the kernel itself there is one way to trap.
    for processors in processors {
        parts.push(guarded(example, processors));
    }
    parts.push(unguarded(example));
    if host == Host::Amd {
        parts.push(by_default(example));
    }
    parts
}

/// The rules that the tool itself writes for this kernel, of which some arm at the first program.
fn by_default(example: &Path) -> Expected {
    let initrd = example.join("initrd.cpio").to_string_lossy().into_owned();
    let script = format!(
        "subpage policy linux --kernel {KERNEL} >/tmp/default.toml && exec subpage --color never guard --memory 256M \
         --cmdline '{QUIET}' --initrd {initrd} --policy /tmp/default.toml {KERNEL}"
    );
    command(
        "Linux with the default pack".into(),
        &["sh", "-c", &script],
        DENIED,
        &["armed at the first program", "denied", "modprobe_path", "/sbin/modprobe", "# poweroff"],
    )
}

/// The kernel's own table of symbols.
pub(super) fn names(example: &Path) -> Expected {
    let policy = example.join("policy.toml").to_string_lossy().into_owned();
    command(
        "names of the kernel".into(),
        &["subpage", "--color", "never", "policy", "check", &policy, KERNEL],
        0,
        &["modprobe path", "1 rule, no mistake"],
    )
}

fn guard(example: &Path, words: &[&str], policy: &str) -> Vec<String> {
    let policy = example.join(policy).to_string_lossy().into_owned();
    let initrd = example.join("initrd.cpio").to_string_lossy().into_owned();
    let mut all =
        vec!["subpage", "--color", "never", "guard", "--memory", "256M", "--cmdline", QUIET];
    all.extend(words);
    all.extend(["--initrd", &initrd, "--policy", &policy, KERNEL]);
    all.into_iter().map(str::to_owned).collect()
}

/// Root's write is denied, and the path stays.
fn guarded(example: &Path, processors: &str) -> Expected {
    let words = guard(example, &["--cpus", processors], "policy.toml");
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    command(
        format!("Linux, {processors} CPU"),
        &words,
        DENIED,
        &[
            "# cat /proc/sys/kernel/modprobe",
            "/sbin/modprobe",
            "# echo /tmp/evil > /proc/sys/kernel/modprobe",
            "denied",
            "in proc_dostring+0x",
            "process 1 init uid 0",
            "ksys_write+0x",
            "# cat /proc/sys/kernel/modprobe",
            "/sbin/modprobe",
            "# poweroff",
        ],
    )
}

/// The same attack without a rule.
fn unguarded(example: &Path) -> Expected {
    let words = guard(example, &[], "none.toml");
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    command(
        "Linux without a rule".into(),
        &words,
        0,
        &[
            "# echo /tmp/evil > /proc/sys/kernel/modprobe",
            "# cat /proc/sys/kernel/modprobe",
            "/tmp/evil",
            "# poweroff",
        ],
    )
}

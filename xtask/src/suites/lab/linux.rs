//! Whole Linux guests under `subpage guard`: the host's own kernel, with a shell that attacks it.

use std::path::Path;

use super::{DENIED, Expected, command};
use crate::lab::Host;

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
    for trap in ["slots", "mprotect"] {
        for processors in processors {
            parts.push(guarded(example, trap, processors));
        }
    }
    parts.push(unguarded(example));
    parts
}

fn guard(example: &Path, words: &[&str], policy: &str) -> Vec<String> {
    let policy = example.join(policy).to_string_lossy().into_owned();
    let initrd = example.join("initrd.cpio").to_string_lossy().into_owned();
    let mut all = vec!["subpage", "guard", "--memory", "256M", "--cmdline", QUIET];
    all.extend(words);
    all.extend(["--initrd", &initrd, "--policy", &policy, KERNEL]);
    all.into_iter().map(str::to_owned).collect()
}

/// Root's write is denied, and the path stays.
fn guarded(example: &Path, trap: &str, processors: &str) -> Expected {
    let words = guard(example, &["--trap", trap, "--cpus", processors], "policy.toml");
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    command(
        format!("Linux by {trap}, {processors} CPU"),
        &words,
        DENIED,
        &[
            "# cat /proc/sys/kernel/modprobe",
            "/sbin/modprobe",
            "# echo /tmp/evil > /proc/sys/kernel/modprobe",
            "denied",
            "modprobe path",
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

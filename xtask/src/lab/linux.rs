//! Whole Linux guests in a host: its own kernel under `subpage guard`, with the example's initrd.

use std::path::Path;

/// Keeps a guest on one processor of its host. In QEMU 10.0 a guest of any VMM whose threads move from
/// one to the other gets an interrupt a second time, while they are off (docs/kvm.md, "Limits").
const STAY: &str = "taskset 1";

/// Where a host has its own kernel.
pub(crate) const KERNEL: &str = "/lab/vmlinuz";

/// The rules of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// A file of the example.
    File(&'static str),
    /// What the tool writes for this kernel if it is asked for nothing else.
    DefaultPack,
}

/// One guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinuxGuest<'a> {
    /// The directory of the example.
    pub(crate) example: &'a Path,
    pub(crate) processors: &'a str,
    pub(crate) policy: Policy,
    /// What its first program is told, and the kernel before that: behind `console=ttyS0 quiet`.
    pub(crate) told: &'a str,
    /// More options of `guard`.
    pub(crate) options: &'a str,
    /// The console is shown as a whole behind all else, not between the events, which cut its lines.
    pub(crate) console_last: bool,
}

impl LinuxGuest<'_> {
    /// The command of the host that runs it.
    pub(crate) fn command(&self) -> Vec<String> {
        let Self { example, processors, policy, told, options, console_last } = self;
        let (run, console, after) = if *console_last {
            ("", "--console /tmp/console", "; status=$?; cat /tmp/console; exit $status")
        } else {
            ("exec ", "", "")
        };
        let example = example.display();
        let (before, policy) = match policy {
            Policy::File(name) => (String::new(), format!("{example}/{name}")),
            Policy::DefaultPack => {
                let file = "/tmp/default.toml";
                // It takes a while in an emulator.
                let write = format!("subpage policy linux --kernel {KERNEL} >{file}");
                (format!("{{ [ -s {file} ] || {write}; }} && "), file.to_owned())
            }
        };
        let script = format!(
            "{before}{run}{STAY} subpage --color never guard --cpus {processors} --memory 256M {options} {console} \
             --cmdline 'console=ttyS0 quiet {told}' --initrd '{example}/initrd.cpio' \
             --policy '{policy}' {KERNEL}{after}"
        );
        vec!["sh".into(), "-c".into(), script]
    }
}

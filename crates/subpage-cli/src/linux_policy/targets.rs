//! What is worth guarding in a Linux kernel.

use clap::ValueEnum;

/// Which rules to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Pack {
    /// What most kernels can have guarded at little cost: some of each of the others
    Default,
    /// Paths of programs that the kernel runs as root
    Helpers,
    /// Switches that make attacks harder, and that root sets once
    Hardening,
    /// The state and the hooks of security modules
    Lsm,
    /// Where system calls and exceptions lead to
    Tables,
    /// Function tables of devices and sockets that exploits replace
    Operations,
    /// The kernel's code: to see who writes it
    Text,
}

impl Pack {
    /// As the command line has it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Helpers => "helpers",
            Self::Hardening => "hardening",
            Self::Lsm => "lsm",
            Self::Tables => "tables",
            Self::Operations => "operations",
            Self::Text => "text",
        }
    }
}

/// What a rule covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// So many bytes, as the kernel's source has it; no more than to the next symbol.
    Bytes(u64),
    /// To the next symbol.
    NextSymbol,
    /// To another symbol, the end not included.
    Until(&'static str),
}

/// Exits that were counted, under a workload that Debian's cloud kernel 6.1.192 had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counted {
    /// Writes to its pages.
    pub page: u64,
    /// Writes to its sub-pages.
    pub sub_page: u64,
}

/// From when on nobody but an attacker writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Settled {
    /// It stands in the image.
    AtEntry,
    /// The kernel sets it up while it starts.
    AtInit,
}

/// Data or code that attackers overwrite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pub symbol: &'static str,
    pub pack: Pack,
    pub in_default: bool,
    pub extent: Extent,
    /// The action that is advised.
    pub action: &'static str,
    pub settled: Settled,
    pub why: &'static str,
    /// Who writes it legitimately.
    pub writer: &'static str,
    pub counted: Option<Counted>,
}

const ROOT_ONCE: &str = "root, by sysctl, mostly once at boot";
const NOBODY: &str = "nobody: it is a constant";
const AT_BOOT: &str = "the kernel, while it starts";

const fn counted(page: u64, sub_page: u64) -> Counted {
    Counted { page, sub_page }
}

/// A path in the kernel's data.
const fn helper(symbol: &'static str, bytes: u64, why: &'static str) -> Target {
    Target {
        symbol,
        pack: Pack::Helpers,
        in_default: true,
        extent: Extent::Bytes(bytes),
        action: "deny",
        settled: Settled::AtEntry,
        why,
        writer: "root, by a file below /proc/sys/kernel; `deny` holds against root as well",
        counted: None,
    }
}

/// A switch of so many bytes that root sets.
const fn switch(symbol: &'static str, bytes: u64, why: &'static str) -> Target {
    Target {
        symbol,
        pack: Pack::Hardening,
        in_default: false,
        extent: Extent::Bytes(bytes),
        // Whoever sets it at boot has done so by then; but root may change its mind later.
        action: "log",
        settled: Settled::AtInit,
        why,
        writer: ROOT_ONCE,
        counted: None,
    }
}

/// A table that is constant once the kernel has started.
const fn table(symbol: &'static str, pack: Pack, why: &'static str) -> Target {
    Target {
        symbol,
        pack,
        in_default: true,
        extent: Extent::NextSymbol,
        action: "deny",
        settled: Settled::AtInit,
        why,
        writer: AT_BOOT,
        counted: Some(counted(0, 0)),
    }
}

/// All of them, in the order in which rules are written.
pub(super) const TARGETS: &[Target] = &[
    Target {
        counted: Some(counted(8_084, 0)),
        ..helper(
            "modprobe_path",
            256,
            "The program that the kernel runs as root to load a module. Exploits with one write into \
             the kernel put theirs there.",
        )
    },
    Target {
        action: "log",
        writer: "root, by /proc/sys/kernel/core_pattern; service managers set it at boot",
        counted: Some(counted(0, 0)),
        ..helper(
            "core_pattern",
            128,
            "With a `|` in front it names a program that the kernel runs as root at the next crash \
             of a program.",
        )
    },
    Target {
        in_default: false,
        counted: Some(counted(10_560, 0)),
        ..helper("poweroff_cmd", 256, "The program that the kernel runs as root to power off.")
    },
    Target {
        extent: Extent::Bytes(16),
        writer: NOBODY,
        counted: Some(counted(0, 0)),
        ..helper("reboot_cmd", 16, "The program that the kernel runs as root to reboot.")
    },
    Target {
        // Mostly empty in the image, so among what the kernel sets to zero when it starts.
        settled: Settled::AtInit,
        writer: "root, by /sys/kernel/uevent_helper or /proc/sys/kernel/hotplug",
        ..helper(
            "uevent_helper",
            256,
            "The program that the kernel runs as root when a device comes or goes.",
        )
    },
    Target {
        counted: Some(counted(14_454, 0)),
        ..switch("modules_disabled", 4, "At 1, no module can be loaded; it never goes back.")
    },
    Target {
        counted: Some(counted(7_234, 0)),
        ..switch(
            "kexec_load_disabled",
            4,
            "At 1, no other kernel can be loaded; it never goes back.",
        )
    },
    Target {
        counted: Some(counted(2_166, 2_166)),
        ..switch("kernel_locked_down", 4, "What lockdown keeps root from; it is only raised.")
    },
    Target {
        counted: Some(counted(2_166, 2_166)),
        ..switch("ptrace_scope", 4, "Which processes may be traced.")
    },
    Target {
        counted: Some(counted(0, 0)),
        ..switch("kptr_restrict", 4, "Who sees the kernel's addresses.")
    },
    Target {
        counted: Some(counted(0, 0)),
        ..switch("dmesg_restrict", 4, "Who reads the kernel's log.")
    },
    Target {
        counted: Some(counted(0, 0)),
        ..switch("randomize_va_space", 4, "Whether the addresses of programs are random.")
    },
    Target {
        counted: Some(counted(0, 0)),
        ..switch("sysctl_unprivileged_bpf_disabled", 4, "Who loads BPF programs.")
    },
    switch("bpf_jit_harden", 4, "Whether the code of BPF programs is blinded."),
    Target {
        counted: Some(counted(0, 0)),
        ..switch("sysctl_perf_event_paranoid", 4, "Who uses performance events.")
    },
    switch("sysctl_unprivileged_userfaultfd", 4, "Who handles page faults of the kernel."),
    Target {
        counted: Some(counted(0, 0)),
        ..switch("mmap_min_addr", 8, "The lowest address that a program can map.")
    },
    Target {
        counted: Some(counted(0, 0)),
        ..switch("sysctl_protected_hardlinks", 4, "Who makes hard links to files of others.")
    },
    Target {
        counted: Some(counted(0, 0)),
        ..switch("sysctl_protected_symlinks", 4, "Who follows links in shared directories.")
    },
    Target {
        counted: Some(counted(0, 0)),
        ..switch("unprivileged_userns_clone", 4, "Who makes user namespaces (Debian's kernels).")
    },
    Target {
        pack: Pack::Lsm,
        in_default: true,
        extent: Extent::NextSymbol,
        writer: "the kernel, and root: `setenforce`, a new policy",
        counted: Some(counted(0, 0)),
        ..switch("selinux_state", 4, "Whether SELinux enforces its policy.")
    },
    Target {
        extent: Extent::Bytes(4),
        ..table(
            "apparmor_enabled",
            Pack::Lsm,
            "Whether AppArmor was switched on at boot; it is not asked when a program is checked.",
        )
    },
    table(
        "security_hook_heads",
        Pack::Lsm,
        "The hooks of every security module (before Linux 6.12).",
    ),
    table(
        "static_calls_table",
        Pack::Lsm,
        "The hooks of every security module (from Linux 6.12 on).",
    ),
    Target {
        settled: Settled::AtEntry,
        writer: NOBODY,
        ..table(
            "sys_call_table",
            Pack::Tables,
            "The functions of the system calls, up to Linux 6.8.",
        )
    },
    Target {
        settled: Settled::AtEntry,
        writer: NOBODY,
        counted: None,
        ..table("ia32_sys_call_table", Pack::Tables, "The functions of 32-bit system calls.")
    },
    Target {
        extent: Extent::Bytes(4096),
        ..table("idt_table", Pack::Tables, "The handlers of exceptions and interrupts.")
    },
    Target {
        extent: Extent::Bytes(10),
        ..table("idt_descr", Pack::Tables, "Where the table of handlers is.")
    },
    table(
        "ptmx_fops",
        Pack::Operations,
        "The functions of /dev/ptmx, which every program can open.",
    ),
    Target {
        settled: Settled::AtEntry,
        writer: NOBODY,
        ..table("inet_stream_ops", Pack::Operations, "The functions of TCP sockets.")
    },
    Target { in_default: false, ..table("tcp_prot", Pack::Operations, "The functions of TCP.") },
    Target {
        in_default: false,
        extent: Extent::Until("_etext"),
        action: "log",
        writer: "the kernel itself, which patches its text: static keys, tracing, kprobes, alternatives, programs of BPF. \
                 It stops with a bug if such a write is denied, so `deny` is for kernels that do none",
        counted: None,
        ..table("_stext", Pack::Text, "The kernel's code.")
    },
];

/// The targets of these packs, each once.
pub(super) fn of(packs: &[Pack]) -> impl Iterator<Item = &'static Target> + use<'_> {
    TARGETS.iter().filter(|target| {
        packs.contains(&target.pack) || target.in_default && packs.contains(&Pack::Default)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_target_is_there_once_and_in_one_pack_of_its_own() {
        let symbols: HashSet<_> = TARGETS.iter().map(|target| target.symbol).collect();
        assert_eq!(symbols.len(), TARGETS.len());
        assert!(TARGETS.iter().all(|target| target.pack != Pack::Default));
        for pack in Pack::value_variants() {
            assert!(of(&[*pack]).next().is_some(), "{pack:?} is empty");
        }
        assert_eq!(of(Pack::value_variants()).count(), TARGETS.len());
    }

    /// A user who asks for nothing gets no rule on a sub-page that is written often.
    #[test]
    fn the_default_pack_has_no_hot_sub_page() {
        for target in of(&[Pack::Default]) {
            assert!(target.counted.is_none_or(|counted| counted.sub_page == 0), "{target:?}");
        }
    }
}

//! `subpage check` on made-up machines.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use subpage_cli::check::{
    AskKvm, CommandFinding, Findings, Host, KvmFacts, ProgramError, Programs, Support, find,
    write_json, write_text,
};

use crate::{assert_golden, plain};

/// Made-up programs: name and what it prints.
struct Installed(&'static [(&'static str, &'static str)]);

impl Programs for Installed {
    fn output(&self, program: &str, _: &str) -> Result<String, ProgramError> {
        let found = self.0.iter().find(|(name, _)| *name == program);
        found.map(|(_, text)| (*text).to_owned()).ok_or(ProgramError::Missing)
    }
}

const BANNER_27: &str = "====\n        Bochs x86 Emulator 2.7\n   Built from SVN snapshot\n====\n";
const BANNER_30: &str = "====\n        Bochs x86 Emulator 3.0.devel\n====\nUsage: bochs\n";

fn machine(
    cpuinfo: Option<&str>,
    msr: Option<u64>,
    kvm: Option<AskKvm>,
    programs: &'static [(&'static str, &'static str)],
) -> Findings {
    machine_with(cpuinfo, msr, kvm, programs, &[])
}

/// With files besides.
fn machine_with(
    cpuinfo: Option<&str>,
    msr: Option<u64>,
    kvm: Option<AskKvm>,
    programs: &'static [(&'static str, &'static str)],
    files: &[(&str, &str)],
) -> Findings {
    let root = tempfile::tempdir().expect("directory");
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().expect("parent")).expect("directory");
        fs::write(path, text).expect("file");
    };
    if let Some(text) = cpuinfo {
        write("proc/cpuinfo", text);
    }
    for (path, text) in files {
        write(path, text);
    }
    if let Some(value) = msr {
        write("dev/cpu/0/msr", "");
        let path = root.path().join("dev/cpu/0/msr");
        let file = fs::File::options().write(true).open(path).expect("msr");
        file.write_all_at(&value.to_le_bytes(), 0x48b).expect("msr");
    }
    if kvm.is_some() {
        write("dev/kvm", "");
    }
    let ask = kvm.unwrap_or(|_| panic!("there is no device to ask"));
    find(&Host::new(root.path(), Installed(programs), ask))
}

/// A KVM that has all there is.
fn whole() -> KvmFacts {
    KvmFacts {
        api_version: 12,
        slots: 32_764,
        immediate_exit: true,
        cpus: 1024,
        missing: Vec::new(),
        native: Some(true),
        by_slots: Ok(()),
        by_mprotect: Ok(()),
    }
}

/// What is said of each way to guard where no guest can run.
const UNTRIED: &str = "needs immediate exit and KVM's devices";

/// A KVM that guards no guest.
fn unguarded(by_slots: &str, by_mprotect: &str) -> KvmFacts {
    KvmFacts {
        native: None,
        by_slots: Err(by_slots.to_owned()),
        by_mprotect: Err(by_mprotect.to_owned()),
        ..whole()
    }
}

fn shown(findings: &Findings) -> String {
    let mut bytes = Vec::new();
    write_text(&mut bytes, findings).expect("memory");
    write_json(&mut bytes, findings).expect("memory");
    plain(&String::from_utf8(bytes).expect("text"))
}

const ICE_LAKE: &str = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) Platinum 8380\n\
    flags\t\t: fpu vmx sse2\nvmx flags\t: vnmi ept vpid\n\nprocessor\t: 1\nflags\t\t: fpu\n";

#[test]
fn golden_machines() {
    let everything = machine(
        Some(ICE_LAKE),
        Some(0x02d7_7fff_0000_0000 | 1 << 55),
        Some(|_| Ok(whole())),
        &[("valgrind", "valgrind-3.19.0\n"), ("bochs", BANNER_30)],
    );
    assert_golden("check/everything.txt", &shown(&everything));
    let no_spp = machine(
        Some(ICE_LAKE),
        Some(0x0051_7fff_0000_0000),
        Some(|_| Ok(KvmFacts { immediate_exit: false, ..unguarded(UNTRIED, UNTRIED) })),
        &[("valgrind", "no version\n"), ("bochs", BANNER_27)],
    );
    assert_golden("check/no-spp.txt", &shown(&no_spp));
    let amd = "model name\t: AMD EPYC\nflags\t: fpu svm\n";
    assert_golden("check/amd.txt", &shown(&machine(Some(amd), None, Some(|_| Ok(whole())), &[])));
    let guest = "model name\t: \u{1b}[31mIntel\nflags\t: fpu hypervisor\n";
    assert_golden("check/virtual-machine.txt", &shown(&machine(Some(guest), None, None, &[])));
    let old_kernel = "model name\t: Intel\nflags\t: vmx\n";
    assert_golden("check/old-kernel.txt", &shown(&machine(Some(old_kernel), None, None, &[])));
    assert_golden("check/nothing.txt", &shown(&machine(None, None, None, &[])));
}

/// What is said of guests on KVM.
fn guests(findings: &Findings) -> &CommandFinding {
    findings.commands.iter().find(|command| command.command.contains("KERNEL")).expect("told")
}

/// Whatever is wrong with KVM, the reason is told where it is and next to the command.
#[test]
fn each_lack_of_kvm_has_its_reason() {
    let cases: [(AskKvm, &str); 6] = [
        (|_| Err(std::io::ErrorKind::InvalidInput.into()), "does not answer"),
        (|_| Ok(KvmFacts { api_version: 11, ..whole() }), "version 11 of the interface"),
        (|_| Ok(unguarded("no slots", "no mprotect")), "no slots"),
        (|_| Ok(unguarded("no slots", "no mprotect")), "no mprotect"),
        (|_| Ok(KvmFacts { immediate_exit: false, ..whole() }), "KVM_CAP_IMMEDIATE_EXIT"),
        (
            |_| Ok(KvmFacts { missing: vec!["KVM_CAP_IRQFD", "KVM_CAP_PIT2"], ..whole() }),
            "lacks KVM_CAP_IRQFD, KVM_CAP_PIT2",
        ),
    ];
    for (ask, reason) in cases {
        let findings = machine(None, None, Some(ask), &[]);
        let told = |text: &str| text.contains(reason);
        assert!(findings.machine.iter().any(|finding| told(&finding.reason)), "{reason}");
        let guests = guests(&findings);
        assert_eq!(guests.verdict, Support::No);
        assert!(told(&guests.reason), "{}", guests.reason);
    }
}

/// Either way to guard a guest is enough.
#[test]
fn one_way_to_guard_is_enough() {
    let cases: [(AskKvm, &str, &str); 2] = [
        (
            |_| Ok(KvmFacts { by_slots: Ok(()), ..unguarded("", "no mprotect") }),
            "kvm_mprotect",
            "guests of one processor",
        ),
        (
            |_| Ok(KvmFacts { by_mprotect: Ok(()), ..unguarded("no slots", "") }),
            "kvm_slots",
            "by mprotect alone",
        ),
    ];
    for (ask, lacks, reason) in cases {
        let findings = machine(None, None, Some(ask), &[]);
        let lacking = findings.machine.iter().find(|finding| finding.key == lacks).expect("told");
        assert_eq!(lacking.verdict, Support::No);
        assert!(lacking.reason.starts_with("no "), "{}", lacking.reason);
        let guests = guests(&findings);
        assert_eq!(guests.verdict, Support::Yes);
        assert!(guests.reason.contains(reason), "{}", guests.reason);
    }
}

/// Where page tables in guarded pages are slow, it is said, and what helps.
#[test]
fn slow_page_tables_are_told() {
    let eptad = "sys/module/kvm_intel/parameters/eptad";
    let npt = "sys/module/kvm_amd/parameters/npt";
    for (files, told) in [
        (vec![(eptad, "Y\n")], Some("with `modprobe kvm_intel eptad=0` they are not")),
        (vec![(eptad, "N\n")], Some("at full speed")),
        (vec![(npt, "1\n")], Some("slow while they are in use")),
        (vec![(npt, "N\n")], None),
        (vec![], None),
    ] {
        let findings = machine_with(None, None, Some(|_| Ok(whole())), &[], &files);
        let mprotect = findings.machine.iter().find(|finding| finding.key == "kvm_mprotect");
        let reason = &mprotect.expect("told").reason;
        match told {
            Some(told) => assert!(reason.contains(told), "{files:?}: {reason}"),
            None => assert_eq!(reason, "a guest was guarded by it", "{files:?}"),
        }
        assert_eq!(guests(&findings).verdict, Support::Yes);
    }
}

/// The real machine: whatever it is, every answer has a reason.
#[test]
fn this_machine_has_reasons() {
    let findings = find(&Host::this());
    assert!(findings.machine.iter().all(|finding| !finding.reason.is_empty()));
    assert_eq!(findings.machine.len(), 11);
    let kvm = findings.machine.iter().find(|finding| finding.key == "kvm").expect("asked");
    let there = Path::new("/dev/kvm").exists();
    assert!(there || kvm.verdict == Support::No);
}

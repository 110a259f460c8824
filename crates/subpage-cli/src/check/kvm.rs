//! The kernel's KVM: whether it can run and guard guests.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kvm_ioctls::{Cap, Kvm};

use super::findings::{CommandFinding, MachineFinding, Verdict, finding};
use super::machine::{Machine, Programs};
use crate::terminal::grouped;

/// The version of KVM's interface that there is since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// What guests cannot do without, besides read-only slots and immediate exits.
const NEEDED: [(Cap, &str); 7] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
];

/// What KVM says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvmFacts {
    /// Version of its interface.
    pub api_version: i32,
    /// Memory slots may be read-only.
    pub read_only_slots: bool,
    /// Memory slots of one guest.
    pub slots: usize,
    /// A processor can be told to leave the guest before it enters it.
    pub immediate_exit: bool,
    /// Processors of one guest.
    pub cpus: usize,
    /// What else is needed and not there, by KVM's own names.
    pub missing: Vec<&'static str>,
}

impl KvmFacts {
    /// Asks the KVM behind a device file.
    pub fn ask(path: &Path) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
        let kvm = Kvm::new_with_path(path)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        let missing = NEEDED.iter().filter(|(capability, _)| !kvm.check_extension(*capability));
        Ok(Self {
            api_version: kvm.get_api_version(),
            read_only_slots: kvm.check_extension(Cap::ReadonlyMem),
            slots: kvm.get_nr_memslots(),
            immediate_exit: kvm.check_extension(Cap::ImmediateExit),
            cpus: kvm.get_max_vcpus(),
            missing: missing.map(|(_, name)| *name).collect(),
        })
    }
}

/// What is found of KVM, and what that means for guests.
///
/// Capabilities are what KVM claims. Whether a guest runs and is guarded is only known when one was
/// tried: a finding of that belongs behind these.
pub(super) fn findings<P: Programs>(machine: &Machine<P>) -> (Vec<MachineFinding>, CommandFinding) {
    let (kvm, facts) = device(machine);
    let mut found = vec![kvm];
    match &facts {
        Some(facts) => found.extend([slots(facts), immediate_exit(facts), others(facts)]),
        None => {
            for (key, name) in NAMES {
                let verdict =
                    if found[0].verdict == Verdict::No { Verdict::No } else { Verdict::Unknown };
                found.push(finding(key, name, verdict, "needs KVM"));
            }
        }
    }
    let wrong = found.iter().find(|finding| finding.verdict != Verdict::Yes);
    let command = CommandFinding {
        command: "subpage guard --policy FILE PROGRAM|KERNEL",
        verdict: wrong.map_or(Verdict::Yes, |finding| finding.verdict),
        reason: match (wrong, &facts) {
            (Some(finding), _) => format!("{}: {}", finding.name, finding.reason),
            (None, Some(facts)) => {
                format!("KVM runs guests of up to {} processors", facts.cpus.min(64))
            }
            (None, None) => "KVM runs guests".to_owned(),
        },
    };
    (found, command)
}

const SLOTS: (&str, &str) = ("kvm_slots", "read-only slots");
const IMMEDIATE_EXIT: (&str, &str) = ("kvm_immediate_exit", "immediate exit");
const OTHERS: (&str, &str) = ("kvm_devices", "KVM's devices");
const NAMES: [(&str, &str); 3] = [SLOTS, IMMEDIATE_EXIT, OTHERS];

fn device<P: Programs>(machine: &Machine<P>) -> (MachineFinding, Option<KvmFacts>) {
    const DEVICE: &str = "/dev/kvm";
    let no = |reason: String| (finding("kvm", "KVM", Verdict::No, reason), None);
    if let Err(error) = machine.can_open(DEVICE) {
        return no(match error.kind() {
            io::ErrorKind::NotFound => "/dev/kvm is not there: `modprobe kvm_intel` or `modprobe \
                                        kvm_amd`, or no hardware virtualisation"
                .to_owned(),
            io::ErrorKind::PermissionDenied => "/dev/kvm may not be opened: join the group that \
                                                owns it (often kvm), or run as root"
                .to_owned(),
            _ => format!("/dev/kvm does not open: {error}"),
        });
    }
    match machine.kvm(DEVICE) {
        Err(error) => no(format!("/dev/kvm opens and does not answer: {error}")),
        Ok(facts) if facts.api_version != API_VERSION => no(format!(
            "/dev/kvm has version {} of the interface; {API_VERSION} is needed, which Linux has \
             since 2.6.22",
            facts.api_version
        )),
        Ok(facts) => {
            let reason = format!("/dev/kvm opens; version {API_VERSION} of its interface");
            (finding("kvm", "KVM", Verdict::Yes, reason), Some(facts))
        }
    }
}

fn slots(facts: &KvmFacts) -> MachineFinding {
    let (key, name) = SLOTS;
    let slots = grouped(facts.slots as u64);
    if facts.read_only_slots {
        // Each run of guarded pages splits the slot that it is in.
        let reason =
            format!("{slots} memory slots, which may be read-only; a run of guarded pages takes 2");
        finding(key, name, Verdict::Yes, reason)
    } else {
        let reason = "memory slots cannot be read-only (KVM_CAP_READONLY_MEM, Linux 3.7): another \
                      kernel is needed";
        finding(key, name, Verdict::No, reason)
    }
}

fn immediate_exit(facts: &KvmFacts) -> MachineFinding {
    let (key, name) = IMMEDIATE_EXIT;
    if facts.immediate_exit {
        finding(key, name, Verdict::Yes, "processors can be called out of the guest without a race")
    } else {
        let reason = "processors cannot be called out of the guest without a race \
                      (KVM_CAP_IMMEDIATE_EXIT, Linux 4.11): a newer kernel is needed";
        finding(key, name, Verdict::No, reason)
    }
}

fn others(facts: &KvmFacts) -> MachineFinding {
    let (key, name) = OTHERS;
    if facts.missing.is_empty() {
        let reason = "interrupt controller, timer, CPUID and extended state";
        finding(key, name, Verdict::Yes, reason)
    } else {
        let reason = format!("this kernel's KVM lacks {}", facts.missing.join(", "));
        finding(key, name, Verdict::No, reason)
    }
}

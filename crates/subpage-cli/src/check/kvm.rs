//! The kernel's KVM: whether it can run and guard guests, which is tried where it claims to.

#[cfg(feature = "kvm")]
use std::ffi::CString;
use std::io;
#[cfg(feature = "kvm")]
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

#[cfg(feature = "kvm")]
use kvm_ioctls::{Cap, Kvm};
#[cfg(feature = "kvm")]
use subpage_kvm::probe::probe;

use super::findings::{CommandFinding, MachineFinding, Support, finding};
use super::machine::{Host, Programs};
use crate::command_line::MAX_PROCESSORS;
use crate::guard::NO_VMM;
use crate::terminal::grouped;

/// The version of KVM's interface that there is since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// What guests cannot do without, besides immediate exits.
#[cfg(feature = "kvm")]
const NEEDED: [(Cap, &str); 7] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
];

/// What KVM says of itself, and what came of trying it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvmFacts {
    /// Version of its interface.
    pub api_version: i32,
    /// Memory slots of one guest.
    pub slots: usize,
    /// A processor can be told to leave the guest before it enters it.
    pub immediate_exit: bool,
    /// Processors of one guest.
    pub cpus: usize,
    /// What else is needed and not there, by KVM's own names.
    pub missing: Vec<&'static str>,
    /// Whether the processor runs a guest's code at CPL 0 itself; none where no guest was tried.
    pub native: Option<bool>,
    /// Whether a guest was guarded by read-only slots; the reason if not.
    pub by_slots: Result<(), String>,
    /// Whether a guest was guarded by `mprotect`; the reason if not.
    pub by_mprotect: Result<(), String>,
}

impl KvmFacts {
    /// Asks the KVM behind a device file and, if it has what guests need, runs a tiny one in each way
    /// to guard it: capabilities are only what KVM claims.
    #[cfg(feature = "kvm")]
    pub fn ask(path: &Path) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
        let kvm = Kvm::new_with_path(path)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        let missing = NEEDED.iter().filter(|(capability, _)| !kvm.check_extension(*capability));
        let untried = Err("needs immediate exit and KVM's devices".to_owned());
        let mut facts = Self {
            api_version: kvm.get_api_version(),
            slots: kvm.get_nr_memslots(),
            immediate_exit: kvm.check_extension(Cap::ImmediateExit),
            cpus: kvm.get_max_vcpus(),
            missing: missing.map(|(_, name)| *name).collect(),
            native: None,
            by_slots: untried.clone(),
            by_mprotect: untried,
        };
        if facts.api_version == API_VERSION && facts.immediate_exit && facts.missing.is_empty() {
            let found = probe();
            facts.native = found.as_ref().ok().map(|found| found.native);
            (facts.by_slots, facts.by_mprotect) = match found {
                Ok(found) if found.native => {
                    let reason = "the processor runs a guest's kernel itself: mprotect is used";
                    (Err(reason.to_owned()), found.by_mprotect)
                }
                Ok(found) => (found.by_slots, found.by_mprotect),
                Err(error) => (Err(error.to_string()), Err(error.to_string())),
            };
        }
        if !kvm.check_extension(Cap::ReadonlyMem) {
            facts.by_slots = Err("memory slots cannot be read-only (KVM_CAP_READONLY_MEM, Linux \
                                  3.7)"
                .to_owned());
        }
        Ok(facts)
    }

    /// Nobody is asked: this build has no VMM.
    #[cfg(not(feature = "kvm"))]
    pub fn ask(_: &Path) -> io::Result<Self> {
        Err(io::Error::new(io::ErrorKind::Unsupported, NO_VMM))
    }
}

/// What is found of KVM, and what that means for guests.
pub(super) fn findings<P: Programs>(machine: &Host<P>) -> (Vec<MachineFinding>, CommandFinding) {
    let (kvm, facts) = device(machine);
    let mut found = vec![kvm];
    if let Some(facts) = &facts {
        found.extend([
            immediate_exit(facts),
            others(facts),
            slots(facts),
            mprotect(machine, facts),
            native(facts),
        ]);
    } else {
        let needs = |(key, name)| finding(key, name, Support::No, "needs KVM");
        found.extend([IMMEDIATE_EXIT, OTHERS, SLOTS, MPROTECT, NATIVE].map(needs));
    }
    let command = "subpage guard --policy FILE PROGRAM|KERNEL";
    // One of the two ways is enough, and small kernels run on any KVM.
    let optional = [SLOTS.0, MPROTECT.0, NATIVE.0];
    let needed = found.iter().filter(|finding| !optional.contains(&finding.key));
    let wrong = needed.clone().find(|finding| finding.verdict != Support::Yes);
    let (verdict, reason) = match (wrong, &facts) {
        (Some(wrong), _) => (wrong.verdict, format!("{}: {}", wrong.name, wrong.reason)),
        (None, Some(facts)) => ways(facts),
        (None, None) => (Support::No, "needs KVM".to_owned()),
    };
    (found, CommandFinding { command, verdict, reason })
}

const IMMEDIATE_EXIT: (&str, &str) = ("kvm_immediate_exit", "immediate exit");
const OTHERS: (&str, &str) = ("kvm_devices", "KVM's devices");
const SLOTS: (&str, &str) = ("kvm_slots", "read-only slots");
const MPROTECT: (&str, &str) = ("kvm_mprotect", "mprotect");
const NATIVE: (&str, &str) = ("kvm_native", "Linux guests");

fn device<P: Programs>(machine: &Host<P>) -> (MachineFinding, Option<KvmFacts>) {
    const DEVICE: &str = "/dev/kvm";
    let no = |reason: String| (finding("kvm", "KVM", Support::No, reason), None);
    if cfg!(not(feature = "kvm")) {
        return no(NO_VMM.to_owned());
    }
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
            (finding("kvm", "KVM", Support::Yes, reason), Some(facts))
        }
    }
}

fn slots(facts: &KvmFacts) -> MachineFinding {
    let (key, name) = SLOTS;
    match &facts.by_slots {
        Ok(()) => {
            // Each run of guarded pages splits the slot that it is in.
            let reason = format!(
                "a guest was guarded by them; {} memory slots, of which a run of guarded pages \
                 takes 2",
                grouped(facts.slots as u64)
            );
            finding(key, name, Support::Yes, reason)
        }
        Err(reason) => finding(key, name, Support::No, reason),
    }
}

fn mprotect<P: Programs>(machine: &Host<P>, facts: &KvmFacts) -> MachineFinding {
    let (key, name) = MPROTECT;
    match &facts.by_mprotect {
        Ok(()) => {
            let walks = page_tables(machine).map_or(String::new(), |walks| format!("; {walks}"));
            finding(key, name, Support::Yes, format!("a guest was guarded by it{walks}"))
        }
        Err(reason) => finding(key, name, Support::No, reason),
    }
}

/// Whether a whole Linux can be the guest.
fn native(facts: &KvmFacts) -> MachineFinding {
    let (key, name) = NATIVE;
    match facts.native {
        Some(true) => {
            finding(key, name, Support::Yes, "the processor runs a guest's kernel itself")
        }
        Some(false) => {
            let reason = "this KVM emulates a guest's kernel: small kernels run, and no Linux was \
                          seen to boot; that needs VT-x or AMD-V in /proc/cpuinfo (vmx or svm)";
            finding(key, name, Support::No, reason)
        }
        None => finding(key, name, Support::Unknown, "no guest could be run to find out"),
    }
}

/// What page tables of a guest cost that lie in guarded pages, where the settings of KVM's module tell.
fn page_tables<P: Programs>(machine: &Host<P>) -> Option<&'static str> {
    let is_on = |path| {
        let text = machine.text(path).ok()?;
        Some(matches!(text.trim(), "Y" | "1"))
    };
    if let Some(flags) = is_on("/sys/module/kvm_intel/parameters/eptad") {
        return Some(if flags {
            "a guest's page tables in guarded pages are slow while they are in use; with `modprobe \
             kvm_intel eptad=0` they are not"
        } else {
            "a guest's page tables in guarded pages run at full speed, since kvm_intel has eptad=0"
        });
    }
    (is_on("/sys/module/kvm_amd/parameters/npt") == Some(true))
        .then_some("a guest's page tables in guarded pages are slow while they are in use")
}

/// Whether a KVM that runs guests can guard them, and how.
fn ways(facts: &KvmFacts) -> (Support, String) {
    let cpus = facts.cpus.min(MAX_PROCESSORS as usize);
    match (&facts.by_slots, &facts.by_mprotect) {
        (Ok(()), Ok(())) => {
            let reason = format!(
                "guests of up to {cpus} processors, guarded by read-only slots or by mprotect"
            );
            (Support::Yes, reason)
        }
        (Err(_), Ok(())) => {
            let reason = format!("guests of up to {cpus} processors, guarded by mprotect alone");
            (Support::Yes, reason)
        }
        (Ok(()), Err(_)) => {
            let reason = "guests of one processor, guarded by read-only slots alone; several \
                          processors need mprotect";
            (Support::Yes, reason.to_owned())
        }
        (Err(slots), Err(mprotect)) => {
            let reason = if slots == mprotect { slots } else { &format!("{slots}; {mprotect}") };
            (Support::No, format!("neither read-only slots nor mprotect: {reason}"))
        }
    }
}

fn immediate_exit(facts: &KvmFacts) -> MachineFinding {
    let (key, name) = IMMEDIATE_EXIT;
    if facts.immediate_exit {
        finding(key, name, Support::Yes, "processors can be called out of the guest without a race")
    } else {
        let reason = "processors cannot be called out of the guest without a race \
                      (KVM_CAP_IMMEDIATE_EXIT, Linux 4.11): a newer kernel is needed";
        finding(key, name, Support::No, reason)
    }
}

fn others(facts: &KvmFacts) -> MachineFinding {
    let (key, name) = OTHERS;
    if facts.missing.is_empty() {
        let reason = "interrupt controller, timer, CPUID and extended state";
        finding(key, name, Support::Yes, reason)
    } else {
        let reason = format!("this kernel's KVM lacks {}", facts.missing.join(", "));
        finding(key, name, Support::No, reason)
    }
}

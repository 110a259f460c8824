//! The questions, and what the answers mean for each command.

use std::io;

use schemars::JsonSchema;
use serde::Serialize;

use super::kvm;
use super::machine::{Host, ProgramError, Programs};

/// IA32_VMX_PROCBASED_CTLS2: which secondary controls may be 1, in its high half.
///
/// SDM Vol. 3D, "Reporting Registers of the VMX Capabilities", "Secondary Processor-Based
/// VM-Execution Controls".
const IA32_VMX_PROCBASED_CTLS2: u32 = 0x48b;

/// "Sub-page write permissions for EPT" is control 23: bit 55 of the register.
const SPP_ALLOWED: u64 = 1 << (32 + 23);

/// The first Bochs whose sub-page permissions are right.
const GOOD_BOCHS: (u32, u32) = (2, 8);

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Support {
    /// It is there and usable.
    Yes,
    /// It is not.
    No,
    /// This program, as it was started, cannot find out.
    Unknown,
}

/// One thing that the machine has or has not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct MachineFinding {
    /// A word for programs, which does not change between versions.
    pub key: &'static str,
    /// What people call it.
    pub name: &'static str,
    /// Whether it is there.
    pub verdict: Support,
    /// What was seen; for a no, what is missing and what to do.
    pub reason: String,
}

/// Whether a command works here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct CommandFinding {
    /// The command as it is typed.
    pub command: &'static str,
    /// Whether it works.
    pub verdict: Support,
    /// What it needs.
    pub reason: String,
}

/// Everything that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Findings {
    /// The processor's own name, or `unknown processor`.
    pub processor: String,
    /// In a fixed order.
    pub machine: Vec<MachineFinding>,
    /// In a fixed order.
    pub commands: Vec<CommandFinding>,
}

/// Looks at a machine. Changes nothing on it.
pub fn find<P: Programs>(machine: &Host<P>) -> Findings {
    let processor = CpuInfo::read(machine);
    let vtx = vtx(&processor);
    let ept = ept(&processor, vtx.verdict);
    let spp = spp(machine, &processor, vtx.verdict);
    let (kvm, guests) = kvm::findings(machine);
    let valgrind = valgrind(machine);
    let bochs = bochs(machine);
    let commands = commands(guests, &valgrind);
    let mut found = vec![vtx, ept, spp];
    found.extend(kvm);
    found.extend([valgrind, bochs]);
    Findings { processor: processor.name.clone(), machine: found, commands }
}

/// What `/proc/cpuinfo` says of the first processor.
struct CpuInfo {
    name: String,
    vendor: String,
    /// `None` where the file cannot be read.
    flags: Option<Vec<String>>,
    /// The line that Linux 5.9 and later print.
    vmx_flags: Option<Vec<String>>,
}

impl CpuInfo {
    fn read<P: Programs>(machine: &Host<P>) -> Self {
        let text = machine.text("/proc/cpuinfo").ok();
        let first = text.as_deref().and_then(|text| text.split("\n\n").next()).unwrap_or("");
        let field = |wanted: &str| {
            first.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                (key.trim() == wanted).then(|| value.trim().to_owned())
            })
        };
        let words = |text: String| text.split_whitespace().map(str::to_owned).collect();
        Self {
            name: field("model name").unwrap_or_else(|| "unknown processor".to_owned()),
            vendor: field("vendor_id").unwrap_or_default(),
            flags: field("flags").map(words),
            vmx_flags: field("vmx flags").map(words),
        }
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.iter().flatten().any(|have| have == flag)
    }
}

pub(super) fn finding(
    key: &'static str,
    name: &'static str,
    verdict: Support,
    reason: impl Into<String>,
) -> MachineFinding {
    MachineFinding { key, name, verdict, reason: reason.into() }
}

fn vtx(processor: &CpuInfo) -> MachineFinding {
    let (verdict, reason) = if processor.flags.is_none() {
        (Support::Unknown, "/proc/cpuinfo has no flags; this may not be an x86 Linux")
    } else if processor.has("vmx") {
        (Support::Yes, "/proc/cpuinfo lists vmx")
    } else if processor.has("svm") {
        (Support::No, "the processor has AMD-V, which has no sub-page permissions")
    } else if processor.vendor == "AuthenticAMD" {
        (
            Support::No,
            "an AMD processor: AMD-V, which it does not show here, has no sub-page permissions",
        )
    } else if processor.has("hypervisor") {
        let reason = "/proc/cpuinfo lists no vmx: this is a virtual machine whose host does not \
                      pass VT-x on; switch nested virtualisation on there";
        (Support::No, reason)
    } else {
        let reason = "/proc/cpuinfo lists no vmx: the processor has none, or the firmware has \
                      switched it off";
        (Support::No, reason)
    };
    finding("vtx", "VT-x", verdict, reason)
}

fn ept(processor: &CpuInfo, vtx: Support) -> MachineFinding {
    let (verdict, reason) = match (&processor.vmx_flags, vtx) {
        (_, Support::No) => (Support::No, "needs VT-x"),
        (Some(flags), _) if flags.iter().any(|flag| flag == "ept") => {
            (Support::Yes, "/proc/cpuinfo lists ept among the vmx flags")
        }
        (Some(_), _) => (Support::No, "/proc/cpuinfo lists vmx flags and ept is not among them"),
        (None, _) => {
            let reason = "/proc/cpuinfo has no line `vmx flags`; Linux prints it from 5.9 on";
            (Support::Unknown, reason)
        }
    };
    finding("ept", "EPT", verdict, reason)
}

fn spp<P: Programs>(machine: &Host<P>, processor: &CpuInfo, vtx: Support) -> MachineFinding {
    const NAME: &str = "SPP";
    let unknown = |reason: &str| finding("spp", NAME, Support::Unknown, reason);
    if vtx == Support::No {
        return finding("spp", NAME, Support::No, "needs VT-x");
    }
    if processor.flags.is_none() {
        return unknown("the processor is not known");
    }
    match machine.msr(IA32_VMX_PROCBASED_CTLS2) {
        Ok(value) if value & SPP_ALLOWED != 0 => {
            let reason = format!("IA32_VMX_PROCBASED_CTLS2 is {value:#018x}: control 23 may be 1");
            finding("spp", NAME, Support::Yes, reason)
        }
        Ok(value) => {
            let reason = format!(
                "IA32_VMX_PROCBASED_CTLS2 is {value:#018x}: control 23 must be 0; Ice Lake was the \
                 first generation with it"
            );
            finding("spp", NAME, Support::No, reason)
        }
        Err(error) => unknown(match error.kind() {
            io::ErrorKind::NotFound => {
                "/dev/cpu/0/msr is not there: `modprobe msr` loads the driver that makes it"
            }
            io::ErrorKind::PermissionDenied => {
                "/dev/cpu/0/msr may not be read: root may (with kernel lockdown off)"
            }
            _ => "/dev/cpu/0/msr does not give register 0x48b: the processor may not have it",
        }),
    }
}

fn valgrind<P: Programs>(machine: &Host<P>) -> MachineFinding {
    let (verdict, reason) = match machine.programs().output("valgrind", "--version") {
        Ok(text) => match text.lines().find_map(|line| line.trim().strip_prefix("valgrind-")) {
            Some(version) => (Support::Yes, format!("version {version}")),
            None => (Support::No, "`valgrind --version` does not print a version".to_owned()),
        },
        Err(ProgramError::Missing) => {
            (Support::No, "not found in PATH: install the package valgrind".to_owned())
        }
        Err(error) => (Support::No, error.to_string()),
    };
    finding("valgrind", "Valgrind", verdict, reason)
}

fn bochs<P: Programs>(machine: &Host<P>) -> MachineFinding {
    let (major, minor) = GOOD_BOCHS;
    let (verdict, reason) = match machine.programs().output("bochs", "--help") {
        Ok(text) => match bochs_version(&text) {
            Some((version, number)) if number >= GOOD_BOCHS => {
                (Support::Yes, format!("version {version}"))
            }
            Some((version, _)) => {
                let reason = format!(
                    "version {version}: its sub-page permissions are wrong (a permitted write \
                     opens the whole page); {major}.{minor} or later is needed"
                );
                (Support::No, reason)
            }
            None => (Support::No, "`bochs --help` does not print a version".to_owned()),
        },
        Err(ProgramError::Missing) => {
            let reason = format!("not found in PATH: install version {major}.{minor} or later");
            (Support::No, reason)
        }
        Err(error) => (Support::No, error.to_string()),
    };
    finding("bochs", "Bochs", verdict, reason)
}

/// The version in Bochs's banner, as text and as a number.
fn bochs_version(banner: &str) -> Option<(&str, (u32, u32))> {
    let after = banner.split("Bochs x86 Emulator").nth(1)?;
    let version = after.split_whitespace().next()?;
    let mut parts = version.split('.');
    let major = parts.next()?.parse().ok()?;
    // "2.8.devel" and "3.0" alike.
    let minor = parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
    Some((version, (major, minor)))
}

fn commands(guests: CommandFinding, valgrind: &MachineFinding) -> Vec<CommandFinding> {
    let always = |command| CommandFinding {
        command,
        verdict: Support::Yes,
        reason: "the software model needs no hardware".to_owned(),
    };
    let record = CommandFinding {
        command: "subpage record -o FILE -- PROGRAM",
        verdict: valgrind.verdict,
        reason: format!("Valgrind: {}", valgrind.reason),
    };
    let import = CommandFinding {
        command: "subpage record -o FILE --from-lackey FILE",
        verdict: Support::Yes,
        reason: "reads text that was recorded elsewhere".to_owned(),
    };
    let plan = CommandFinding {
        command: "subpage plan TRACE",
        verdict: Support::Yes,
        reason: "counts the writes of a trace".to_owned(),
    };
    vec![always("subpage guard --policy FILE TRACE"), guests, plan, record, import]
}

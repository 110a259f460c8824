//! What this machine's KVM can do, found out by running a tiny guest.

use std::io::Write as _;
use std::sync::OnceLock;
use std::time::Duration;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use kvm_ioctls::Cap;
use subpage::address::{ByteRange, Gpa};
use subpage::rules::{Action, Owner, Rule, RuleName};
use subpage_emulate::guest::PhysicalMemory as _;

use crate::boot::Request;
use crate::ending::Ending;
use crate::metrics::ExitKind;
use crate::vcpu::FeatureChoice;
use crate::vm::{Configuration, TrapChoice, Vm, VmError, nowhere, open};

/// What was found.
#[derive(Debug)]
pub struct Findings {
    /// Memory slots of a guest.
    pub slots: usize,
    /// Processors of a guest.
    pub processors: usize,
    /// Whether the processor runs a guest's kernel itself. If not, KVM emulates it.
    pub native: bool,
    /// Whether read-only slots guard a guest; the reason if not.
    pub by_slots: Result<(), String>,
    /// Whether `mprotect` guards a guest, locked instructions included; the reason if not.
    pub by_mprotect: Result<(), String>,
}

/// Where the guest begins.
const CODE: u64 = 0x20_0000;

/// The page that is guarded.
const PAGE: u64 = 0x40_0000;

/// Bytes of CPUID's answer: EAX, EBX, ECX, EDX.
const ANSWER_BYTES: usize = 16;

/// Longer than the guest takes anywhere.
const LIMIT: Duration = Duration::from_secs(20);

#[rustfmt::skip]
const GUEST: [u8; 29] = [
    0x48, 0xbb, 0x00, 0x00, 0x40, 0x00, 0x00, 0x00, 0x00, 0x00, // mov rbx, PAGE
    0xf0, 0x48, 0xff, 0x03,                                     // lock inc qword ptr [rbx]
    0xc6, 0x83, 0x80, 0x00, 0x00, 0x00, 0x07,                   // mov byte ptr [rbx + 128], 7
    0xb0, 0x00,                                                 // mov al, 0
    0x66, 0xba, 0xf4, 0x00,                                     // mov dx, 0xf4
    0xee,                                                       // out dx, al
    0xf4,                                                       // hlt
];

/// Opens KVM and runs a guest in each way to trap.
pub fn probe() -> Result<Findings, VmError> {
    let kvm = open()?;
    let number = |capability| usize::try_from(kvm.check_extension_int(capability)).unwrap_or(0);
    Ok(Findings {
        slots: number(Cap::NrMemslots),
        processors: kvm.get_max_vcpus(),
        native: is_native(),
        by_slots: guards(TrapChoice::Slots),
        by_mprotect: guards(TrapChoice::Mprotect),
    })
}

/// Whether the processor runs a guest's kernel itself, so that its stores to read-only pages are told
/// of before they happen. Found out once by running a guest; false if that fails.
pub fn is_native() -> bool {
    static NATIVE: OnceLock<bool> = OnceLock::new();
    *NATIVE.get_or_init(|| {
        let Ok(vm) = guest(TrapChoice::Mprotect) else { return false };
        let ended = vm.wait(LIMIT) == Some(Ending::Exited { code: 0 });
        let metrics = vm.metrics();
        ended && metrics.exits(ExitKind::Fault) > 0 && metrics.exits(ExitKind::Mmio) == 0
    })
}

/// A machine with a guest of this code.
fn load(configuration: &Configuration, code: &[u8]) -> Result<Vm, VmError> {
    let mut image = tempfile::NamedTempFile::new().map_err(VmError::Thread)?;
    image.write_all(code).map_err(VmError::Thread)?;
    // Whether KVM emulates the guest's kernel or not: this is what finds out.
    let mut vm = Vm::create(configuration, nowhere(), true)?;
    vm.load(&Request {
        image: image.path(),
        initrd: None,
        command_line: "",
        load_address: Some(CODE),
        slide: None,
        cpus: 1,
    })?;
    Ok(vm)
}

/// Starts the guest.
fn guest(trap: TrapChoice) -> Result<Vm, VmError> {
    let configuration = Configuration { memory: 8 << 20, trap, ..Configuration::default() };
    let mut vm = load(&configuration, &GUEST)?;
    vm.add_rules(&[Rule {
        name: RuleName::new("probe").expect("a name"),
        range: ByteRange::new(Gpa::new(PAGE + 128), 1).expect("a byte"),
        owner: Owner::HOST,
        action: Action::Deny,
        locked: false,
    }])?;
    vm.start()?;
    Ok(vm)
}

/// Whether guests find the features that are asked for, and not those that are left out: a KVM may show
/// them more than it is told to.
pub(crate) fn finds(choice: &FeatureChoice) -> Result<(), VmError> {
    let leaves: Vec<_> = choice.leaves().into_iter().collect();
    let configuration =
        Configuration { memory: 8 << 20, features: choice.clone(), ..Configuration::default() };
    let mut vm = load(&configuration, &asks(&leaves))?;
    vm.start()?;
    if vm.wait(LIMIT) != Some(Ending::Exited { code: 0 }) {
        return Err(VmError::Missing("CPUID for a guest of a few instructions"));
    }
    let mut entries = Vec::new();
    for (&(function, index), answer) in leaves.iter().zip((PAGE..).step_by(ANSWER_BYTES)) {
        let mut bytes = [0; ANSWER_BYTES];
        vm.ram().read(Gpa::new(answer), &mut bytes).expect("memory of the guest");
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let (eax, ebx, ecx, edx) = (word(0), word(4), word(8), word(12));
        entries.push(kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..kvm_cpuid_entry2::default()
        });
    }
    let mut found = CpuId::from_entries(&entries).expect("a few leaves");
    Ok(choice.check(&mut found)?)
}

/// Code that keeps the answers of CPUID from [`PAGE`] on.
fn asks(leaves: &[(u32, u32)]) -> Vec<u8> {
    let mut code = Vec::new();
    for (&(leaf, subleaf), answer) in leaves.iter().zip((PAGE..).step_by(ANSWER_BYTES)) {
        let answer = u32::try_from(answer).expect("low memory");
        code.push(0xb8); // mov eax, leaf
        code.extend(leaf.to_le_bytes());
        code.push(0xb9); // mov ecx, subleaf
        code.extend(subleaf.to_le_bytes());
        code.extend([0x0f, 0xa2]); // cpuid
        // mov dword ptr [answer + 4 * n], eax; ebx; ecx; edx
        for (number, register) in (0_u32..).zip([0, 3, 1, 2]) {
            code.extend([0x89, register << 3 | 4, 0x25]);
            code.extend((answer + 4 * number).to_le_bytes());
        }
    }
    // What GUEST ends with.
    code.extend(&GUEST[GUEST.len() - 8..]);
    code
}

/// Whether a permitted locked store takes effect exactly and a denied one does not.
fn guards(trap: TrapChoice) -> Result<(), String> {
    let vm = guest(trap).map_err(|error| error.to_string())?;
    match vm.wait(LIMIT) {
        Some(Ending::Exited { code: 0 }) => {}
        Some(ending) => return Err(format!("a guest of {} bytes fails: {ending}", GUEST.len())),
        None => return Err("a guest of a few instructions does not end".to_owned()),
    }
    let byte = |at: u64| {
        let mut byte = [0xff];
        vm.ram().read(Gpa::new(at), &mut byte).map(|()| byte[0])
    };
    match (byte(PAGE), byte(PAGE + 128)) {
        (Ok(1), Ok(0)) => Ok(()),
        (permitted, denied) => Err(format!(
            "a guest's stores went wrong: the permitted one left {permitted:?}, the denied one \
             {denied:?}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kvm_at_hand_guards_in_both_ways_or_is_not_there() {
        match probe() {
            Ok(findings) => {
                assert_eq!(findings.by_slots, Ok(()));
                assert_eq!(findings.by_mprotect, Ok(()));
            }
            Err(error) => println!("skipped: {error}"),
        }
    }
}

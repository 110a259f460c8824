//! Features of the processor that a guest finds, as they were chosen, also when it is restored.

use std::io::Write as _;
use std::path::Path;

use iced_x86::code_asm::{CodeAssembler, dword_ptr, eax, ecx, esi};
use subpage_kvm::probe::is_native;
use subpage_kvm::vcpu::{FeatureChoice, FeatureError};
use subpage_kvm::vm::{Configuration, Ending, Vm, VmError, nowhere};

use crate::guest::{CODE, Guest, PLAIN, assemble, exit, kvm, request, small};

const CX16: u32 = 1 << 13;
const X2APIC: u32 = 1 << 21;
const AES: u32 = 1 << 25;
const XSAVE: u32 = 1 << 26;
const AVX: u32 = 1 << 28;

/// Keeps ECX of leaf 1 and EBX of leaf 7, and ends.
fn looks(code: &mut CodeAssembler) {
    use iced_x86::code_asm::ebx;
    code.mov(esi, u32::try_from(PLAIN).unwrap()).unwrap();
    for (leaf, word) in [(1_u32, 0_u64), (7, 8)] {
        code.mov(eax, leaf).unwrap();
        code.xor(ecx, ecx).unwrap();
        code.cpuid().unwrap();
        let (at, kept) = (dword_ptr(PLAIN + word), if leaf == 1 { ecx } else { ebx });
        code.mov(at, kept).unwrap();
    }
    exit(code, 0);
}

fn choosing(features: &str) -> Configuration {
    Configuration { features: features.parse().unwrap(), ..small() }
}

/// What a guest finds in ECX of leaf 1 and EBX of leaf 7.
fn found(vm: Vm) -> (u32, u32) {
    let mut guest = Guest::of(vm);
    let ending = guest.run();
    assert_eq!(ending, Ending::Exited { code: 0 }, "{ending}");
    let word = |at| u32::from_le_bytes(guest.read(at));
    (word(PLAIN), word(PLAIN + 8))
}

fn machine(features: &str) -> Result<Vm, VmError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&assemble(CODE, looks)).unwrap();
    let mut vm = Vm::new(&choosing(features), nowhere())?;
    vm.load(&request(file.path(), 1))?;
    Ok(vm)
}

/// What a guest finds without features; none if this KVM shows the first of them whatever it is told.
fn without(features: &'static str) -> Option<(u32, u32)> {
    match machine(features) {
        Ok(vm) => Some(found(vm)),
        Err(VmError::Features(FeatureError::Stays { name })) => {
            assert_eq!(features, format!("-{name}"));
            println!("skipped: this KVM shows {name} in any case");
            None
        }
        Err(other) => panic!("{features}: {other}"),
    }
}

fn restore(path: &Path) -> Result<Vm, VmError> {
    Vm::restore(path, &small(), nowhere())
}

#[test]
fn a_guest_finds_what_was_chosen() {
    if !kvm() {
        return;
    }
    let (all, structured) = found(machine("").unwrap());
    // Every KVM emulates the local APIC.
    assert_eq!(without("-x2apic").map(|it| it.0), Some(all & !X2APIC));
    match without("-aes") {
        Some((less, _)) => assert_eq!(less, all & !AES),
        None => assert_eq!(all & AES, AES),
    }
    if let Some((less, of_avx)) = without("-avx") {
        // FMA and F16C need it, and so does AVX2.
        assert_eq!(less, all & !(AVX | 1 << 12 | 1 << 29));
        assert_eq!(of_avx & 0xfff, structured & 0xfff & !(1 << 5));
    }
    if let Some((less, _)) = without("-xsave") {
        assert_eq!(less & (XSAVE | AVX | 1 << 27), 0);
    }
}

/// KVM's emulator does not know CMPXCHG16B, and kernels use it where they find it.
#[test]
fn cmpxchg16b_is_offered_where_a_kernel_can_use_it() {
    if !kvm() {
        return;
    }
    let (asked, _) = found(machine("cx16").unwrap());
    assert_eq!(asked & CX16, CX16, "whoever asks for it gets it");
    let (all, _) = found(machine("").unwrap());
    assert_eq!(all & CX16 != 0, is_native());
    let (less, _) = without("-cx16").expect("it can be left out");
    assert_eq!(less & CX16, 0);
}

#[test]
fn what_is_not_there_cannot_be_asked_for() {
    if !kvm() {
        return;
    }
    // Of AMD's processors, and of one Intel generation.
    let never_both = ["tbm", "avx512_4vnniw"];
    let asked = never_both.map(|name| machine(name).err());
    let refused =
        never_both.iter().zip(&asked).find_map(|(name, error)| Some((name, error.as_ref()?)));
    let (name, error) = refused.expect("no processor has both");
    assert!(matches!(error, VmError::Features(FeatureError::Missing { name: of }) if of == name));
    assert!(error.to_string().contains(*name), "{error}");
}

#[test]
fn a_restored_guest_finds_what_it_had() {
    const MORE: &str = "-x2apic,-cx16,-popcnt";
    if !kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest.snapshot");
    machine("-x2apic,-cx16").unwrap().save(&path).unwrap();
    // Whatever the configuration says: it is the snapshot's.
    let (basic, _) = found(restore(&path).unwrap());
    assert_eq!(basic & (X2APIC | CX16), 0);

    let whole = std::fs::read(&path).unwrap();
    let changed = |change: fn(&mut serde_json::Value)| {
        std::fs::write(&path, crate::snapshot::with_header(&whole, change)).unwrap();
        restore(&path).map(|_| ()).map_err(|error| error.to_string())
    };
    // As if this host had left out less, or more.
    let error = changed(|header| header["feature_choice"] = "cx16,-x2apic".into()).unwrap_err();
    assert!(error.contains("here alone: cx16"), "{error}");
    if machine(MORE).is_ok() {
        let error = changed(|header| header["feature_choice"] = MORE.into()).unwrap_err();
        assert!(error.contains("not here: popcnt"), "{error}");
    }
    // Asked for by a later version: the same error as at a start.
    let error = changed(|header| header["feature_choice"] = "nothing".into()).unwrap_err();
    let at_start = "nothing".parse::<FeatureChoice>().unwrap_err();
    assert_eq!(error, at_start.to_string());
    // One of an older version, which made no choice.
    machine("cx16").unwrap().save(&path).unwrap();
    let older = crate::snapshot::with_header(&std::fs::read(&path).unwrap(), |header| {
        header.as_object_mut().unwrap().remove("feature_choice").unwrap();
    });
    std::fs::write(&path, older).unwrap();
    let (basic, _) = found(restore(&path).unwrap());
    assert_eq!(basic & CX16, CX16);
}

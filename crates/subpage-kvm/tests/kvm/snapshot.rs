//! Saving a guest while it runs, and going on with what was saved.

use std::fs;
use std::path::Path;

use iced_x86::code_asm::{qword_ptr, rax, rbx, rcx};
use subpage::rules::Action;
use subpage_kvm::vm::{Configuration, Ending, Vm, VmError, nowhere};

use crate::guest::{Guest, PAGE, both_ways, exit, kvm, small};

/// Counts of the guest's loop: enough to be saved in the middle.
const ROUNDS: u64 = 20_000;

/// A guest that counts next to guarded bytes, then tries to write those, and ends.
fn counter(configuration: &Configuration) -> Guest {
    let guest = Guest::new(configuration, |code| {
        let mut again = code.create_label();
        code.mov(rbx, PAGE).unwrap();
        code.mov(rcx, ROUNDS).unwrap();
        code.set_label(&mut again).unwrap();
        code.inc(qword_ptr(rbx)).unwrap();
        code.dec(rcx).unwrap();
        code.jnz(again).unwrap();
        code.mov(qword_ptr(rbx + 0x80), rax).unwrap();
        exit(code, 0);
    });
    guest.write(PAGE + 0x80, &[7; 8]);
    guest.guard(PAGE + 0x80, 8, Action::Deny);
    guest
}

fn restore(path: &Path, configuration: &Configuration) -> Result<Vm, VmError> {
    Vm::restore(path, configuration, nowhere())
}

#[test]
fn a_guest_that_was_saved_in_the_middle_goes_on_under_its_rules() {
    if !kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest.snapshot");
    for configuration in both_ways() {
        let mut guest = counter(&configuration);
        let track = guest
            .vm
            .track(
                subpage::address::ByteRange::new(subpage::address::Gpa::new(PAGE + 0x1000), 4096)
                    .unwrap(),
            )
            .unwrap();
        guest.vm.start().unwrap();
        // Somewhere on the way: the guest has begun, and each exit of the loop takes microseconds.
        while guest.word(PAGE) == 0 {
            std::thread::yield_now();
        }
        let bytes = guest.vm.save(&path).unwrap();
        assert_eq!(bytes, fs::metadata(&path).unwrap().len());
        assert_eq!(guest.end(), Ending::Exited { code: 0 }, "it continues after it was saved");
        assert_eq!(guest.word(PAGE), ROUNDS);

        let vm = restore(&path, &configuration).unwrap();
        let mut restored = Guest::of(vm);
        let before = restored.word(PAGE);
        assert!(0 < before && before <= ROUNDS, "{before}");
        restored.run_well();
        assert_eq!(restored.word(PAGE), ROUNDS, "each round exactly once");
        assert_eq!(restored.read(PAGE + 0x80), [7; 8]);
        assert_eq!(restored.events().len(), 1, "the rule came along");
        assert!(restored.vm.untrack(track).is_ok(), "tracking came along");
    }
}

/// However much is about the same pages, what was saved can be restored.
#[test]
fn rules_and_trackings_over_all_of_memory_come_back() {
    if !kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest.snapshot");
    let guest = counter(&small());
    let all = small().memory;
    for action in [Action::Log, Action::Log] {
        guest.guard(0, all, action);
    }
    let range = subpage::address::ByteRange::new(subpage::address::Gpa::new(0), all).unwrap();
    guest.vm.track(range).unwrap();
    guest.vm.save(&path).unwrap();
    let restored = Guest::of(restore(&path, &small()).unwrap());
    assert_eq!(restored.vm.trapped_pages(), all / 4096);
}

#[test]
fn damaged_snapshots_are_refused() {
    if !kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest.snapshot");
    let guest = counter(&small());
    guest.vm.save(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    let header = usize::try_from(u64::from_le_bytes(whole[12..20].try_into().unwrap())).unwrap();
    let interesting = [0, 8, 12, 19, 20, 21, 20 + header, 28 + header, whole.len() - 33];
    let spread = (0..40).map(|part| part * whole.len() / 40);
    for at in interesting.into_iter().chain(spread) {
        fs::write(&path, &whole[..at]).unwrap();
        let cut = restore(&path, &small()).map(|_| ()).unwrap_err();
        assert!(matches!(cut, VmError::Snapshot(_)), "cut at {at}: {cut}");
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        fs::write(&path, &flipped).unwrap();
        let error = restore(&path, &small()).map(|_| ()).unwrap_err();
        assert!(!error.to_string().is_empty(), "flipped at {at}");
    }
    let mut longer = whole.clone();
    longer.push(0);
    fs::write(&path, &longer).unwrap();
    assert!(restore(&path, &small()).is_err(), "one byte too many");
    fs::write(&path, &whole).unwrap();
    assert!(restore(&path, &small()).is_ok(), "and the whole one is taken");
}

#[test]
fn a_save_that_fails_leaves_the_older_file_and_no_other() {
    if !kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let guest = counter(&small());
    let error = guest.vm.save(&directory.path().join("absent/guest")).unwrap_err();
    assert!(error.to_string().contains("absent"), "{error}");
    let error = guest.vm.save(directory.path()).unwrap_err();
    assert!(error.to_string().contains("cannot save"), "{error}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left behind");
    let mut guest = guest;
    guest.run_well();
}

/// The file with its header changed, and a checksum that fits.
pub(crate) fn with_header(whole: &[u8], change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    use sha2::{Digest as _, Sha256};
    let length = usize::try_from(u64::from_le_bytes(whole[12..20].try_into().unwrap())).unwrap();
    let (header, rest) = whole[20..whole.len() - 32].split_at(length);
    let mut header = serde_json::from_slice(header).unwrap();
    change(&mut header);
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = whole[..12].to_vec();
    file.extend((header.len() as u64).to_le_bytes());
    file.extend(header);
    file.extend(rest);
    let checksum = Sha256::digest(&file);
    file.extend(checksum);
    file
}

#[test]
fn a_processor_that_cannot_be_as_it_was_is_refused() {
    if !kvm() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest.snapshot");
    counter(&small()).vm.save(&path).unwrap();
    let whole = fs::read(&path).unwrap();
    let restored = |change: fn(&mut serde_json::Value)| {
        fs::write(&path, with_header(&whole, |header| change(&mut header["processors"][0])))
            .unwrap();
        restore(&path, &small()).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(restored(|_| ()), Ok(()));
    // No processor has a register of this number.
    let error = restored(|processor| {
        // Index, four bytes that are reserved, value.
        let entry = serde_json::json!([0x78, 0x56, 0x34, 0x12, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        processor["msrs"].as_array_mut().unwrap().push(entry);
    });
    assert!(error.as_ref().is_err_and(|it| it.contains("0x12345678")), "{error:?}");
    // No counter is that slow.
    let error = restored(|processor| processor["time_stamp_khz"] = 1.into());
    assert!(error.as_ref().is_err_and(|it| it.contains("1 kHz")), "{error:?}");
    // As in a snapshot of an older version of this program.
    let older = restored(|processor| {
        processor.as_object_mut().unwrap().remove("time_stamp_khz");
    });
    assert_eq!(older, Ok(()));
}

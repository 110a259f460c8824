//! The guest's clock: what its MSRs have written to memory is right, and asks as any write does.

use std::time::{SystemTime, UNIX_EPOCH};

use iced_x86::code_asm::{CodeAssembler, eax, ecx, edx, qword_ptr, rax, rbx, rdx};
use subpage::rules::Action;
use subpage_kvm::vm::{Ending, Vm, nowhere};
use subpage_trap::Verdict;

use crate::guest::{Guest, PAGE, PLAIN, both_ways, exit, kvm, small};

const WALL_CLOCK: u32 = 0x4b56_4d00;
const SYSTEM_TIME: u32 = 0x4b56_4d01;

fn write(code: &mut CodeAssembler, register: u32, value: u64) {
    code.mov(rax, value).unwrap();
    code.mov(rdx, value >> 32).unwrap();
    code.mov(ecx, register).unwrap();
    code.wrmsr().unwrap();
}

/// Keeps a register or the counter, which EDX and EAX have, at RBX.
fn keep(code: &mut CodeAssembler) {
    code.shl(rdx, 32).unwrap();
    code.or(rax, rdx).unwrap();
    code.mov(qword_ptr(rbx), rax).unwrap();
    code.add(rbx, 8).unwrap();
}

fn read(code: &mut CodeAssembler, register: u32) {
    code.mov(ecx, register).unwrap();
    code.rdmsr().unwrap();
    keep(code);
}

/// Whether guests of this KVM have the clock.
fn has_clock() -> bool {
    if !kvm() {
        return false;
    }
    let configuration =
        subpage_kvm::vm::Configuration { features: "kvmclock".parse().unwrap(), ..small() };
    let made = Vm::new(&configuration, nowhere());
    if let Err(error) = &made {
        println!("skipped: {error}");
    }
    made.is_ok()
}

/// Nanoseconds at a value of the counter, by the rate at PAGE.
fn time(guest: &Guest, counter: u64) -> u64 {
    let info: [u8; 32] = guest.read(PAGE);
    let multiplier = u32::from_le_bytes(info[24..28].try_into().unwrap());
    let shift = i8::from_le_bytes([info[28]]);
    let shifted = if shift < 0 { counter >> -shift } else { counter << shift };
    u64::try_from((u128::from(shifted) * u128::from(multiplier)) >> 32).unwrap()
}

#[test]
fn a_guest_reads_the_time() {
    if !has_clock() {
        return;
    }
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, |code| {
            write(code, WALL_CLOCK, PAGE + 0x100);
            write(code, SYSTEM_TIME, PAGE | 1);
            code.mov(rbx, PLAIN).unwrap();
            code.rdtsc().unwrap();
            keep(code);
            read(code, WALL_CLOCK);
            read(code, SYSTEM_TIME);
            exit(code, 0);
        });
        guest.run_well();
        let after = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let [version, seconds, nanoseconds] =
            [0, 4, 8].map(|at| u32::from_le_bytes(guest.read(PAGE + 0x100 + at)));
        assert_eq!((version & 1, guest.read::<1>(PAGE)[0] & 1), (0, 0), "nothing is under way");
        let began = u64::from(seconds) * 1_000_000_000 + u64::from(nanoseconds);
        let now = u128::from(began + time(&guest, guest.word(PLAIN)));
        // The counters of some KVMs begin before the machine: the sum is right all the same. A
        // millionth is lost at most, of what the counter has counted.
        let slack = 1_000_000_000;
        assert!(
            before.as_nanos() <= now + slack && now <= after.as_nanos() + slack,
            "{now} is not between {before:?} and {after:?}"
        );
        assert_eq!(guest.word(PLAIN + 8), PAGE + 0x100);
        assert_eq!(guest.word(PLAIN + 0x10), PAGE | 1);
    }
}

#[test]
fn guarded_bytes_are_kept_from_the_clock() {
    if !has_clock() {
        return;
    }
    for configuration in both_ways() {
        let mut guest = Guest::new(&configuration, |code| {
            write(code, SYSTEM_TIME, PAGE | 1);
            // The same place switched off, one that is no memory, and one that no address reaches.
            write(code, SYSTEM_TIME, PAGE);
            write(code, SYSTEM_TIME, 0x7fff_ffff_f001);
            write(code, SYSTEM_TIME, u64::MAX);
            write(code, SYSTEM_TIME, (PAGE + 0x80) | 1);
            code.mov(eax, 1).unwrap();
            code.xor(edx, edx).unwrap();
            exit(code, 0);
        });
        guest.write(PAGE, &[7; 32]);
        guest.guard(PAGE + 31, 1, Action::Deny);
        guest.run_well();
        assert_eq!(guest.read(PAGE), [7; 32], "nothing of it is written");
        assert_ne!(guest.read::<32>(PAGE + 0x80), [0; 32], "beside it, all");
        let events = guest.events();
        let [event] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!(event.event.verdict, Verdict::Denied);
        assert_eq!(event.text.as_deref(), Some("wrmsr"));
        assert_eq!((event.event.gpa.as_u64(), event.event.length), (PAGE, Some(32)));
    }
}

#[test]
fn a_rule_can_stop_the_guest_at_its_clock() {
    if !has_clock() {
        return;
    }
    let mut guest = Guest::new(&small(), |code| {
        write(code, WALL_CLOCK, PAGE);
        exit(code, 0);
    });
    guest.guard(PAGE, 1, Action::Stop);
    let ending = guest.run();
    assert!(matches!(ending, Ending::Stopped { .. }), "{ending}");
}

#[test]
fn a_restored_guest_finds_the_registers_of_its_clock() {
    if !has_clock() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("guest.snapshot");
    let mut guest = Guest::new(&small(), |code| {
        let mut again = code.create_label();
        write(code, SYSTEM_TIME, PAGE | 1);
        code.mov(rbx, PLAIN).unwrap();
        code.mov(qword_ptr(rbx), 1).unwrap();
        code.set_label(&mut again).unwrap();
        code.cmp(qword_ptr(rbx + 0x10), 0).unwrap();
        code.je(again).unwrap();
        read(code, SYSTEM_TIME);
        exit(code, 0);
    });
    guest.vm.start().unwrap();
    while guest.word(PLAIN) == 0 {
        std::thread::yield_now();
    }
    guest.vm.save(&path).unwrap();
    drop(guest);
    let mut restored = Guest::of(Vm::restore(&path, &small(), nowhere()).unwrap());
    restored.write(PLAIN + 0x10, &[1]);
    restored.run_well();
    assert_eq!(restored.word(PLAIN), PAGE | 1);
}

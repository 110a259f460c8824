//! Two processors and a device at one page, while rules come and go.
#![allow(clippy::cast_possible_truncation, reason = "for 64-bit hosts only")]

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use iced_x86::code_asm::{CodeAssembler, al, byte_ptr, dword_ptr, dx, ecx};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use subpage::address::{ByteRange, Gpa};
use subpage::rules::{Action, Owner, Rule, RuleName};
use subpage_guard::control::RequestHandler as _;
use subpage_guard::control::protocol::{NewRule, Reply, Request, RuleRef};
use subpage_guard::embed::{After, DeviceWrite, Machine, Seat, SlotMemory};
use subpage_guard::vcpu::cpuid;

use super::has_kvm;

const BYTES: usize = 1 << 20;
const CODE: u64 = 0x1000;
const PAGE: u64 = 0x3000;

/// Another address of the first pages, behind all memory.
const AGAIN: u64 = BYTES as u64;

/// Guest memory that lives as long as the process: a test maps it once.
struct Memory(usize);

impl Memory {
    fn new() -> Self {
        let bytes = std::num::NonZeroUsize::new(BYTES).expect("not 0");
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { mmap_anonymous(None, bytes, access, MapFlags::MAP_SHARED) };
        Self(at.expect("a megabyte").as_ptr().expose_provenance())
    }

    fn load(&self, code: &[u8]) {
        let to = std::ptr::with_exposed_provenance_mut::<u8>(self.0 + 0x1000);
        // SAFETY: inside of the mapping, which no processor of the guest uses yet.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), to, code.len()) };
    }

    fn word(&self, at: u64) -> u32 {
        let from = std::ptr::with_exposed_provenance_mut::<u32>(self.0 + at as usize);
        // SAFETY: inside of the mapping, aligned; the guest writes it with locked instructions.
        unsafe { AtomicU32::from_ptr(from) }.load(Ordering::SeqCst)
    }
}

fn region(slot: u32, first: u64, bytes: u64, host: usize) -> kvm_userspace_memory_region {
    kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: first,
        memory_size: bytes,
        userspace_addr: host as u64,
    }
}

/// A machine with memory and a guarded second name of its first 16 pages, and code of the guest.
fn machine(memory: &Memory, code: &[u8]) -> (VmFd, Machine) {
    memory.load(code);
    let kvm = Kvm::new().expect("it was there");
    let vm = kvm.create_vm().expect("a machine");
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).expect("features");
    // SAFETY: a machine of KVM.
    let machine = unsafe { Machine::new(&vm, cpuid::paging_features(&supported)) };
    let machine = machine.expect("a guarded machine");
    for (slot, first, bytes) in [(0, 0, BYTES as u64), (1, AGAIN, 0x10000)] {
        let of = SlotMemory { first: Gpa::new(first), bytes, host: memory.0 };
        // SAFETY: the mapping is never unmapped; only KVM and `device_write` write it.
        unsafe { machine.set_slot(slot, of) }.expect("memory");
        // SAFETY: the mapping is never unmapped.
        unsafe { vm.set_user_memory_region(region(slot, first, bytes, memory.0)) }.expect("a slot");
    }
    (vm, machine)
}

/// A processor at the first instruction, and its seat.
fn processor(vm: &VmFd, machine: &Machine, number: u32) -> (VcpuFd, Seat) {
    let vcpu = vm.create_vcpu(number.into()).expect("a processor");
    let flat = |selector, type_| kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let mut special = vcpu.get_sregs().expect("registers");
    special.cr0 |= 1;
    special.cs = flat(8, 11);
    let data = flat(16, 3);
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    vcpu.set_sregs(&special).expect("registers");
    let mut registers = vcpu.get_regs().expect("registers");
    (registers.rip, registers.rflags) = (CODE, 2);
    vcpu.set_regs(&registers).expect("registers");
    // SAFETY: the processor's descriptor, whose one seat this is.
    let seat = unsafe { machine.seat(number, &vcpu) }.expect("a seat");
    (vcpu, seat)
}

/// Runs a processor until it writes to a port.
fn run(vcpu: &mut VcpuFd, seat: &mut Seat) {
    loop {
        seat.before_run();
        let exit = vcpu.run();
        let errno = exit.as_ref().err().map(|error| error.errno());
        match seat.after_run(errno).unwrap_or_else(|failure| panic!("{failure}")) {
            After::GoOn => {}
            After::Yours => match exit {
                Ok(VcpuExit::IoOut(..)) => return,
                Err(error) if error.errno() == libc::EINTR => {}
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }
}

fn rule(name: &str, start: u64, bytes: u64) -> Rule {
    Rule {
        name: RuleName::new(name).expect("a name"),
        range: ByteRange::new(Gpa::new(start), bytes).expect("a range"),
        owner: Owner::HOST,
        action: Action::Deny,
        locked: false,
    }
}

#[test]
fn no_increment_is_lost_while_rules_come_and_go() {
    const TIMES: u32 = 50_000;
    if !has_kvm() {
        return;
    }
    let mut code = CodeAssembler::new(32).expect("32 bits");
    let mut again = code.create_label();
    code.mov(ecx, TIMES).expect("code");
    code.set_label(&mut again).expect("code");
    code.lock().inc(dword_ptr(PAGE as u32)).expect("code");
    code.dec(ecx).expect("code");
    code.jne(again).expect("code");
    code.out(0xf4, al).expect("code");
    let code = code.assemble(CODE).expect("code");
    let memory = Memory::new();
    let (vm, machine) = machine(&memory, &code);
    let running = AtomicUsize::new(2);
    thread::scope(|scope| {
        for number in 0..2 {
            let (mut vcpu, mut seat) = processor(&vm, &machine, number);
            let running = &running;
            scope.spawn(move || {
                run(&mut vcpu, &mut seat);
                running.fetch_sub(1, Ordering::SeqCst);
            });
        }
        // Half of the time the page traps; never is the counter guarded.
        while running.load(Ordering::SeqCst) != 0 {
            let id = machine.add_rules(&[rule("neighbour", PAGE + 128, 128)]).expect("a rule");
            thread::sleep(Duration::from_micros(300));
            let kept = machine.device_write(Gpa::new(PAGE + 128 - 8), &[0x55; 16], 0);
            assert_eq!(kept, Ok(DeviceWrite::Denied));
            machine.remove_rule(id, Owner::HOST).expect("it is there");
            thread::sleep(Duration::from_micros(300));
        }
    });
    assert_eq!(memory.word(PAGE), 2 * TIMES);
    assert_eq!(memory.word(PAGE + 128 - 4), 0x5555_5555);
    assert_eq!(memory.word(PAGE + 128), 0, "guarded whenever the device wrote");
}

#[test]
fn either_name_of_memory_is_guarded() {
    if !has_kvm() {
        return;
    }
    let mut code = CodeAssembler::new(32).expect("32 bits");
    for at in [PAGE, AGAIN + PAGE] {
        code.inc(byte_ptr(at as u32)).expect("code");
        code.inc(byte_ptr(at as u32 + 128)).expect("code");
    }
    code.out(dx, al).expect("code");
    let code = code.assemble(CODE).expect("code");
    let memory = Memory::new();
    let (vm, machine) = machine(&memory, &code);
    let operator = machine.operator();
    let new = NewRule {
        name: "by the other name".to_owned(),
        start: AGAIN + PAGE + 128,
        length: 4,
        action: "deny".to_owned(),
        owner: 0,
        locked: false,
    };
    operator.perform(Request::Add(new)).expect("a rule");
    machine.add_rules(&[rule("by the first name", PAGE + 256, 4)]).expect("a rule");
    let (mut vcpu, mut seat) = processor(&vm, &machine, 0);
    run(&mut vcpu, &mut seat);
    assert_eq!((memory.word(PAGE), memory.word(PAGE + 128)), (2, 0));
    let Ok(Reply::Shown(shown)) = operator.perform(Request::Show) else { panic!("it is shown") };
    assert_eq!((shown.cpus, shown.rules.len()), (1, 2));
    let other = shown.rules.iter().find(|rule| rule.new.name == "by the other name");
    assert_eq!(other.expect("it is listed").denied, 2);
    assert_eq!(shown.trapped_pages, 4, "the page and the one before it, each under two names");

    // Flags of a slot may change: it stays as it is, though it has another name.
    let same = SlotMemory { first: Gpa::new(0), bytes: BYTES as u64, host: memory.0 };
    // SAFETY: the slot is as it was.
    unsafe { machine.set_slot(0, same) }.expect("nothing has changed");
    let Ok(Reply::Shown(shown)) = operator.perform(Request::Show) else { panic!("it is shown") };
    assert_eq!(shown.trapped_pages, 4);
    // Memory that is only in part another slot's would have bytes with a name that nobody knows.
    let more = SlotMemory { first: Gpa::new(8 * AGAIN), bytes: 0x2000, host: memory.0 - 0x1000 };
    // SAFETY: it is refused.
    let refused = unsafe { machine.set_slot(7, more) }.expect_err("one page is slot 0's");
    assert!(refused.to_string().contains("that slot 0 has"), "{refused}");

    // Without the second name it is guarded as before; a name goes only after those made of it.
    machine.remove_slot(0).expect_err("it has another name");
    // SAFETY: takes the slot away.
    unsafe { vm.set_user_memory_region(region(1, AGAIN, 0, memory.0)) }.expect("a slot");
    machine.remove_slot(1).expect("the second name");
    let written = machine.device_write(Gpa::new(PAGE + 256), &[1; 4], 0);
    assert_eq!(written, Ok(DeviceWrite::Denied));
    let which = RuleRef::Name("by the other name".to_owned());
    operator.perform(Request::Remove { rule: which }).expect("it is there");
    let refused = operator.perform(Request::Pause).expect_err("another program's business");
    assert_eq!(refused.code, "EOPNOTSUPP");
}

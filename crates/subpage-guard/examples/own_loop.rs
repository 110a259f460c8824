//! A VMM with a loop of its own, whose guest is guarded: no part of `subpage-kvm`.
//!
//! It makes a machine on KVM, loads a guest of a few instructions, guards 128 bytes of its memory, and
//! shows what became of the guest's stores and of one by a device:
//!
//! ```sh
//! cargo run -p subpage-guard --example own_loop
//! ```
#![allow(clippy::cast_possible_truncation, reason = "for 64-bit hosts only")]

use std::error::Error;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd};
use subpage::address::{ByteRange, Gpa};
use subpage::rules::{Action, Owner, Rule, RuleName};
use subpage_guard::embed::{After, Machine, Seat, SlotMemory};
use subpage_guard::event::Received;
use subpage_guard::vcpu::cpuid;
use subpage_trap::Record;

/// Bytes of memory.
const BYTES: usize = 1 << 20;

/// Where the guest begins, and its data.
const CODE: u64 = 0x1000;
const DATA: u64 = 0x3000;

/// What is guarded: the second sub-page of the guest's data.
const GUARDED: u64 = DATA + 0x80;

/// The port by which the guest ends.
const EXIT_PORT: u16 = 0xf4;

/// 32-bit code for [`CODE`].
#[rustfmt::skip]
const GUEST: &[u8] = &[
    0xc7, 0x05, 0x00, 0x30, 0, 0, 0x11, 0x11, 0x11, 0x11, // mov dword [0x3000], 0x11111111
    0xc7, 0x05, 0x80, 0x30, 0, 0, 0x22, 0x22, 0x22, 0x22, // mov dword [0x3080], 0x22222222
    0xf0, 0xff, 0x05, 0x04, 0x30, 0, 0,                   // lock inc dword [0x3004]
    0xf0, 0xff, 0x05, 0x84, 0x30, 0, 0,                   // lock inc dword [0x3084]
    0xb0, 0x07,                                           // mov al, 7
    0xe6, 0xf4,                                           // out 0xf4, al
];

/// What came of it.
pub(crate) struct Outcome {
    /// The byte that the guest wrote to its exit port.
    pub(crate) status: u8,
    /// The first 256 bytes of its data.
    pub(crate) data: Vec<u8>,
    /// Events, in their order.
    pub(crate) events: Vec<Arc<Record>>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let Outcome { status, data, events } = run()?;
    println!("the guest has exited with {status}");
    for event in events {
        let (from, rule) = (event.event.gpa.as_u64(), event.rule_or_map());
        let by = event.text.as_deref().unwrap_or("a device");
        println!("denied by {rule:?}: bytes from {from:#x} on, by {by}");
    }
    for at in [0x00, 0x04, 0x70, 0x80, 0x84] {
        let word = u32::from_le_bytes(data[at..at + 4].try_into()?);
        println!("[{:#x}] = {word:#x}", DATA as usize + at);
    }
    Ok(())
}

/// Runs the guest to its end.
pub(crate) fn run() -> Result<Outcome, Box<dyn Error>> {
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    let memory = shared_memory()?;
    memory.write(CODE, GUEST);

    // The guest does not find what the guard does not know, nor services for which KVM writes memory.
    let mut supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    cpuid::complete(&mut supported, vm.check_extension(Cap::TscDeadlineTimer), false);
    let features = cpuid::for_guest(&supported, 0, 1);

    // The guard learns of the machine and its memory, then of the rules.
    // SAFETY: a machine of KVM.
    let machine = unsafe { Machine::new(&vm, cpuid::paging_features(&features)) }?;
    let slot = SlotMemory { first: Gpa::new(0), bytes: BYTES as u64, host: memory.host };
    // SAFETY: mapped to the end of this function; only KVM and `device_write` write it from here on.
    unsafe { machine.set_slot(0, slot) }?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: BYTES as u64,
        userspace_addr: memory.host as u64,
    };
    // SAFETY: the memory lives as long as the machine.
    unsafe { vm.set_user_memory_region(region) }?;
    let events = machine.subscribe(64);
    machine.add_rules(&[Rule {
        name: RuleName::new("table")?,
        range: ByteRange::new(Gpa::new(GUARDED), 128)?,
        owner: Owner::HOST,
        action: Action::Deny,
        locked: false,
    }])?;

    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&features)?;
    start(&vcpu)?;
    // SAFETY: the processor's descriptor, whose one seat this is.
    let mut seat = unsafe { machine.seat(0, &vcpu) }?;
    let status = guest_loop(&mut vcpu, &mut seat)?;

    // A device writes 32 bytes, half of which are guarded.
    let written = machine.device_write(Gpa::new(GUARDED - 16), &[0x33; 32], 0);
    println!("the device's write: {:?}", written.map_err(|_| "not memory")?);

    let mut received = Vec::new();
    while let Some(Received::Event(event)) = events.next(Some(Duration::ZERO)) {
        received.push(event);
    }
    Ok(Outcome { status, data: memory.read(DATA, 256), events: received })
}

/// The loop of the VMM. Of it, the guard are the lines that name the seat.
fn guest_loop(vcpu: &mut VcpuFd, seat: &mut Seat) -> Result<u8, Box<dyn Error>> {
    loop {
        seat.before_run();
        let exit = vcpu.run();
        let errno = exit.as_ref().err().map(|error| error.errno());
        match seat.after_run(errno).map_err(|failure| failure.to_string())? {
            After::GoOn => continue,
            After::Yours => {}
            After::Stop(event) => {
                return Err(format!("a rule stops the guest: {:?}", event.rule_or_map()).into());
            }
            After::Shutdown => return Err("a triple fault".into()),
        }
        match exit? {
            VcpuExit::IoOut(EXIT_PORT, data) => return Ok(data[0]),
            other => return Err(format!("an exit that this VMM does not know: {other:?}").into()),
        }
    }
}

/// 32-bit code without paging, from [`CODE`] on.
fn start(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let flat = |selector, type_| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        ..kvm_segment::default()
    };
    let mut special = vcpu.get_sregs()?;
    special.cr0 |= 1;
    special.cs = flat(8, 11);
    let data = flat(16, 3);
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    vcpu.set_sregs(&special)?;
    let mut registers = vcpu.get_regs()?;
    (registers.rip, registers.rflags) = (CODE, 2);
    vcpu.set_regs(&registers)
}

/// Memory of this process that can be mapped twice.
struct Memory {
    host: usize,
}

fn shared_memory() -> Result<Memory, std::io::Error> {
    let (access, kind) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe { libc::mmap(ptr::null_mut(), BYTES, access, kind, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    Ok(Memory { host: at.expose_provenance() })
}

impl Memory {
    fn write(&self, at: u64, bytes: &[u8]) {
        let to = ptr::with_exposed_provenance_mut::<u8>(self.host + at as usize);
        // SAFETY: inside of the mapping, which no processor of the guest uses yet.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }

    fn read(&self, at: u64, bytes: usize) -> Vec<u8> {
        let from = ptr::with_exposed_provenance::<u8>(self.host + at as usize);
        // SAFETY: inside of the mapping, of which the guest writes nothing any more.
        unsafe { std::slice::from_raw_parts(from, bytes) }.to_vec()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: this value's own mapping.
        unsafe { libc::munmap(ptr::with_exposed_provenance_mut(self.host), BYTES) };
    }
}

//! A VMM: memory, processors, a loop around `KVM_RUN`, a device that copies and one that reads a file.
//!
//! Unsafe because it maps memory and gives it to KVM.
#![allow(unsafe_code)]
#![allow(clippy::cast_possible_truncation, reason = "addresses and `usize` have the same width")]

use std::io::{BufRead as _, Seek as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::ptr;
use std::thread;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

use super::guest::{ALIAS, CODE, DATA, DONE, code};

const MEMORY: usize = 4 << 20;
const TABLES: u64 = 0x1000;

/// The VMM; a test only when it is started as one, by `run`.
#[test]
#[ignore = "the VMM, which the other tests start"]
fn child() {
    let Ok(kind) = std::env::var("VMM_GUEST") else { return };
    let cpl: u8 = std::env::var("VMM_CPL").expect("given").parse().expect("a number");
    let memory = map(&std::env::var("VMM_MEMORY").expect("given"));
    let kvm = Kvm::new().expect("there is KVM");
    let mut vm = kvm.create_vm().expect("a machine");
    if kind == "cloned" {
        // SAFETY: copies a descriptor.
        let copy = unsafe { libc::fcntl(vm.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) };
        vm = owned(&kvm, copy);
    }
    if kind == "unknown" {
        copied(&kvm, &vm, memory);
    }
    // What the VMM puts there before the slot is made has to stay.
    write(memory, CODE, &code(&kind));
    write(memory, CODE + 0x1000, &code(&kind));
    let flags = if kind == "log" { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
    slot(&vm, 0, 0, memory as u64, MEMORY as u64, flags);
    if kind == "alias" {
        slot(&vm, 1, ALIAS, memory as u64 + DATA, 0x2000, 0);
    }
    tables(memory);
    let count = if kind == "count" { 2 } else { 1 };
    let mut processors: Vec<VcpuFd> = (0..count)
        .map(|number| {
            let processor = vm.create_vcpu(number).expect("a processor");
            let cpuid = kvm.get_supported_cpuid(256).expect("features");
            processor.set_cpuid2(&cpuid).expect("features");
            begin(&processor, number, cpl);
            processor
        })
        .collect();
    println!("VMM ready");
    wait();
    thread::scope(|scope| {
        for processor in &mut processors {
            scope.spawn(move || enter(processor));
        }
    });
    let mut other = String::new();
    if kind == "log" {
        let pages = || {
            let log = vm.get_dirty_log(0, MEMORY).expect("a log");
            let page = usize::try_from(DATA / 4096).expect("small");
            log[page / 64] >> (page % 64) & 1
        };
        other = format!("logged {} then {}", pages(), pages());
    }
    match kind.as_str() {
        "device" => device(memory),
        "page" => read_page(memory),
        "stop" => {
            write(memory, DATA + 0x100, &[0x11]);
            // However often the VMM tries.
            let stopped =
                (0..2).all(|_| matches!(processors[0].run(), Ok(VcpuExit::InternalError)));
            other = if stopped { "stopped".to_owned() } else { "goes on".to_owned() };
        }
        "late" => {
            let more = map("private");
            write(more, 0, &[0x77]);
            slot(&vm, 2, 0x1000_0000, more as u64, MEMORY as u64, 0);
            // SAFETY: a byte of the mapping, which nobody writes any more.
            let byte = unsafe { more.read_volatile() };
            other = format!("late {byte:x}");
        }
        _ => {}
    }
    println!("VMM other {other}");
    let mut data = vec![0; 0x2000];
    // SAFETY: guest memory that nobody writes any more.
    unsafe {
        ptr::copy_nonoverlapping(memory.wrapping_add(DATA as usize), data.as_mut_ptr(), data.len());
    }
    print!("VMM data ");
    for byte in data {
        print!("{byte:02x}");
    }
    println!();
    wait();
}

fn wait() {
    std::io::stdout().flush().expect("a pipe");
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).expect("a pipe");
}

fn map(kind: &str) -> *mut u8 {
    let file = file();
    let (flags, fd) = match kind {
        "shared" => (libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1),
        "file" => (libc::MAP_PRIVATE, file.as_raw_fd()),
        _ => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
    };
    let both = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping.
    let at = unsafe { libc::mmap(ptr::null_mut(), MEMORY, both, flags, fd, 0) };
    assert_ne!(at, libc::MAP_FAILED);
    at.cast()
}

/// A file with a guest's data, which ends before the guest's memory does.
fn file() -> std::fs::File {
    let mut file = tempfile::tempfile().expect("a file");
    file.seek(std::io::SeekFrom::Start(DATA)).expect("a file");
    file.write_all(&[0x99; 0x2000]).expect("a file");
    file.set_len(MEMORY as u64 - (1 << 20) - 0x800).expect("a file");
    file
}

fn write(memory: *mut u8, at: u64, bytes: &[u8]) {
    // SAFETY: inside of the guest's memory, which no reference covers.
    unsafe {
        ptr::copy_nonoverlapping(bytes.as_ptr(), memory.wrapping_add(at as usize), bytes.len());
    }
}

fn slot(
    vm: &VmFd,
    slot: u32,
    guest_phys_addr: u64,
    userspace_addr: u64,
    memory_size: u64,
    flags: u32,
) {
    let region =
        kvm_userspace_memory_region { slot, flags, guest_phys_addr, memory_size, userspace_addr };
    // SAFETY: memory that stays mapped until the process ends.
    unsafe { vm.set_user_memory_region(region) }.expect("a slot");
}

/// 2 GiB mapped to themselves, by pages of 2 MiB for everybody.
fn tables(memory: *mut u8) {
    let word = |at: u64, value: u64| write(memory, at, &value.to_le_bytes());
    word(TABLES, (TABLES + 0x1000) | 7);
    for gigabyte in 0..2 {
        word(TABLES + 0x1000 + gigabyte * 8, (TABLES + 0x2000 + gigabyte * 0x1000) | 7);
        for page in 0..512 {
            let entry = gigabyte << 30 | page << 21 | 0x87;
            word(TABLES + 0x2000 + gigabyte * 0x1000 + page * 8, entry);
        }
    }
}

fn begin(processor: &VcpuFd, number: u64, cpl: u8) {
    let mut special = processor.get_sregs().expect("registers");
    let segment = |type_: u8, selector: u16, l: u8| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: selector | u16::from(cpl),
        type_,
        present: 1,
        dpl: cpl,
        db: 1 - l,
        s: 1,
        l,
        g: 1,
        ..kvm_segment::default()
    };
    special.cs = segment(11, 8, 1);
    special.ss = segment(3, 16, 0);
    (special.ds, special.es) = (special.ss, special.ss);
    special.cr0 = 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 31;
    special.cr3 = TABLES;
    special.cr4 = 1 << 5 | 1 << 9 | 1 << 10;
    special.efer = 1 << 8 | 1 << 10;
    processor.set_sregs(&special).expect("registers");
    let mut registers = processor.get_regs().expect("registers");
    registers.rip = CODE;
    registers.rsp = 0x30000 + number * 0x1000;
    // Programs may use ports.
    registers.rflags = 2 | 3 << 12;
    processor.set_regs(&registers).expect("registers");
}

/// Until the guest says that it is done.
fn enter(processor: &mut VcpuFd) {
    loop {
        match processor.run() {
            Ok(VcpuExit::IoOut(DONE, _)) => return,
            Err(error) if error.errno() == libc::EINTR => {}
            other => {
                println!("VMM failed {other:?}");
                wait();
                std::process::exit(9);
            }
        }
    }
}

/// A device that copies a buffer to the guest, and one that reads a file there, over the same bytes.
fn device(memory: *mut u8) {
    let bytes = vec![0x77; 0x60];
    write(memory, DATA + 0xf0, &bytes);
    // A string instruction, whose source is memory of the VMM.
    let bytes = [0x88u8; 0x40];
    let (from, to) = (bytes.as_ptr(), memory.wrapping_add((DATA + 0x400) as usize));
    // SAFETY: as many bytes of a buffer and of the guest's memory.
    unsafe {
        core::arch::asm!(
            "rep movsb",
            inout("rcx") bytes.len() => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&[0x66; 0x80]).expect("a file");
    file.rewind().expect("a file");
    let at = |offset: u64| memory.wrapping_add((DATA + offset) as usize).cast();
    let parts = [
        libc::iovec { iov_base: at(0x100), iov_len: 0x20 },
        libc::iovec { iov_base: at(0x140), iov_len: 0x40 },
        libc::iovec { iov_base: at(0x1000), iov_len: 0x10 },
    ];
    // SAFETY: three buffers in the guest's memory.
    let read = unsafe { libc::preadv(file.as_raw_fd(), parts.as_ptr(), 3, 0) };
    assert_eq!(read, 0x70, "{}", std::io::Error::last_os_error());
}

/// A device that reads a page of a file.
fn read_page(memory: *mut u8) {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&[0x66; 0x1000]).expect("a file");
    let to = memory.wrapping_add(DATA as usize).cast();
    // SAFETY: a page of the guest's memory.
    let read = unsafe { libc::pread(file.as_raw_fd(), to, 0x1000, 0) };
    assert_eq!(read, 0x1000, "{}", std::io::Error::last_os_error());
}

/// A copy of a machine's descriptor as its owner.
fn owned(kvm: &Kvm, copy: i32) -> VmFd {
    // SAFETY: a machine's descriptor, of which nobody else is the owner.
    unsafe { kvm.create_vmfd_from_rawfd(copy) }.expect("a machine")
}

/// A slot by a copy of the machine's descriptor that the kernel makes without the C library.
fn copied(kvm: &Kvm, vm: &VmFd, memory: *mut u8) {
    // SAFETY: copies a descriptor.
    let copy = unsafe { libc::syscall(libc::SYS_dup, vm.as_raw_fd()) };
    let copy = i32::try_from(copy).expect("a descriptor");
    slot(&owned(kvm, copy), 0, 0, memory as u64, MEMORY as u64, 0);
}

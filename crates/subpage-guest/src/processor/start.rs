//! Other processors: started by INIT and SIPI, given work.
//!
//! Unsafe: they begin in real mode, in assembly that is copied to low memory.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::apic::{self, Message};
use super::stack::STACKS;
use super::{MAX_PROCESSORS, initialise_this};
use crate::memory::{Bytes, PAGE, paging};

/// Where other processors begin.
const TRAMPOLINE: u64 = 0x8000;
/// What the assembly reads: CR3, RSP, RDI, RIP.
const PARAMETERS: u64 = 0xf00;

static PROCESSORS: AtomicU32 = AtomicU32::new(1);

/// A function that another processor is to run.
type Work = fn(usize);

/// What a processor is asked to do.
struct Job {
    /// A [`Work`], or 0 for none.
    work: AtomicU64,
    /// How many were done.
    done: AtomicU64,
    /// 1 once it runs.
    running: AtomicU64,
}

static JOBS: [Job; MAX_PROCESSORS] = [const {
    Job { work: AtomicU64::new(0), done: AtomicU64::new(0), running: AtomicU64::new(0) }
}; MAX_PROCESSORS];

// Real mode at TRAMPOLINE:0 to 64-bit mode with the tables of the parameters.
global_asm!(
    ".section .rodata.trampoline, \"a\"",
    ".globl guest_trampoline, guest_trampoline_end",
    "guest_trampoline:",
    ".code16",
    "cli",
    "cld",
    "movw %cs, %ax",
    "movw %ax, %ds",
    "lgdtl guest_trampoline_gdtr - guest_trampoline",
    "movl $0x6a0, %eax", // PAE, PGE, OSFXSR, OSXMMEXCPT
    "movl %eax, %cr4",
    "movl {parameters}, %eax",
    "movl %eax, %cr3",
    "movl $0xc0000080, %ecx",
    "rdmsr",
    "orl $0x100, %eax", // LME
    "wrmsr",
    "movl $0x80010033, %eax", // PG, WP, NE, ET, MP, PE
    "movl %eax, %cr0",
    // Far jump with a 32-bit offset.
    ".byte 0x66, 0xea",
    ".long guest_trampoline_long - guest_trampoline + {trampoline}",
    ".word 0x08",
    ".balign 8",
    "guest_trampoline_gdt:",
    ".quad 0",
    ".quad 0x00af9b000000ffff",
    ".quad 0x00cf93000000ffff",
    "guest_trampoline_gdtr:",
    ".word 23",
    ".long guest_trampoline_gdt - guest_trampoline + {trampoline}",
    ".code64",
    "guest_trampoline_long:",
    "movw $0x10, %ax",
    "movw %ax, %ds",
    "movw %ax, %es",
    "movw %ax, %ss",
    "movq {trampoline} + {parameters} + 8, %rsp",
    "movq {trampoline} + {parameters} + 16, %rdi",
    "movq {trampoline} + {parameters} + 24, %rax",
    "xorl %ebp, %ebp",
    "call *%rax",
    "ud2",
    "guest_trampoline_end:",
    ".text",
    trampoline = const TRAMPOLINE,
    parameters = const PARAMETERS,
    options(att_syntax)
);

unsafe extern "C" {
    static guest_trampoline: u8;
    static guest_trampoline_end: u8;
}

/// Notes how many processors there are.
pub(super) fn note_processors(count: u32) {
    PROCESSORS.store(count, Ordering::Relaxed);
    JOBS[0].running.store(1, Ordering::Relaxed);
}

/// How many processors there are.
pub fn processors() -> usize {
    PROCESSORS.load(Ordering::Relaxed) as usize
}

/// The bytes between two symbols of assembly.
pub(super) fn code(first: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: the callers pass the symbols around a piece of this image that nothing writes.
    unsafe { core::slice::from_raw_parts(first, end as usize - first as usize) }
}

/// Starts processor `number` and waits until it can take work. INIT resets it if it ran before.
///
/// # Panics
/// If there is no such processor, or it does not start.
pub fn start(number: usize) {
    assert!(number != 0 && number < processors().min(MAX_PROCESSORS), "no processor {number}");
    let page = Bytes::low(TRAMPOLINE, PAGE);
    page.write_all(code(&raw const guest_trampoline, &raw const guest_trampoline_end));
    page.write(PARAMETERS, paging::root());
    // As after a call: RSP + 8 is a multiple of 16.
    page.write(PARAMETERS + 8, STACKS[number].top());
    page.write(PARAMETERS + 16, number as u64);
    page.write(PARAMETERS + 24, main as *const () as u64);
    let job = &JOBS[number];
    job.running.store(0, Ordering::Relaxed);
    job.work.store(0, Ordering::Release);
    begin(number, TRAMPOLINE);
    wait_for("a processor starts", || job.running.load(Ordering::Acquire) == 1);
}

/// Sends INIT and SIPI: the processor begins in real mode at `page`, a multiple of 4096 below 1 MiB.
pub fn begin(number: usize, page: u64) {
    apic::send(number as u32, Message::Init);
    apic::send(number as u32, Message::Startup((page / PAGE) as u8));
}

/// Where another processor begins in 64-bit mode.
extern "sysv64" fn main(number: u64) -> ! {
    let number = number as usize;
    initialise_this(number, paging::root());
    assert_eq!(apic::id() as usize, number, "a processor that was not asked for began");
    let job = &JOBS[number];
    job.running.store(1, Ordering::Release);
    loop {
        let work = job.work.load(Ordering::Acquire);
        if work != 0 {
            // SAFETY: only `give` stores here, and it stores a `Work`.
            let work = unsafe { core::mem::transmute::<u64, Work>(work) };
            work(number);
            job.work.store(0, Ordering::Relaxed);
            job.done.fetch_add(1, Ordering::Release);
        }
        core::hint::spin_loop();
    }
}

/// Lets a started processor run `work` with its number, and does not wait.
///
/// # Panics
/// If it is busy.
pub fn give(number: usize, work: Work) {
    let job = &JOBS[number];
    assert_eq!(job.running.load(Ordering::Acquire), 1, "processor {number} does not run");
    let before = job.work.swap(work as usize as u64, Ordering::Release);
    assert_eq!(before, 0, "processor {number} is busy");
}

/// Waits until a processor has done what it was given.
///
/// # Panics
/// If that takes forever.
pub fn join(number: usize) {
    let job = &JOBS[number];
    wait_for("another processor's work ends", || job.work.load(Ordering::Acquire) == 0);
    job.done.load(Ordering::Acquire);
}

/// Spins until `condition` holds.
///
/// # Panics
/// After so many turns that nothing can be going on any more; what counts is the turns, not time.
pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..400_000_000_u64 {
        if condition() {
            return;
        }
        core::hint::spin_loop();
    }
    panic!("waiting in vain until {what}");
}

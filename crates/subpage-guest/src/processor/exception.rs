//! Exceptions and interrupts: counted, recorded, and caught where a test expects one.
//!
//! Unsafe: entered by the processor in assembly, which saves all registers (SSE included, since
//! `core` uses it), and left by IRET, for a caught exception to the end of [`catch`].

use core::arch::{global_asm, naked_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use super::tables::{TEST_STACK, selector, set_gate};
use super::{MAX_PROCESSORS, apic, number, registers};

/// Vector of the interrupt by which code of the user returns.
pub(super) const USER_RETURN: u8 = 0x80;
/// From here on vectors come from the APIC and want an EOI.
pub const FIRST_FROM_APIC: u8 = 0x90;
/// Vector whose handler only counts, in few bytes of stack; its frame goes onto the stack in use.
pub const COUNTED: u8 = 0x40;
/// As [`COUNTED`], with the frame on [`TEST_STACK`].
pub const COUNTED_ON_TEST_STACK: u8 = 0x41;

/// How often [`COUNTED`] and [`COUNTED_ON_TEST_STACK`] were delivered.
pub static COUNT: AtomicU64 = AtomicU64::new(0);

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exception {
    /// Vector: 13 is #GP.
    pub vector: u8,
    /// Error code, 0 if the vector has none.
    pub error: u64,
    /// Address of the instruction.
    pub rip: u64,
    /// CR2 at the time.
    pub cr2: u64,
}

/// The stack of a handler.
#[derive(Debug)]
#[repr(C)]
struct Frame {
    /// R15 to R8, RBP, RDI, RSI, RDX, RCX, RBX, RAX.
    registers: [u64; 15],
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Of each processor.
struct Record {
    /// RSP in [`catch_raw`]; 0 if nothing is to be caught.
    catching: AtomicU64,
    vector: AtomicU64,
    error: AtomicU64,
    rip: AtomicU64,
    cr2: AtomicU64,
    /// RAX of the user's [`USER_RETURN`].
    result: AtomicU64,
    interrupts: [AtomicU64; 256],
}

impl Record {
    const fn new() -> Self {
        Self {
            catching: AtomicU64::new(0),
            vector: AtomicU64::new(0),
            error: AtomicU64::new(0),
            rip: AtomicU64::new(0),
            cr2: AtomicU64::new(0),
            result: AtomicU64::new(0),
            interrupts: [const { AtomicU64::new(0) }; 256],
        }
    }
}

static RECORDS: [Record; MAX_PROCESSORS] = [const { Record::new() }; MAX_PROCESSORS];

// One entry of 16 bytes a vector, as the SDM's table of exceptions says which push an error code.
global_asm!(
    ".text",
    ".balign 16",
    ".globl guest_exception_entries",
    "guest_exception_entries:",
    "guest_vector = 0",
    ".rept 256",
    ".balign 16",
    ".if (guest_vector != 8) && ((guest_vector < 10) || (guest_vector > 14)) && \
        (guest_vector != 17) && (guest_vector != 21) && (guest_vector != 29) && (guest_vector != 30)",
    "pushq $0",
    ".endif",
    "pushq $guest_vector",
    "jmp guest_exception_common",
    "guest_vector = guest_vector + 1",
    ".endr",
    "guest_exception_common:",
    "pushq %rax; pushq %rbx; pushq %rcx; pushq %rdx; pushq %rsi; pushq %rdi; pushq %rbp",
    "pushq %r8; pushq %r9; pushq %r10; pushq %r11; pushq %r12; pushq %r13; pushq %r14; pushq %r15",
    "cld",
    "movq %rsp, %rbp",
    "subq $512, %rsp",
    "andq $-16, %rsp",
    "fxsave64 (%rsp)",
    "movq %rbp, %rdi",
    "call {handle}",
    "fxrstor64 (%rsp)",
    "movq %rbp, %rsp",
    "popq %r15; popq %r14; popq %r13; popq %r12; popq %r11; popq %r10; popq %r9; popq %r8",
    "popq %rbp; popq %rdi; popq %rsi; popq %rdx; popq %rcx; popq %rbx; popq %rax",
    "addq $16, %rsp",
    "iretq",
    handle = sym handle,
    options(att_syntax)
);

unsafe extern "C" {
    static guest_exception_entries: u8;
}

/// Counts and returns, in no more stack than the processor's own frame.
#[unsafe(naked)]
unsafe extern "sysv64" fn count() {
    naked_asm!("lock inc qword ptr [rip + {}]", "iretq", sym COUNT)
}

/// Address of a vector's handler.
pub(super) fn entry(vector: u8) -> u64 {
    &raw const guest_exception_entries as u64 + 16 * u64::from(vector)
}

/// Sets the gates of [`COUNTED`] and [`COUNTED_ON_TEST_STACK`].
pub fn count_interrupts() {
    set_gate(COUNTED, count as *const () as u64, 0, 0);
    set_gate(COUNTED_ON_TEST_STACK, count as *const () as u64, TEST_STACK, 0);
}

extern "sysv64" fn handle(frame: &mut Frame) {
    let record = &RECORDS[number()];
    let vector = frame.vector as u8;
    if vector == USER_RETURN {
        record.result.store(frame.registers[14], Ordering::Relaxed);
        record.vector.store(frame.vector, Ordering::Relaxed);
        assert!(recover(record, frame), "nobody waits for the user to return");
        return;
    }
    if vector == 2 || vector >= 32 {
        record.interrupts[usize::from(vector)].fetch_add(1, Ordering::Relaxed);
        if vector >= FIRST_FROM_APIC {
            apic::end_of_interrupt();
        }
        return;
    }
    record.vector.store(frame.vector, Ordering::Relaxed);
    record.error.store(frame.error, Ordering::Relaxed);
    record.rip.store(frame.rip, Ordering::Relaxed);
    record.cr2.store(registers::cr2(), Ordering::Relaxed);
    assert!(
        recover(record, frame),
        "unexpected exception {vector} with error code {:#x} at {:#x}, CR2 {:#x}, on processor {}",
        frame.error,
        frame.rip,
        registers::cr2(),
        number()
    );
}

/// Lets the handler return to where the exception is awaited.
fn recover(record: &Record, frame: &mut Frame) -> bool {
    let rsp = record.catching.swap(0, Ordering::Relaxed);
    if rsp == 0 {
        return false;
    }
    frame.rip = recovered as *const () as u64;
    frame.cs = u64::from(selector::CODE);
    frame.rsp = rsp;
    frame.ss = u64::from(selector::DATA);
    // Reserved bit 1 only: interrupts, traps and direction off.
    frame.rflags = 2;
    true
}

/// Calls `body` with `argument`; returns 0, or 1 if an exception ended it.
#[unsafe(naked)]
unsafe extern "sysv64" fn catch_raw(
    body: unsafe extern "sysv64" fn(*mut u8),
    argument: *mut u8,
    catching: *const AtomicU64,
) -> u64 {
    naked_asm!(
        "push rbx; push rbp; push r12; push r13; push r14; push r15",
        "sub rsp, 8",
        "mov [rdx], rsp",
        "mov rax, rdi",
        "mov rdi, rsi",
        "call rax",
        "xor eax, eax",
        "add rsp, 8",
        "pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx",
        "ret",
    )
}

/// Where a caught exception continues, with RSP as [`catch_raw`] noted it.
#[unsafe(naked)]
unsafe extern "sysv64" fn recovered() {
    naked_asm!(
        "mov eax, 1",
        "add rsp, 8",
        "pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx",
        "ret",
    )
}

/// Runs `body` up to its end or to its first exception, which is returned.
///
/// What `body` owns when an exception ends it is forgotten, not dropped.
pub fn catch<F: FnOnce()>(body: F) -> Option<Exception> {
    unsafe extern "sysv64" fn call<F: FnOnce()>(body: *mut u8) {
        // SAFETY: `catch` passes a pointer to its `Option<F>`, used by nobody else meanwhile.
        let body = unsafe { &mut *body.cast::<Option<F>>() };
        if let Some(body) = body.take() {
            body();
        }
    }
    let record = &RECORDS[number()];
    let mut body = Some(body);
    // SAFETY: `call::<F>` takes what the pointer points to; the record is a static. An exception
    // leaves frames without running destructors, as the documentation says.
    let caught =
        unsafe { catch_raw(call::<F>, (&raw mut body).cast(), &raw const record.catching) };
    record.catching.store(0, Ordering::Relaxed);
    (caught != 0).then(|| Exception {
        vector: record.vector.load(Ordering::Relaxed) as u8,
        error: record.error.load(Ordering::Relaxed),
        rip: record.rip.load(Ordering::Relaxed),
        cr2: record.cr2.load(Ordering::Relaxed),
    })
}

/// RAX of the user's last return on this processor.
pub(super) fn user_result() -> u64 {
    RECORDS[number()].result.load(Ordering::Relaxed)
}

/// How often a vector was delivered on a processor.
pub fn interrupts(number: usize, vector: u8) -> u64 {
    RECORDS[number].interrupts[usize::from(vector)].load(Ordering::Relaxed)
}

/// Raises [`COUNTED_ON_TEST_STACK`] by INT while RSP is `rsp`.
pub fn interrupt_from(rsp: u64) {
    #[unsafe(naked)]
    unsafe extern "sysv64" fn raise(rsp: u64) {
        naked_asm!(
            "mov r11, rsp",
            "mov rsp, rdi",
            "int {vector}",
            ".globl guest_interrupted",
            "guest_interrupted:",
            "mov rsp, r11",
            "ret",
            vector = const COUNTED_ON_TEST_STACK,
        )
    }
    // SAFETY: the handler counts and returns; nothing is pushed onto the stack at `rsp`.
    unsafe { raise(rsp) }
}

/// Asks the hypervisor to inject `vector` with this interruption type, while RSP is `rsp` and
/// interrupts are on.
pub fn inject_from(rsp: u64, vector: u8, kind: u64) {
    #[unsafe(naked)]
    unsafe extern "sysv64" fn raise(rsp: u64, vector: u64, kind: u64) {
        naked_asm!(
            "push rbx",
            "mov r11, rsp",
            "mov rsp, rdi",
            "mov rbx, rsi",
            "mov rcx, rdx",
            "xor edx, edx",
            "mov eax, 0x8003",
            "sti",
            // One instruction in the shadow of STI, so that there is none at VMCALL.
            "nop",
            "vmcall",
            ".globl guest_injected",
            "guest_injected:",
            "cli",
            "mov rsp, r11",
            "pop rbx",
            "ret",
        )
    }
    // SAFETY: the handler counts and returns; nothing is pushed onto the stack at `rsp`.
    unsafe { raise(rsp, u64::from(vector), kind) }
}

unsafe extern "C" {
    static guest_interrupted: u8;
    static guest_injected: u8;
}

/// The frame from which IRET continues behind [`interrupt_from`] or, if `injected`, behind
/// [`inject_from`].
pub fn frame_of(rsp: u64, injected: bool) -> [u64; 5] {
    let rip = if injected { &raw const guest_injected } else { &raw const guest_interrupted };
    [rip as u64, u64::from(selector::CODE), 2, rsp, u64::from(selector::DATA)]
}

/// Lets NMIs be counted as [`COUNTED_ON_TEST_STACK`].
pub fn count_nmis_on_test_stack() {
    set_gate(2, count as *const () as u64, TEST_STACK, 0);
}

/// Raises #UD.
pub fn raise_undefined() {
    // SAFETY: the handler ends the test or returns to where the exception is caught.
    unsafe { core::arch::asm!("ud2") }
}

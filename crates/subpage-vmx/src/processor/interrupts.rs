//! Exceptions and NMIs of the hypervisor itself.
//!
//! Unsafe because the processor enters here in the middle of anything: the stubs save all state that
//! the Rust handler may change, SSE registers included (a guest's may be live in them).
#![allow(unsafe_code)]

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use spin::Once;

use crate::boot::MAX_PROCESSORS;

use super::segments::{self, STACK_EXCEPTION, STACK_FATAL, STACK_NMI};

/// What the stubs have saved.
#[repr(C)]
#[derive(Debug)]
struct Frame {
    /// R15 to R8, RDI, RSI, RBP, RBX, RDX, RCX, RAX.
    registers: [u64; 15],
    vector: u64,
    error_code: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

global_asm!(
    r#"
    .section .text.exceptions, "ax"
    // One stub of 16 bytes for each vector; those without an error code push a zero for it.
    .balign 16
    .globl hypervisor_exception_stubs
    hypervisor_exception_stubs:
    .set vector, 0
    .rept 32
        .balign 16
        .ifeq ((0x60227D00 >> vector) & 1)
        push 0
        .endif
        push vector
        jmp hypervisor_exception
        .set vector, vector + 1
    .endr

    hypervisor_exception:
        push rax
        push rcx
        push rdx
        push rbx
        push rbp
        push rsi
        push rdi
        push r8
        push r9
        push r10
        push r11
        push r12
        push r13
        push r14
        push r15
        cld
        mov rdi, rsp
        mov rbp, rsp
        sub rsp, 512
        and rsp, -16
        fxsave64 [rsp]
        call {handler}
        fxrstor64 [rsp]
        mov rsp, rbp
        pop r15
        pop r14
        pop r13
        pop r12
        pop r11
        pop r10
        pop r9
        pop r8
        pop rdi
        pop rsi
        pop rbp
        pop rbx
        pop rdx
        pop rcx
        pop rax
        add rsp, 16
        iretq
    .text
    "#,
    handler = sym handle,
);

unsafe extern "C" {
    static hypervisor_exception_stubs: [[u8; 16]; VECTORS];
}

const VECTORS: usize = 32;
const NMI: u64 = 2;
/// Its place among the registers of a frame.
const RAX: usize = 14;

/// What an NMI is for; called with the number of the processor.
static ON_NMI: Once<fn(usize)> = Once::new();

/// Code that may fault, and where it continues if it does.
static RECOVERABLE: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];

/// Code that an NMI cuts short, and where it continues then.
static CUT_SHORT: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];

/// Processors on which an NMI has come since they last cleared it.
static NMI_CAME: [AtomicBool; MAX_PROCESSORS] = [const { AtomicBool::new(false) }; MAX_PROCESSORS];

/// Set by each NMI that comes to processor `cpu` while it does not run the guest.
pub fn nmi_came(cpu: usize) -> &'static AtomicBool {
    &NMI_CAME[cpu]
}

/// NMIs that interrupt instructions in `start..end` continue at `resume`.
///
/// # Safety
/// The code at `resume` copes with whatever state the code in the range leaves.
pub unsafe fn cut_short([start, end, resume]: [usize; 3]) {
    for (word, value) in CUT_SHORT.iter().zip([start, end, resume]) {
        word.store(value, Ordering::Release);
    }
}

/// Names what NMIs are for, once; the function must take no lock and no memory.
pub fn on_nmi(handler: fn(usize)) {
    ON_NMI.call_once(|| handler);
}

/// Exceptions of instructions in `start..end` continue at `resume`.
///
/// # Safety
/// The code at `resume` copes with whatever state the code in the range leaves.
pub unsafe fn recover(start: usize, end: usize, resume: usize) {
    for (word, value) in RECOVERABLE.iter().zip([start, end, resume]) {
        word.store(value, Ordering::Release);
    }
}

extern "C" fn handle(frame: &mut Frame) {
    if frame.vector == NMI {
        let cpu = segments::processor_index();
        if let Some(came) = NMI_CAME.get(cpu) {
            came.store(true, Ordering::Release);
        }
        if let Some(handler) = ON_NMI.get() {
            handler(cpu);
        }
        let [start, end, resume] = [0, 1, 2].map(|i| CUT_SHORT[i].load(Ordering::Acquire) as u64);
        if (start..end).contains(&frame.rip) {
            frame.rip = resume;
        }
        return;
    }
    let [start, end, resume] = [0, 1, 2].map(|i| RECOVERABLE[i].load(Ordering::Acquire) as u64);
    if (start..end).contains(&frame.rip) {
        frame.rip = resume;
        frame.registers[RAX] = frame.vector;
        return;
    }
    panic!(
        "exception {} (error code {:#x}) in the hypervisor at {:#x}, CR2 {:#x}, RSP {:#x}",
        frame.vector,
        frame.error_code,
        frame.rip,
        super::control::cr2(),
        frame.rsp
    );
}

/// A gate of the IDT (SDM Vol. 3A, "64-Bit Mode IDT").
#[repr(C)]
#[derive(Clone, Copy)]
struct Gate([u64; 2]);

#[repr(C, align(16))]
struct Table([Gate; VECTORS]);

#[repr(C, packed)]
struct TableRegister {
    limit: u16,
    base: u64,
}

static TABLE: Once<Table> = Once::new();

fn gate(address: u64, stack: u8) -> Gate {
    const PRESENT_INTERRUPT_GATE: u64 = 0x8E;
    Gate([
        address & 0xFFFF
            | u64::from(segments::CODE) << 16
            | u64::from(stack) << 32
            | PRESENT_INTERRUPT_GATE << 40
            | (address >> 16 & 0xFFFF) << 48,
        address >> 32,
    ])
}

/// Loads the IDT on this processor; gives its base.
pub fn install() -> u64 {
    let table = TABLE.call_once(|| {
        let stubs = &raw const hypervisor_exception_stubs as u64;
        let mut table = Table([Gate([0; 2]); VECTORS]);
        for (vector, slot) in (0_u64..).zip(&mut table.0) {
            let stack = match vector {
                2 => STACK_NMI,
                8 | 18 => STACK_FATAL,
                _ => STACK_EXCEPTION,
            };
            *slot = gate(stubs + vector * 16, stack);
        }
        table
    });
    let base = &raw const *table as u64;
    #[allow(clippy::cast_possible_truncation)] // 511.
    const LIMIT: u16 = (VECTORS * size_of::<Gate>() - 1) as u16;
    let register = TableRegister { limit: LIMIT, base };
    // SAFETY: the table lives forever and each gate leads to a stub that saves everything.
    unsafe { asm!("lidt [{}]", in(reg) &raw const register, options(nostack)) };
    base
}

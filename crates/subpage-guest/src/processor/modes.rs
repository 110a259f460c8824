//! Modes other than 64-bit: code that leaves it, writes to memory, and comes back.
//!
//! Unsafe: changes CR0 and CS in assembly; interrupts are off, and nothing of Rust runs meanwhile.

use core::arch::global_asm;

use super::start::{begin, code, wait_for};
use crate::memory::{Bytes, PAGE};

/// Where real-mode code begins.
const REAL_MODE: u64 = 0x7000;
/// Its arguments: segment, offset, value, done.
const REAL_ARGUMENTS: u64 = 0xf00;

// A processor after SIPI: writes a word to DS:BX and says so. CS is REAL_MODE / 16.
global_asm!(
    ".section .rodata.real_mode, \"a\"",
    ".globl guest_real_mode, guest_real_mode_end",
    "guest_real_mode:",
    ".code16",
    "cli",
    "movw %cs:{arguments}, %ax",
    "movw %ax, %ds",
    "movw %cs:{arguments} + 2, %bx",
    "movw %cs:{arguments} + 4, %ax",
    "movw %ax, (%bx)",
    "pushw %cs",
    "popw %ds",
    "movw $1, {arguments} + 6",
    "1: hlt",
    "jmp 1b",
    "guest_real_mode_end:",
    ".code64",
    ".text",
    arguments = const REAL_ARGUMENTS,
    options(att_syntax)
);

// RDI: address below 4 GiB, ESI: value. Goes to 32-bit code, turns paging off, stores, comes back.
global_asm!(
    ".text",
    ".globl guest_without_paging",
    "guest_without_paging:",
    "pushq %rbx",
    "pushq %rbp",
    "movq %rsp, %rbp",
    "movq %cr0, %rbx",
    "subq $16, %rsp",
    "leaq 2f(%rip), %rcx",
    "leaq 1f(%rip), %rax",
    "movl %eax, (%rsp)",
    "movl $0x18, 4(%rsp)",
    "lretl",
    ".code32",
    "1:",
    "movl %cr0, %eax",
    "andl $0x7fffffff, %eax",
    "movl %eax, %cr0",
    "movl %esi, (%edi)",
    "movl %cr0, %eax",
    "orl $0x80000000, %eax",
    "movl %eax, %cr0",
    "pushl $0x08",
    "pushl %ecx",
    "lretl",
    ".code64",
    "2:",
    "movl %ebp, %esp",
    "popq %rbp",
    "popq %rbx",
    "ret",
    options(att_syntax)
);

unsafe extern "C" {
    static guest_real_mode: u8;
    static guest_real_mode_end: u8;
}

unsafe extern "sysv64" {
    fn guest_without_paging(address: u64, value: u32);
}

/// Resets processor `number` and lets it store `value` at `at` in real mode; it halts after that.
///
/// # Panics
/// If `at` is not in low memory, or the processor does not come.
pub fn write_in_real_mode(number: usize, at: Bytes, value: u16) {
    assert!(at.address() + 2 <= 0x10_0000, "real mode does not reach {:#x}", at.address());
    let page = Bytes::low(REAL_MODE, PAGE);
    page.write_all(code(&raw const guest_real_mode, &raw const guest_real_mode_end));
    // The offset stays small, so that the segment does not wrap.
    page.write(REAL_ARGUMENTS, (at.address() / 16) as u16);
    page.write(REAL_ARGUMENTS + 2, (at.address() % 16) as u16);
    page.write(REAL_ARGUMENTS + 4, value);
    page.write(REAL_ARGUMENTS + 6, 0_u16);
    begin(number, REAL_MODE);
    wait_for("a processor in real mode has written", || page.read::<u16>(REAL_ARGUMENTS + 6) == 1);
}

/// Stores `value` with paging off, from 32-bit code.
pub fn write_without_paging(at: Bytes, value: u32) {
    let at = at.part(0, 4);
    // SAFETY: the image, the stack and `at` lie below 4 GiB at the addresses that they have without
    // paging; interrupts are off; GDT entry 18H is 32-bit code.
    unsafe { guest_without_paging(at.address(), value) }
}

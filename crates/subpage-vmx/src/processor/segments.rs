//! Segments: a flat GDT with a task-state segment for each processor, and what GS points to.
//!
//! Unsafe because segment and table registers decide what code and stacks mean.
#![allow(unsafe_code)]

use alloc::boxed::Box;
use core::arch::asm;

use super::msr::{self, Msr};

/// Selector of the 64-bit code segment; the boot code's GDT has it too.
pub const CODE: u16 = 0x08;
/// Selector of the data segment.
pub const DATA: u16 = 0x10;
/// Selector of the task-state segment.
pub const TASK: u16 = 0x20;

/// Bytes of each stack for interrupts and exceptions.
const STACK_BYTES: usize = 16 << 10;

/// Number of a stack in the task-state segment, as gates name it.
pub const STACK_NMI: u8 = 1;
/// For double faults and machine checks.
pub const STACK_FATAL: u8 = 2;
/// For all other exceptions: compiled code uses the 128 bytes below RSP.
pub const STACK_EXCEPTION: u8 = 3;

/// SDM Vol. 3A, "Task Management in 64-bit Mode".
#[repr(C, packed(4))]
struct TaskState {
    reserved: u32,
    stacks: [u64; 3],
    reserved2: u64,
    interrupt_stacks: [u64; 7],
    reserved3: u64,
    reserved4: u16,
    io_map_base: u16,
}

const _: () = assert!(size_of::<TaskState>() == 104);

#[repr(C, align(16))]
struct Stack([u8; STACK_BYTES]);

/// What belongs to one processor and stays forever; GS points to its first word.
#[repr(C)]
pub struct ProcessorArea {
    index: usize,
    gdt: [u64; 6],
    task: TaskState,
    interrupt_stacks: [Stack; 3],
}

/// Bases that the host-state area of a VMCS needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bases {
    /// Of the GDT.
    pub gdt: u64,
    /// Of the task-state segment.
    pub task: u64,
    /// Of GS.
    pub gs: u64,
}

#[repr(C, packed)]
struct TableRegister {
    limit: u16,
    base: u64,
}

/// Gives this processor its tables and its number.
///
/// # Safety
/// Once on each processor, before anything asks for its number; the boot code's flat segments are
/// in use.
pub unsafe fn install(index: usize) -> Bases {
    let area = Box::leak(Box::new(ProcessorArea {
        index,
        gdt: [0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x00CF_9B00_0000_FFFF, 0, 0],
        task: TaskState {
            reserved: 0,
            stacks: [0; 3],
            reserved2: 0,
            interrupt_stacks: [0; 7],
            reserved3: 0,
            reserved4: 0,
            io_map_base: 104,
        },
        #[allow(clippy::large_stack_arrays)] // Once, on a stack of 64 KiB.
        interrupt_stacks: [const { Stack([0; STACK_BYTES]) }; 3],
    }));
    let tops = area
        .interrupt_stacks
        .each_ref()
        .map(|stack| core::ptr::from_ref(stack) as u64 + STACK_BYTES as u64);
    area.task.interrupt_stacks = [tops[0], tops[1], tops[2], 0, 0, 0, 0];
    let task = &raw const area.task as u64;
    area.gdt[4] = 0x67 | (task & 0xFF_FFFF) << 16 | 0x89 << 40 | (task >> 24 & 0xFF) << 56;
    area.gdt[5] = task >> 32;
    let gdt = &raw const area.gdt as u64;
    let gs = &raw const *area as u64;
    let register = TableRegister { limit: 6 * 8 - 1, base: gdt };
    // SAFETY: the new table has the same code and data descriptors at the same selectors.
    unsafe { asm!("lgdt [{}]", in(reg) &raw const register, options(nostack)) };
    // SAFETY: the selector names the task-state segment built above, which is never freed.
    unsafe { asm!("ltr {:x}", in(reg) TASK, options(nostack)) };
    // SAFETY: every 64-bit processor has this register; compiled code does not use GS.
    unsafe { msr::write(Msr::GS_BASE, gs) };
    Bases { gdt, task, gs }
}

/// Number of this processor, from 0 on, as [`install`] was told.
pub fn processor_index() -> usize {
    let index: usize;
    // SAFETY: GS points to this processor's area from its start on; VM exits load it again.
    unsafe { asm!("mov {}, gs:[0]", out(reg) index, options(nostack, readonly)) };
    index
}

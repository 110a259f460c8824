//! Descriptor tables: one GDT and one IDT for all processors, a TSS for each.
//!
//! Unsafe: loads GDTR, IDTR and TR, which point the processor to memory. The tables are statics, so
//! they are there forever.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::stack::{EXCEPTION_STACKS, NMI_STACKS};
use super::{MAX_PROCESSORS, exception};

/// Selectors of the GDT.
pub mod selector {
    /// 64-bit code of the supervisor.
    pub const CODE: u16 = 0x08;
    /// Data of the supervisor.
    pub const DATA: u16 = 0x10;
    /// 32-bit code of the supervisor.
    pub const CODE_32: u16 = 0x18;
    /// Data of the user, with the requested level 3.
    pub const USER_DATA: u16 = 0x20 | 3;
    /// 64-bit code of the user, with the requested level 3.
    pub const USER_CODE: u16 = 0x28 | 3;
    /// The first TSS; 16 bytes for each processor.
    pub const TASK: u16 = 0x30;
}

static GDT: [AtomicU64; 6 + 2 * MAX_PROCESSORS] =
    [const { AtomicU64::new(0) }; 6 + 2 * MAX_PROCESSORS];

/// Dwords of a TSS: stack pointers of the rings at 1, of the interrupt-stack table at 9, the address
/// of the I/O bitmap in the upper half of 25.
type Task = [AtomicU32; 26];

static TASKS: [Task; MAX_PROCESSORS] =
    [const { [const { AtomicU32::new(0) }; 26] }; MAX_PROCESSORS];

static IDT: [[AtomicU64; 2]; 256] = [const { [const { AtomicU64::new(0) }; 2] }; 256];

/// Interrupt-stack-table entry of exceptions and interrupts.
pub const EXCEPTION_STACK: u8 = 1;
/// Interrupt-stack-table entry of NMIs.
pub const NMI_STACK: u8 = 2;
/// Interrupt-stack-table entry that tests point where they like.
pub const TEST_STACK: u8 = 3;

/// What LGDT and LIDT read.
#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

/// Makes the supervisor's code segment one that was not used yet, until CS is loaded with it again.
pub fn forget_use_of_code() {
    GDT[1].fetch_and(!(1 << 40), Ordering::Relaxed);
}

/// Fills the tables of all processors.
pub(super) fn fill() {
    let descriptors = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_9b00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
    ];
    for (entry, descriptor) in GDT.iter().zip(descriptors) {
        entry.store(descriptor, Ordering::Relaxed);
    }
    for (number, task) in TASKS.iter().enumerate() {
        let base = task.as_ptr() as u64;
        let limit = size_of::<Task>() as u64 - 1;
        let low = limit | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
        GDT[6 + 2 * number].store(low, Ordering::Relaxed);
        GDT[7 + 2 * number].store(base >> 32, Ordering::Relaxed);
        set_pointer(task, 1, EXCEPTION_STACKS[number].top());
        set_interrupt_stack_of(number, EXCEPTION_STACK, EXCEPTION_STACKS[number].top());
        set_interrupt_stack_of(number, NMI_STACK, NMI_STACKS[number].top());
        set_interrupt_stack_of(number, TEST_STACK, EXCEPTION_STACKS[number].top());
        task[25].store((size_of::<Task>() as u32) << 16, Ordering::Relaxed);
    }
    for vector in 0..=255 {
        let stack = if vector == 2 { NMI_STACK } else { EXCEPTION_STACK };
        let privilege = if vector == exception::USER_RETURN { 3 } else { 0 };
        set_gate(vector, exception::entry(vector), stack, privilege);
    }
}

fn set_pointer(task: &Task, dword: usize, address: u64) {
    task[dword].store(address as u32, Ordering::Relaxed);
    task[dword + 1].store((address >> 32) as u32, Ordering::Relaxed);
}

/// Sets an entry of a processor's interrupt-stack table, 1..=7.
fn set_interrupt_stack_of(number: usize, entry: u8, top: u64) {
    set_pointer(&TASKS[number], 9 + 2 * (usize::from(entry) - 1), top);
}

/// Points [`TEST_STACK`] of this processor somewhere.
pub fn set_test_stack(top: u64) {
    set_interrupt_stack_of(super::number(), TEST_STACK, top);
}

/// Sets an interrupt gate for all processors. `stack` 0 means the one in use.
pub(super) fn set_gate(vector: u8, handler: u64, stack: u8, privilege: u8) {
    let low = handler & 0xffff
        | u64::from(selector::CODE) << 16
        | u64::from(stack) << 32
        | (0x8e | u64::from(privilege) << 5) << 40
        | (handler >> 16 & 0xffff) << 48;
    let [first, second] = &IDT[usize::from(vector)];
    second.store(handler >> 32, Ordering::Relaxed);
    first.store(low, Ordering::Release);
}

/// Loads the tables on processor `number`.
pub(super) fn load(number: usize) {
    let gdt = Pointer { limit: size_of_val(&GDT) as u16 - 1, base: GDT.as_ptr() as u64 };
    let idt = Pointer { limit: size_of_val(&IDT) as u16 - 1, base: IDT.as_ptr() as u64 };
    let task = selector::TASK + 16 * number as u16;
    // A TSS that is loaded is busy, and loading a busy one is #GP: a processor that starts again
    // loads its own again.
    GDT[6 + 2 * number].fetch_and(!(1 << 41), Ordering::Relaxed);
    // SAFETY: flat segments of the same meaning as before; the tables are statics, filled before.
    unsafe {
        asm!(
            "lgdt [{gdt}]",
            "lidt [{idt}]",
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ds, {data:x}",
            "mov es, {data:x}",
            "mov ss, {data:x}",
            "mov fs, {zero:x}",
            "mov gs, {zero:x}",
            "ltr {task:x}",
            gdt = in(reg) &raw const gdt,
            idt = in(reg) &raw const idt,
            code = const selector::CODE,
            scratch = out(reg) _,
            data = in(reg) selector::DATA,
            zero = in(reg) 0_u16,
            task = in(reg) task,
        );
    }
}

/// The selector in the task register.
pub(super) fn task_register() -> u16 {
    let selector: u64;
    // SAFETY: reads a register.
    unsafe { asm!("str {}", out(reg) selector, options(nomem, nostack, preserves_flags)) }
    selector as u16
}

/// The processor whose TSS a selector names.
pub(super) const fn task_of(selector: u16) -> usize {
    (selector.saturating_sub(selector::TASK) / 16) as usize
}

/// Points IDTR to an empty table: the next exception is a triple fault.
pub fn forget_interrupts() {
    let idt = Pointer { limit: 0, base: 0 };
    // SAFETY: what an empty table does to the next exception is what the caller wants: it ends the
    // machine.
    unsafe { asm!("lidt [{}]", in(reg) &raw const idt, options(nostack)) }
}

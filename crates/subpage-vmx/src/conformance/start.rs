//! The start of the executor: memory, VMX operation, the batch, and the end of the machine.
//!
//! Unsafe because here memory is divided and handed to those who own it from then on.
#![allow(unsafe_code)]

use alloc::boxed::Box;
use alloc::vec;
use core::arch::asm;
use core::fmt;
use core::ops::Range;

use super::answer::FAILED;
use super::execute::{self, Arena, Refused};
use super::format::{ARENA, ARENA_WORDS, Batch};
use super::processor::{InstructionError, VmxProcessor};
use crate::boot::information::{Information, MAGIC};
use crate::boot::{fatal, layout, start};
use crate::memory::Heap;
use crate::processor::{console, control, cpuid, interrupts, segments};
use crate::vmx::structure;

/// Where the arena is in memory.
const ARENA_RANGE: Range<u64> = ARENA..ARENA + ARENA_WORDS as u64 * 8;

/// Performs the batch in the module `cases`, and ends the machine.
///
/// # Safety
/// Once, from the entry code: long mode, the first 4 GiB mapped to themselves, nothing in use but
/// the image, which `image` tells; `magic` and `information` are what the boot loader left in EAX
/// and EBX.
pub unsafe fn run(magic: u32, information: u32, image: Range<u64>, heap: &'static Heap) -> ! {
    if magic != MAGIC {
        fatal(format_args!("not loaded by Multiboot2 (EAX is {magic:#x}, not {MAGIC:#x})"));
    }
    // SAFETY: by the contract the block is where EBX says, and nobody writes it.
    let block = unsafe { start::information_block(information) };
    let told = Information::read(block).unwrap_or_else(|error| fatal(format_args!("{error}")));
    let own = divide(&told, image, block, failed);
    // SAFETY: the layout gives this memory to nobody else.
    unsafe { heap.give(own) };
    let Some(module) = told.modules.iter().find(|module| module.name == "cases") else {
        failed(format_args!("no Multiboot2 module is named \"cases\""));
    };
    let batch = Batch::parse(start::contents(module))
        .unwrap_or_else(|error| failed(format_args!("{error}")));
    let idt = interrupts::install();
    // SAFETY: the first thing on this processor; the boot code's flat segments are in use.
    let bases = unsafe { segments::install(0) };
    let capabilities = structure::read_registers()
        .check()
        .unwrap_or_else(|missing| failed(format_args!("{missing}")));
    // SAFETY: `divide` keeps the arena free; bases and IDT are this processor's.
    let processor = unsafe { VmxProcessor::new(&capabilities, &bases, idt) };
    let mut processor = processor.unwrap_or_else(|error| failed(format_args!("{error}")));
    enable_vector_registers(failed);
    let before: Box<[u64]> = vec![0; ARENA_WORDS].into();
    let mut before: Box<Arena> = before.try_into().expect("as many words");
    let mut out = Output { line: [0; Output::BYTES], filled: 0 };
    let result = execute::run(&batch, &mut processor, &mut before, &mut out);
    out.send();
    match result {
        Ok(()) => console::end_machine(),
        Err(Refused { case, step, error: Some(InstructionError(number)) }) => failed(format_args!(
            "case {case} step {step}: the guest cannot be entered, VM-instruction error {number}"
        )),
        Err(Refused { error: None, .. }) => failed(format_args!("an answer cannot be written")),
    }
}

fn failed(reason: fmt::Arguments<'_>) -> ! {
    console::print_line(format_args!("{FAILED}{reason}"));
    console::end_machine()
}

/// What says why there is no way on.
pub(crate) type Refuse = fn(fmt::Arguments<'_>) -> !;

/// Memory for the heap, apart from the arena, the image and what the boot loader has left.
pub(crate) fn divide(
    told: &Information<'_>,
    image: Range<u64>,
    block: &[u8],
    refuse: Refuse,
) -> Range<u64> {
    let block = block.as_ptr_range();
    let mut taken = arrayvec::ArrayVec::<Range<u64>, 40>::new();
    taken.extend([ARENA_RANGE, image, block.start as u64..block.end as u64]);
    taken.extend(told.modules.iter().map(|module| module.range.clone()));
    let [arena, others @ ..] = &taken[..] else { unreachable!("the arena was put there") };
    let inside = |area: &Range<u64>| area.start <= arena.start && arena.end <= area.end;
    let apart = |other: &Range<u64>| other.end <= arena.start || arena.end <= other.start;
    if !told.memory.iter().any(inside) || !others.iter().all(apart) {
        refuse(format_args!("the memory from {:#x} to {:#x} is not free", arena.start, arena.end));
    }
    // The guest's part is not used.
    let guest_mib = Some(layout::GUEST_ALIGNMENT >> 20);
    let layout = layout::divide(&told.memory, &taken, guest_mib)
        .unwrap_or_else(|error| refuse(format_args!("{error}")));
    layout.own
}

/// Lets guests use SSE and AVX registers; VMX operation has turned XSAVE on.
pub(crate) fn enable_vector_registers(refuse: Refuse) {
    const X87_SSE_AVX: u64 = 0b111;
    if !cpuid::has_xsave() || cpuid::xcr0_mask() & X87_SSE_AVX != X87_SSE_AVX {
        refuse(format_args!("this processor has no AVX, which the cases use"));
    }
    // SAFETY: CR4.OSXSAVE is set at the start of VMX operation where there is XSAVE; these
    // components were just found.
    unsafe { control::set_xcr0(X87_SSE_AVX) };
}

/// Collects a line and sends it in one instruction to an emulator's debug output: a serial port
/// would take its time for each of some million bytes.
struct Output {
    line: [u8; Self::BYTES],
    filled: usize,
}

impl Output {
    const BYTES: usize = 1024;

    fn send(&mut self) {
        const DEBUG_OUTPUT: u16 = 0xE9;
        let line = &self.line[..self.filled];
        // SAFETY: reads the bytes of the slice; the port is an emulator's debug output, which
        // touches no memory.
        unsafe {
            asm!("rep outsb", in("dx") DEBUG_OUTPUT, inout("rsi") line.as_ptr() => _,
                 inout("rcx") line.len() => _, options(nostack, preserves_flags, readonly));
        }
        self.filled = 0;
    }
}

impl fmt::Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if self.filled == Self::BYTES {
                self.send();
            }
            self.line[self.filled] = byte;
            self.filled += 1;
            // Each line at once: the next step may be the machine's last.
            if byte == b'\n' {
                self.send();
            }
        }
        Ok(())
    }
}

//! The start of the kit, and its report.
//!
//! Unsafe because here memory is handed to those who own it from then on, and registers are read.
#![allow(unsafe_code)]

use core::ops::Range;

use super::report::{line, stopped};
use super::screen::Screen;
use super::{identity, judge::Judge, report, timing};
use crate::boot::information::{Information, MAGIC, TextScreen};
use crate::boot::{fatal, start};
use crate::conformance::execute::{self, Arena, CaseRunner as _, Refused};
use crate::conformance::format::{ARENA_WORDS, Batch};
use crate::conformance::processor::{InstructionError, VmxProcessor};
use crate::conformance::start::{divide, enable_vector_registers};
use crate::memory::Heap;
use crate::processor::{console, cpuid, interrupts, segments};
use crate::vmx::capability::Registers;
use crate::vmx::structure;

/// Runs the kit's cases, tells what came of it, and ends the machine.
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
    let own = divide(&told, image, block, stopped);
    // SAFETY: the layout gives this memory to nobody else.
    unsafe { heap.give(own) };
    // A map that lists a screen's cells as memory may have given them to us.
    let screen = told.screen.filter(|screen| told.memory.iter().all(|area| !screen.overlaps(area)));
    if let Some(place) = screen {
        // SAFETY: the boot loader has told of it, where screens have their memory, which is below 4 GiB and
        // none that was divided.
        report::use_screen(unsafe { Screen::new(place) });
    }
    let idt = interrupts::install();
    // SAFETY: the first thing on this processor; the boot code's flat segments are in use.
    let bases = unsafe { segments::install(0) };
    let module = |name: &str| {
        let module = told.modules.iter().find(|module| module.name == name);
        let module = module.unwrap_or_else(|| {
            stopped(format_args!("the kit is not whole: it has no module \"{name}\""))
        });
        start::contents(module)
    };
    let batch = |name| {
        Batch::parse(module(name)).unwrap_or_else(|error| stopped(format_args!("{name}: {error}")))
    };
    let (cases, times) = (batch("cases"), batch("timing"));
    let Ok(predicted) = core::str::from_utf8(module("predicted")) else {
        stopped(format_args!("the predictions are no text"));
    };
    let what = predicted.lines().next().unwrap_or_default();
    line(format_args!("begins; version {}; {what}", env!("CARGO_PKG_VERSION")));
    match screen {
        Some(TextScreen { columns, rows, .. }) => {
            line(format_args!("screen: {columns} columns, {rows} rows"));
        }
        None => line(format_args!("screen: none for text")),
    }
    let registers = structure::read_registers();
    describe(&registers);
    let capabilities =
        registers.check().unwrap_or_else(|missing| stopped(format_args!("{missing}")));
    let fit = identity::fit(&registers, &capabilities, cpuid::physical_width());
    let fit = fit.and_then(|()| {
        identity::has_supervisor_checks().then_some(()).ok_or(identity::Unfit::NoSupervisorChecks)
    });
    fit.unwrap_or_else(|unfit| stopped(format_args!("{unfit}")));
    // SAFETY: `divide` keeps the arena free; bases and IDT are this processor's.
    let processor = unsafe { VmxProcessor::new(&capabilities, &bases, idt) };
    let mut processor = processor.unwrap_or_else(|error| stopped(format_args!("{error}")));
    enable_vector_registers(stopped);
    let before = alloc::vec![0; ARENA_WORDS].into_boxed_slice();
    let mut before: alloc::boxed::Box<Arena> = before.try_into().expect("as many words");

    let mut judge = Judge::new(predicted, line);
    let ran = execute::run(&cases, &mut processor, &mut before, &mut judge);
    let tally = judge.finish();
    line(format_args!(
        "compared {} steps: {} deviations, {} predictions without an answer",
        tally.steps, tally.deviations, tally.unanswered
    ));
    match ran {
        Ok(()) if tally.steps > 0 => {}
        Ok(()) => stopped(format_args!("nothing was compared")),
        Err(Refused { case, step, error: Some(InstructionError(number)) }) => {
            stopped(format_args!(
                "case {case} step {step}: the guest cannot be entered, VM-instruction error {number}"
            ))
        }
        Err(Refused { error: None, .. }) => stopped(format_args!("an answer cannot be written")),
    }
    if let Err(number) = timing::guests(&times, &mut processor, &mut before) {
        stopped(format_args!("the guest of timing {number} cannot be entered"));
    }
    timing::host("INVEPT, all contexts", || processor.invalidate_ept());
    timing::host("one page restricted: two words stored, INVEPT", || {
        let arena = processor.arena();
        // The same values again: what counts are the stores and what follows them.
        for word in [0, ARENA_WORDS / 2] {
            let value = core::hint::black_box(arena[word]);
            arena[word] = core::hint::black_box(value);
        }
        processor.invalidate_ept();
    });
    line(format_args!("done"));
    console::end_machine()
}

/// Tells what the processor says it is.
fn describe(registers: &Registers) {
    let signature = cpuid::leaf(1, 0).eax;
    line(format_args!("processor: {}; CPUID 1 EAX {signature:#x}", identity::brand()));
    if identity::is_intel() {
        // SAFETY: the processor is Intel's.
        line(format_args!("microcode: {:#x}", unsafe { identity::microcode() }));
    }
    line(format_args!("physical addresses: {} bits", cpuid::physical_width()));
    for (name, value) in [
        ("IA32_FEATURE_CONTROL (3AH)", registers.feature_control),
        ("IA32_VMX_BASIC (480H)", registers.basic),
        ("IA32_VMX_PINBASED_CTLS (481H or 48DH)", registers.pin_based),
        ("IA32_VMX_PROCBASED_CTLS (482H or 48EH)", registers.primary),
        ("IA32_VMX_PROCBASED_CTLS2 (48BH)", registers.secondary),
        ("IA32_VMX_EXIT_CTLS (483H or 48FH)", registers.exit),
        ("IA32_VMX_ENTRY_CTLS (484H or 490H)", registers.entry),
        ("IA32_VMX_EPT_VPID_CAP (48CH)", registers.ept_vpid),
    ] {
        line(format_args!("{name}: {value:#018x}"));
    }
}

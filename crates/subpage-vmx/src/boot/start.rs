//! The start of the hypervisor, in order: memory, capabilities, guest, tables, processors.
//!
//! Unsafe because here memory is divided and handed to those who own it from then on.
#![allow(unsafe_code)]

use alloc::boxed::Box;
use core::ops::Range;

use spin::Once;
use subpage::address::PhysicalWidth;
use subpage::domain::{Domain, ProcessorUse};
use subpage::slots::AddressSpace;

use super::acpi::Tables;
use super::command_line::Options;
use super::guest::{self, Choice, Guest};
use super::guest_image::Entry;
use super::information::{Information, LARGEST_BLOCK, MAGIC, Module};
use super::layout;
use super::{MAX_PROCESSORS, fatal, firmware, others};
use crate::hypercall::Ledger;
use crate::machine::{Settings, Shared, VirtualMachine};
use crate::memory::Heap;
use crate::memory::frames::PhysicalFrames;
use crate::memory::window::Windows;
use crate::processor::control::{CR0_NE, CR4_VMXE};
use crate::processor::local_apic::LocalApic;
use crate::processor::{console, control, cpuid, interrupts, segments};
use crate::vcpu::setup;
use crate::vcpu::{Vcpu, context, vpid};
use crate::vmx::TableRoots;
use crate::vmx::controls::ENTRY_IA32E;
use crate::vmx::field::{ControlField, GuestField as G};
use crate::vmx::structure;
use subpage_emulate::bits::{CR0_PE, CR0_PG, CR0_WP, CR4_PAE, EFER_LMA, EFER_LME};
use subpage_emulate::guest::{Register, Segment};
use subpage_emulate::{CODE_BYTES, PagingFeatures, Trampoline};

/// Of the hypervisor's own memory, what the heap gets; the rest is table frames.
const HEAP_BYTES: u64 = layout::OWN_BYTES / 2;

/// What a bare-metal program brings to the start.
#[allow(missing_debug_implementations)]
pub struct Program {
    /// The image, zeroed memory included.
    pub image: Range<u64>,
    /// The heap.
    pub heap: &'static Heap,
    /// Starts the other processors; returns how many there are then.
    pub start_others: unsafe fn(LocalApic, Option<usize>) -> usize,
}

/// What processors that started later wait for.
struct Ready {
    machine: &'static VirtualMachine,
    windows: Windows,
    code: CodeBuffers,
}

// SAFETY: windows and code buffers are handed out once for each processor.
unsafe impl Sync for Ready {}
// SAFETY: likewise.
unsafe impl Send for Ready {}

static READY: Once<Ready> = Once::new();

/// Memory that trampolines execute from.
#[derive(Clone, Copy)]
struct CodeBuffers(*mut [u8; CODE_BYTES]);

/// Starts everything on the processor that came first, and runs its guest.
///
/// # Safety
/// Once, from the entry code: long mode, the first 4 GiB mapped to themselves, nothing in use but
/// the image; `magic` and `information` are what the boot loader left in EAX and EBX.
pub unsafe fn boot_processor(magic: u32, information: u32, program: &Program) -> ! {
    if magic != MAGIC {
        fatal(format_args!("not loaded by Multiboot2 (EAX is {magic:#x}, not {MAGIC:#x})"));
    }
    // SAFETY: by the contract the block is where EBX says, and nobody writes it.
    let block = unsafe { information_block(information) };
    let information_range = block.as_ptr_range();
    let information_range = information_range.start as u64..information_range.end as u64;
    let told = Information::read(block).unwrap_or_else(|error| fatal(format_args!("{error}")));
    let options =
        Options::parse(told.command_line).unwrap_or_else(|error| fatal(format_args!("{error}")));
    let choice = Choice::of(&told, &options, program.image.clone(), information_range);
    let own = choice.own();
    // SAFETY: the choice gives this memory to nobody else.
    unsafe { program.heap.give(own.start..own.start + HEAP_BYTES) };
    subpage_emulate::prepare();
    interrupts::install();
    // SAFETY: the first thing on this processor; the boot code's flat segments are in use.
    let bases = unsafe { segments::install(0) };
    // A guest that has the APIC finds it as the firmware left it.
    let apic = if choice.has_devices() { LocalApic::as_found() } else { LocalApic::enable() };
    let capabilities = structure::read_registers()
        .check()
        .unwrap_or_else(|missing| fatal(format_args!("{missing}")));
    let firmware = told.root_pointer.filter(|_| choice.has_devices());
    let firmware = firmware.and_then(|pointer| Tables::find(pointer, &firmware::memory));
    let listed = firmware.as_ref().and_then(Tables::processors);
    // SAFETY: nothing else uses the page at the trampoline's address.
    let start = |awaited| unsafe { (program.start_others)(apic, awaited) };
    let started = others::start(listed, options.processors, start);
    let processors = options.processors.unwrap_or(started);

    let width =
        PhysicalWidth::try_new(cpuid::physical_width().clamp(32, 52)).unwrap_or(PhysicalWidth::MAX);
    let sleep = firmware.as_ref().map(Tables::sleep).unwrap_or_default();
    // SAFETY: the choice gives the guest's memory to nobody else, and the others wait for READY.
    let guest = unsafe { choice.load(block, processors, width, &capabilities, &sleep) };
    let frames = own.start + HEAP_BYTES..own.end;
    // SAFETY: the choice gives this memory to nobody else.
    let frames = unsafe { PhysicalFrames::new(frames) }
        .unwrap_or_else(|error| fatal(format_args!("{error}")));
    let mut domain = Domain::new(frames, width);
    let spp = capabilities.sub_page_permissions && options.use_spp;
    let wanted = options.use_accessed_dirty.unwrap_or(!choice.has_devices());
    let accessed_dirty = capabilities.accessed_dirty && wanted;
    domain.set_processor_use(ProcessorUse {
        sub_page_permissions: spp,
        ept_accessed_dirty: accessed_dirty,
    });
    let (maps, waiting) = guest::prepare_domain(&mut domain, &told, &guest, capabilities.pages_2m);
    let Guest { ram, entry, devices, bitmaps } = guest;
    let (Some(ept), Some(sppt)) = (domain.ept(AddressSpace::Normal), domain.sppt()) else {
        fatal(format_args!("the guest has no memory mapped"));
    };
    let tables = TableRoots { ept: ept.root(), sppt: spp.then(|| sppt.root()), accessed_dirty };
    let ledger = Ledger::new(maps).unwrap_or_else(|error| fatal(format_args!("{error}")));
    let shared = Shared {
        domain,
        ledger,
        denied: options.denied,
        waiting,
        #[cfg(feature = "test-hooks")]
        hooks: crate::test_hooks::Hooks::default(),
    };
    let paging = PagingFeatures {
        physical_width: width,
        gigabyte_pages: cpuid::leaf(0x8000_0001, 0).edx & 1 << 26 != 0,
    };
    let settings = Settings { print_events: options.print_events };
    let machine = VirtualMachine::new(
        shared,
        ram,
        tables,
        capabilities,
        paging,
        devices,
        bitmaps,
        settings,
        processors,
        apic,
    );
    let machine: &'static VirtualMachine =
        Box::leak(Box::new(machine.unwrap_or_else(|error| fatal(format_args!("{error}")))));
    machine.publish();
    let how = if spp { "by the processor (SPP)" } else { "in software (no SPP)" };
    console::print_line(format_args!(
        "hypervisor: sub-pages are protected {how}; EPT flags {}; {processors} processors; guest has \
         {} MiB",
        if accessed_dirty { "on" } else { "off" },
        machine.ram.bytes() >> 20,
    ));
    if machine.devices.is_some() {
        console::print_line(format_args!(
            "hypervisor: devices are the guest's, and write to memory past all rules: VT-d is not used; {}",
            firmware::Remapping(firmware.and_then(|tables| tables.iommus()))
        ));
    }
    // SAFETY: other processors wait for READY and change nothing; the second entry of the boot
    // code's top table is free.
    let windows = unsafe { Windows::install() };
    let ready = READY.call_once(|| Ready { machine, windows, code: code_buffers() });
    if machine.devices.is_some() && started > processors {
        others::wait_until_held(started - processors);
    }
    run(ready, 0, &bases, apic, Some(&entry))
}

/// Starts another processor's guest.
///
/// # Safety
/// Once on each processor, from its entry code, with its number.
pub unsafe fn application_processor(index: usize) -> ! {
    let ready = loop {
        if let Some(ready) = READY.get() {
            break ready;
        }
        core::hint::spin_loop();
    };
    if index >= ready.machine.processors() {
        if ready.machine.devices.is_some() {
            others::hold(&ready.machine.capabilities, index);
        }
        loop {
            control::halt();
        }
    }
    // SAFETY: the first thing on this processor; the boot code's flat segments are in use.
    let bases = unsafe { segments::install(index) };
    let has_devices = ready.machine.devices.is_some();
    let apic = if has_devices { LocalApic::as_found() } else { LocalApic::enable() };
    run(ready, index, &bases, apic, None)
}

fn run(
    ready: &'static Ready,
    index: usize,
    bases: &segments::Bases,
    apic: LocalApic,
    entry: Option<&Entry>,
) -> ! {
    let machine = ready.machine;
    let idt = interrupts::install();
    machine.set_apic_id(index, apic.id());
    let capabilities = &machine.capabilities;
    let mut vmcs =
        structure::start(capabilities).unwrap_or_else(|error| fatal(format_args!("{error}")));
    // SAFETY: bases and IDT are this processor's, and the tables live as long as the machine.
    unsafe {
        setup::prepare(
            &mut vmcs,
            capabilities,
            bases,
            idt,
            &machine.tables,
            &machine.bitmaps,
            vpid(index),
            machine.devices.is_some(),
        );
    }
    // SAFETY: each processor comes here once.
    let window = unsafe { ready.windows.of(index) };
    let code = ready.code.0.wrapping_add(index);
    // SAFETY: each processor has a buffer of its own in memory that is writable and executable, and
    // no other processor uses it; the exception handler recovers there; SSE is on since the entry
    // code.
    let trampoline = unsafe { Trampoline::new(code) };
    let mut vcpu = Vcpu::new(machine, index, vmcs, window, trampoline);
    vcpu.reset(0);
    if let Some(entry) = entry {
        start_in_64_bit_mode(&mut vcpu, entry);
    }
    vcpu.run()
}

/// The state that [`crate::abi::BootInformation`] describes, or the boot protocol of Linux.
fn start_in_64_bit_mode(vcpu: &mut Vcpu, entry: &Entry) {
    const CR0_EXTENSION_TYPE: u64 = 1 << 4;
    const CR0_MP: u64 = 1 << 1;
    const CR4_OSFXSR_OSXMMEXCPT: u64 = 3 << 9;
    let cr0 = CR0_PE | CR0_MP | CR0_EXTENSION_TYPE | CR0_NE | CR0_WP | CR0_PG;
    let cr4 = CR4_PAE | CR4_OSFXSR_OSXMMEXCPT;
    let code = Segment { selector: entry.code, base: 0, limit: u32::MAX, access: 0xA09B };
    let data = Segment { selector: entry.data, base: 0, limit: u32::MAX, access: 0xC093 };
    for (number, fields) in setup::SEGMENT_FIELDS.into_iter().take(6).enumerate() {
        let segment = if number == 1 { &code } else { &data };
        setup::set_segment(&mut vcpu.vmcs, fields, segment);
    }
    for (field, value) in [
        (G::CR0, cr0),
        (G::CR0_SHADOW, cr0),
        (G::CR3, entry.cr3),
        (G::CR4, cr4 | CR4_VMXE),
        (G::CR4_SHADOW, cr4),
        (G::EFER, EFER_LME | EFER_LMA),
        (G::GDTR_BASE, entry.descriptors.0),
        (G::GDTR_LIMIT, entry.descriptors.1.into()),
        (G::IDTR_LIMIT, 0),
        (G::RSP, entry.rsp),
        (G::RIP, entry.rip),
    ] {
        vcpu.vmcs.set_guest(field, value);
    }
    let controls = vcpu.vmcs.control(ControlField::ENTRY) | u64::from(ENTRY_IA32E);
    // SAFETY: EFER says the same.
    unsafe { vcpu.vmcs.set_control(ControlField::ENTRY, controls) };
    vcpu.set_register(Register::Rdi, entry.information);
    vcpu.set_register(Register::Rsi, entry.information);
}

/// The Multiboot2 block.
///
/// # Safety
/// The memory at `address` is mapped, and nobody writes it.
pub(crate) unsafe fn information_block(address: u32) -> &'static [u8] {
    if address == 0 || !address.is_multiple_of(8) {
        fatal(format_args!("no Multiboot2 information at {address:#x}"));
    }
    let start = address as usize as *const u8;
    // SAFETY: by the contract; its first word is its size.
    let size = unsafe { start.cast::<u32>().read_unaligned() };
    if !(16..=LARGEST_BLOCK).contains(&size) {
        fatal(format_args!("the Multiboot2 information at {address:#x} claims {size} bytes"));
    }
    // SAFETY: by the contract; the size is believable.
    unsafe { core::slice::from_raw_parts(start, size as usize) }
}

/// The contents of a module; empty if it lies where nothing is mapped.
pub(crate) fn contents(module: &Module<'_>) -> &'static [u8] {
    let Range { start, end } = module.range;
    if start == 0 || end > layout::REACH {
        return &[];
    }
    let bytes = usize::try_from(end - start).expect("below 4 GiB");
    // SAFETY: the boot loader has put a file there, and the layout leaves it alone.
    unsafe { core::slice::from_raw_parts(start as *const u8, bytes) }
}

/// One page of memory for the code of all trampolines, known to the exception handler.
fn code_buffers() -> CodeBuffers {
    #[repr(C, align(4096))]
    struct Page([[u8; CODE_BYTES]; MAX_PROCESSORS]);
    let page = Box::leak(Box::new(Page([[0; CODE_BYTES]; MAX_PROCESSORS])));
    let buffers = page.0.as_mut_ptr();
    let start = buffers as usize;
    let resume = usize::try_from(Trampoline::recovery_address()).expect("64 bits");
    // SAFETY: that is what the trampoline's recovery address is for.
    unsafe { interrupts::recover(start, start + CODE_BYTES * MAX_PROCESSORS, resume) };
    // SAFETY: nothing of an entry has happened where that range ends, and the code behind it undoes
    // what has.
    unsafe { interrupts::cut_short(context::cut_short()) };
    CodeBuffers(buffers)
}

//! What runs, by the modules that the boot loader has brought: a small guest without devices
//! (`guest`), or a Linux kernel with those of the machine (`linux`).
//!
//! Unsafe because memory is handed to the guest.
#![allow(unsafe_code)]

use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use arrayvec::ArrayVec;
use subpage::address::{Gfn, GfnRange, Gpa, Hpa, PAGE_BYTES, PhysicalWidth};
use subpage::domain::{Domain, HostPage};
use subpage::ept::MemoryType;
use subpage::level::PageSize;
use subpage::slots::{AddressSpace, SlotFlags, SlotId};
use subpage_linux::names::{KernelNames, fingerprint};

use super::command_line::{Console, Options};
use super::guest_image::{self, Entry};
use super::information::{Information, Module};
use super::layout::{self, Layout};
use super::{fatal, start::contents};
use crate::devices::{Awaited, Devices, MOST_SLEEP, Own, SleepControl};
use crate::linux;
use crate::memory::frames::PhysicalFrames;
use crate::memory::ram::GuestRam;
use crate::memory::reach;
use crate::policy::{self, HostMaps, Waiting};
use crate::processor::{console, memory_types};
use crate::vmx::{Bitmaps, Capabilities};

const SPACE: AddressSpace = AddressSpace::Normal;

/// What runs, and where everything goes.
#[allow(clippy::large_enum_variant)] // There is one, and no heap yet.
pub(super) enum Choice {
    Small(Layout),
    Linux(linux::Plan),
}

/// A guest in its memory, before its tables are built.
pub(super) struct Guest {
    pub(super) ram: GuestRam,
    pub(super) entry: Entry,
    pub(super) devices: Option<Devices>,
    pub(super) bitmaps: Bitmaps,
}

impl Choice {
    /// Looks at the modules and divides memory; `program` is the hypervisor's image, `block` the boot
    /// loader's information. Takes no memory.
    pub(super) fn of(
        told: &Information<'_>,
        options: &Options<'_>,
        program: Range<u64>,
        block: Range<u64>,
    ) -> Self {
        let Some(module) = told.modules.iter().find(|module| module.name == "linux") else {
            return Self::Small(divide(told, options, program, block));
        };
        if told.modules.iter().any(|module| module.name == "guest") {
            fatal(format_args!("there are modules \"linux\" and \"guest\": one guest can run"));
        }
        if options.memory.is_some() {
            fatal(format_args!(
                "memory= is for a guest without devices; a Linux kernel takes mem="
            ));
        }
        if options.console == Some(Console::Com1) {
            fatal(format_args!("COM1 is the Linux kernel's; console= takes com2 or e9"));
        }
        let plan = linux::plan(told, module, contents(module), program, block);
        Self::Linux(plan.unwrap_or_else(|error| fatal(format_args!("{error}"))))
    }

    /// Memory of the hypervisor.
    pub(super) fn own(&self) -> Range<u64> {
        match self {
            Self::Small(layout) => layout.own.clone(),
            Self::Linux(plan) => plan.places.own.clone(),
        }
    }

    pub(super) const fn has_devices(&self) -> bool {
        matches!(self, Self::Linux(_))
    }

    /// Puts the guest into its memory; `sleep` is where the machine is suspended.
    ///
    /// # Safety
    /// Nobody else uses the memory that is the guest's by this choice; only one processor runs.
    pub(super) unsafe fn load(
        &self,
        block: &[u8],
        processors: usize,
        width: PhysicalWidth,
        capabilities: &Capabilities,
        sleep: &ArrayVec<SleepControl, MOST_SLEEP>,
    ) -> Guest {
        // What the guest is told from: for a kernel a copy, since it may go where the original is.
        let copy = Vec::from(block);
        let told = Information::read(&copy).unwrap_or_else(|error| fatal(format_args!("{error}")));
        let options = Options::parse(told.command_line);
        let options = options.unwrap_or_else(|error| fatal(format_args!("{error}")));
        match self {
            Self::Small(layout) => {
                // SAFETY: by the contract.
                let ram = unsafe { clear(&layout.guest) };
                let entry = load_small(&told, &options, &ram, processors);
                Guest { ram, entry, devices: None, bitmaps: Bitmaps::new() }
            }
            Self::Linux(plan) => {
                // SAFETY: by the contract.
                unsafe { load_linux(plan, &told, &options, width, capabilities, sleep) }
            }
        }
    }
}

fn divide(
    told: &Information<'_>,
    options: &Options<'_>,
    program: Range<u64>,
    block: Range<u64>,
) -> Layout {
    let mut taken = ArrayVec::<Range<u64>, 40>::new();
    taken.extend([program, block]);
    taken.extend(told.modules.iter().map(|module| module.range.clone()));
    layout::divide(&told.memory, &taken, options.memory)
        .unwrap_or_else(|error| fatal(format_args!("{error}")))
}

/// Fills the guest's memory with zeros.
///
/// # Safety
/// Nobody else uses the memory.
unsafe fn clear(memory: &Range<u64>) -> GuestRam {
    let bytes = usize::try_from(memory.end - memory.start).expect("below 4 GiB");
    let start = memory.start as *mut u8;
    // SAFETY: by the contract; the range is mapped.
    unsafe { start.write_bytes(0, bytes) };
    // SAFETY: by the contract.
    unsafe { GuestRam::new(memory.clone()) }
}

fn load_small(
    told: &Information<'_>,
    options: &Options<'_>,
    ram: &GuestRam,
    processors: usize,
) -> Entry {
    let Some(module) = told.modules.iter().find(|module| module.name == "guest") else {
        fatal(format_args!("no Multiboot2 module is named \"guest\" or \"linux\""));
    };
    #[allow(clippy::cast_possible_truncation)] // At most 16.
    let processors = processors as u32;
    guest_image::load(ram, ram.bytes(), contents(module), options.guest, processors)
        .unwrap_or_else(|error| fatal(format_args!("{error}")))
}

/// # Safety
/// As for [`Choice::load`]; `told` is a copy.
unsafe fn load_linux(
    plan: &linux::Plan,
    told: &Information<'_>,
    options: &Options<'_>,
    width: PhysicalWidth,
    capabilities: &Capabilities,
    sleep: &ArrayVec<SleepControl, MOST_SLEEP>,
) -> Guest {
    let policy = policy_module(told).map_or_else(Vec::new, |module| {
        let module = contents(module);
        // One that is too long is not copied, and still refused for its length.
        if module.len() > policy::MAX_BYTES {
            fatal(format_args!("{}", policy::PolicyError::TooLong { bytes: module.len() }));
        }
        let mut copy = Vec::new();
        if copy.try_reserve_exact(module.len()).is_err() {
            fatal(format_args!("{}", policy::PolicyError::OutOfMemory));
        }
        copy.extend_from_slice(module);
        copy
    });
    let names = names(told);
    let command_line = String::from(options.guest);
    // SAFETY: by the contract; what is told and the policy are copies.
    let linux = unsafe { linux::load(plan, told, policy, &command_line, width) }
        .unwrap_or_else(|error| fatal(format_args!("{error}")));
    let end = linux.memory.iter().map(|run| run.end).max().unwrap_or(0);
    // SAFETY: by the contract; the boot code has mapped the first 4 GiB.
    let reached = unsafe { reach::extend(end) };
    assert!(end <= reached, "the kernel's memory ends before {:#x}", reach::END);
    let runs = linux.memory.iter().cloned().collect();
    let uart = match options.console {
        Some(Console::Com2) => Some(console::COM2),
        _ => None,
    };
    let mut devices =
        Devices::new(linux.own, memory_types::read(), addresses_end(width), capabilities.pages_2m);
    devices.names = names;
    devices.ports = Own { uart, sleep: sleep.clone() };
    let bitmaps = Bitmaps::of_devices(&devices.ports);
    let awaited = Awaited { page: linux.kernel_at.gfn(), policy: linux.policy };
    *devices.awaited.lock() = Some(awaited);
    console::use_uart(uart);
    Guest {
        // SAFETY: usable memory that nobody else uses from here on, mapped at its addresses.
        ram: unsafe { GuestRam::in_place(runs) },
        entry: linux.entry,
        devices: Some(devices),
        bitmaps,
    }
}

/// A copy of the names of the kernel, which must be those of the image that is started.
fn names(told: &Information<'_>) -> Option<KernelNames<'static>> {
    let module = |name| told.modules.iter().find(|module| module.name == name).map(contents);
    let bytes = module("names")?;
    let unfit = |reason: &dyn core::fmt::Display| -> ! {
        fatal(format_args!("the module \"names\" cannot be used: {reason}"))
    };
    // Before anything is copied.
    let read = KernelNames::read(bytes).unwrap_or_else(|error| unfit(&error));
    if !read.are_of(fingerprint(module("linux").unwrap_or_default())) {
        unfit(
            &"it is of another kernel; give `subpage compile` the file that is started as `--symbols`",
        );
    }
    let mut copy = Vec::new();
    if copy.try_reserve_exact(bytes.len()).is_err() {
        unfit(&"there is no memory for it");
    }
    copy.extend_from_slice(bytes);
    KernelNames::read(copy.leak()).ok()
}

/// Four levels of EPT translate 48 bits.
const fn addresses_end(width: PhysicalWidth) -> Gfn {
    let bits = if width.bits() < 48 { width.bits() } else { 48 };
    Gfn::new(1 << (bits - PAGE_BYTES.trailing_zeros()))
}

fn policy_module<'a, 'b>(told: &'b Information<'a>) -> Option<&'b Module<'a>> {
    told.modules.iter().find(|module| module.name == "policy")
}

/// Enables permissions, adds the guest's memory as slot 0, takes the policy, maps what is mapped from
/// the start.
pub(super) fn prepare_domain(
    domain: &mut Domain<PhysicalFrames>,
    told: &Information<'_>,
    guest: &Guest,
    pages_2m: bool,
) -> (HostMaps, Option<Waiting>) {
    let or_stop = |error| fatal(format_args!("cannot build the guest's tables: {error}"));
    domain.enable().unwrap_or_else(or_stop);
    let count = match &guest.devices {
        Some(devices) => devices.end().as_u64(),
        None => guest.ram.bytes() / PAGE_BYTES,
    };
    let pages = GfnRange::new(Gfn::new(0), count);
    let pages = pages.unwrap_or_else(|error| fatal(format_args!("{error}")));
    domain.add_slot(SPACE, SlotId(0), pages, SlotFlags::default()).unwrap_or_else(or_stop);
    if let Some(devices) = &guest.devices {
        await_kernel(domain, devices);
        return (HostMaps::default(), None);
    }
    let (mut maps, mut waiting) = (HostMaps::default(), None);
    if let Some(module) = policy_module(told) {
        let (policy, token) = policy::load(domain, contents(module))
            .unwrap_or_else(|error| fatal(format_args!("{error}")));
        // No processor walks the tables yet.
        domain.finish(&token.without_processors());
        console::print_line(format_args!("hypervisor: {policy}"));
        (maps, waiting) = (policy.maps, policy.waiting);
    }
    let size = if pages_2m { PageSize::Size2M } else { PageSize::Size4K };
    let mut gfn = Gfn::new(0);
    while gfn <= pages.last() {
        let hpa = guest.ram.host(Gpa::new(gfn.as_u64() * PAGE_BYTES)).expect("within the memory");
        let memory_type = MemoryType::WriteBack;
        let page = HostPage { hpa, size, writable: true, executable: true, memory_type };
        domain.map(SPACE, gfn, page).unwrap_or_else(or_stop);
        gfn = Gfn::new(gfn.as_u64() + size.frames());
    }
    (maps, waiting)
}

/// Maps the page in which the kernel begins, which its loader fills, so that its first instruction
/// exits. Everything else is mapped when the guest first goes there.
fn await_kernel(domain: &mut Domain<PhysicalFrames>, devices: &Devices) {
    let page = devices.awaited.lock().as_ref().map(|awaited| awaited.page);
    let page = page.expect("a kernel has just been loaded");
    let host = HostPage {
        hpa: Hpa::new(page.gpa().as_u64()),
        size: PageSize::Size4K,
        writable: true,
        executable: false,
        memory_type: devices.memory_type(page),
    };
    if let Err(error) = domain.map(SPACE, page, host) {
        fatal(format_args!("cannot build the guest's tables: {error}"));
    }
}

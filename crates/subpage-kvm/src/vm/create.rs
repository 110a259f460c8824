//! Making a virtual machine.
//!
//! Unsafe because a processor's byte for leaving the guest is kept beside the processor.
#![allow(unsafe_code)]

use std::io::{self, Write};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_MAX_CPUID_ENTRIES,
    KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_pit_config,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction};
use subpage::slots::SlotId;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::hold::Holds;
use super::{PausableVcpus, Vm, VmError, VmShared, kick_signal};
use crate::boot::MAX_PROCESSORS;
use crate::devices::Ports;
use crate::ending::EndingCell;
use crate::event::Broadcast;
use crate::guard::Guard;
use crate::memory::{MemoryAlias, Ram};
use crate::metrics::{Clock, Metrics};
use crate::snapshot::Features;
use crate::step::{PageTables, Stepping};
use crate::store::Recorder;
use crate::trap::{RamSlots, Slots, TrapBy, TrapError, Traps};
use crate::vcpu::{FeatureChoice, Kick, Processor, clock, cpuid};
use crate::vm::watch::Watch;

/// Pages below 4 GiB that KVM takes for itself on Intel processors: they must not be memory.
const IDENTITY_MAP: u64 = 0xfffb_c000;
const TASK_STATE: usize = 0xfffb_d000;

/// Interrupt line of the first serial port.
const SERIAL_LINE: u32 = 4;

/// How pages are to be made to trap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrapChoice {
    /// By `mprotect`; where KVM emulates the guest's kernel, by slots for one processor.
    #[default]
    Auto,
    /// By read-only slots where KVM emulates the guest's kernel, else by `mprotect`; for several processors
    /// slots are not exact for locked instructions.
    Slots,
    /// By a host mapping that is read-only by `mprotect`.
    Mprotect,
}

/// What a virtual machine has.
#[derive(Debug, Clone)]
pub struct Configuration {
    /// Virtual processors, 1 to [`MAX_PROCESSORS`].
    pub cpus: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Memory that the guest finds at a second address, too.
    pub alias: Option<MemoryAlias>,
    /// How pages are made to trap.
    pub trap: TrapChoice,
    /// What becomes of page tables in pages that trap, where a walk of them counts as a write.
    pub page_tables: PageTables,
    /// Most memory slots to use; none for as many as KVM has.
    pub slots: Option<usize>,
    /// Features of the processor that the guest must find or must not.
    pub features: FeatureChoice,
    /// A reset that the guest asks for starts it again; otherwise it ends it.
    pub reboots: bool,
}

impl Default for Configuration {
    /// One processor and 128 MiB; resets end the guest.
    fn default() -> Self {
        Self {
            cpus: 1,
            memory: 128 << 20,
            alias: None,
            trap: TrapChoice::Auto,
            page_tables: PageTables::Step,
            slots: None,
            features: FeatureChoice::default(),
            reboots: false,
        }
    }
}

impl Vm {
    /// Makes a machine without a guest. What its serial port sends goes to `serial`.
    pub fn new(
        configuration: &Configuration,
        serial: Box<dyn Write + Send>,
    ) -> Result<Self, VmError> {
        open()?;
        if !configuration.features.is_empty() {
            crate::probe::finds(&configuration.features)?;
        }
        Self::create(configuration, serial, crate::probe::is_native())
    }

    /// The same, where it is known how this KVM runs a guest's kernel.
    pub(crate) fn create(
        configuration: &Configuration,
        serial: Box<dyn Write + Send>,
        native: bool,
    ) -> Result<Self, VmError> {
        let kvm = open()?;
        let failed = |what| move |error| VmError::Kvm { what, error };
        let most = u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX).min(MAX_PROCESSORS);
        if !(1..=most).contains(&configuration.cpus) {
            return Err(VmError::Processors { cpus: configuration.cpus, most });
        }
        let ram = Ram::with_alias(configuration.memory, configuration.alias)?;
        let vm = Arc::new(kvm.create_vm().map_err(failed("make a virtual machine"))?);
        vm.set_identity_map_address(IDENTITY_MAP).map_err(failed("place its identity map"))?;
        vm.set_tss_address(TASK_STATE).map_err(failed("place its task state"))?;
        vm.create_irq_chip().map_err(failed("make an interrupt controller"))?;
        // Older kernels do not know it: the guest then gets #UD for what KVM's emulator does not know.
        let tell = kvm_enable_cap {
            cap: KVM_CAP_EXIT_ON_EMULATION_FAILURE,
            args: [1, 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        let _ = vm.enable_cap(&tell);
        let timer = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
        vm.create_pit2(timer).map_err(failed("make a timer"))?;
        let line = EventFd::new(EFD_NONBLOCK).map_err(VmError::Thread)?;
        vm.register_irqfd(&line, SERIAL_LINE).map_err(failed("connect the serial port"))?;
        let ports = Ports::new(serial, line, ram.bytes());
        let has_clock = clock::take_over(&vm);
        let mut supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(failed("tell the processor's features"))?;
        cpuid::complete(&mut supported, vm.check_extension(Cap::TscDeadlineTimer), has_clock);
        let guard = guard(&vm, &ram, &supported, configuration, native)?;
        // The processor's own walks do not ask CPUID.
        let paging = cpuid::paging_features(&supported);
        let (supported, feature_choice) = choose(supported, configuration, native);
        let features = Features::of(&cpuid::for_guest(&supported, 0, configuration.cpus));
        let mut processors = Vec::new();
        for number in 0..configuration.cpus {
            let cpuid = cpuid::for_guest(&supported, number, configuration.cpus);
            let mut processor = Processor::new(&vm, number, &cpuid)?;
            if guard.traps().by() == TrapBy::Mprotect {
                processor.exchange_registers(&vm);
            }
            // SAFETY: `PausableVcpus` keeps the byte beside the processor, and both go together.
            let kick = unsafe { Kick::new(&mut processor.fd) };
            processors.push((processor, kick));
        }
        let khz = processors[0].0.fd.get_tsc_khz().ok();
        let msrs = kvm.get_msr_index_list().map_err(failed("list the registers to save"))?;
        let broadcast = Arc::new(Broadcast::new());
        let metrics = Arc::new(Metrics::new(Arc::clone(&broadcast)));
        let msrs = msrs.as_slice().to_vec();
        catch_kicks();
        subpage_emulate::prepare();
        Ok(Self {
            machine: Arc::new(VmShared {
                vm,
                paging,
                guard: Mutex::new(guard),
                ports: Mutex::new(ports),
                events: Recorder::new(broadcast, Arc::clone(&metrics)),
                metrics,
                clock: Clock::new(khz),
                msrs,
                features,
                feature_choice,
                watch: Watch::new(processors.len()),
                holds: Holds::default(),
                placed: Mutex::default(),
                debuggers: Mutex::default(),
                watches: AtomicBool::new(false),
                vcpus: PausableVcpus::new(processors),
                ending: EndingCell::default(),
                start: Mutex::new(None),
                kernel_slide: OnceLock::new(),
                waiting: Mutex::default(),
                reboots: configuration.reboots,
                native,
                stepping: Stepping::new(configuration.page_tables),
                ram,
            }),
            threads: Vec::new(),
        })
    }
}

/// Opens KVM and checks that it has all that this program cannot do without.
pub(crate) fn open() -> Result<Kvm, VmError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => VmError::NoKvm,
        libc::EACCES | libc::EPERM => VmError::NoPermission,
        _ => VmError::Open(error),
    })?;
    let version = kvm.get_api_version();
    if u32::try_from(version) != Ok(KVM_API_VERSION) {
        return Err(VmError::ApiVersion(version));
    }
    for (capability, name) in [
        (Cap::UserMemory, "memory slots (KVM_CAP_USER_MEMORY)"),
        (Cap::ImmediateExit, "leaving the guest at once (KVM_CAP_IMMEDIATE_EXIT, kernel 4.11)"),
        (Cap::Irqchip, "an interrupt controller (KVM_CAP_IRQCHIP)"),
        (Cap::Irqfd, "interrupts by event descriptors (KVM_CAP_IRQFD)"),
        (Cap::Pit2, "a timer (KVM_CAP_PIT2)"),
        (Cap::ExtCpuid, "CPUID (KVM_CAP_EXT_CPUID)"),
        (Cap::VcpuEvents, "a processor's events (KVM_CAP_VCPU_EVENTS)"),
        (Cap::Xsave, "extended state (KVM_CAP_XSAVE)"),
    ] {
        if !kvm.check_extension(capability) {
            return Err(VmError::Missing(name));
        }
    }
    Ok(kvm)
}

/// What KVM offers without what is left out, and what that is.
fn choose(
    mut supported: CpuId,
    configuration: &Configuration,
    native: bool,
) -> (CpuId, FeatureChoice) {
    let mut choice = configuration.features.clone();
    if !native {
        // KVM's emulator does not know CMPXCHG16B, which kernels use where they find it.
        choice.rather_without("cx16");
    }
    choice.apply(&mut supported);
    (supported, choice)
}

fn guard(
    vm: &Arc<VmFd>,
    ram: &Ram,
    supported: &CpuId,
    configuration: &Configuration,
    native: bool,
) -> Result<Guard, VmError> {
    let has = usize::try_from(vm.check_extension_int(Cap::NrMemslots)).unwrap_or(32);
    let limit = configuration.slots.map_or(has, |slots| slots.min(has));
    let slots =
        RamSlots::lay_out(Slots::new(Arc::clone(vm), limit), ram).map_err(TrapError::from)?;
    let by = match configuration.trap {
        // Where the processor runs the guest's kernel, KVM emulates whatever instruction meets a
        // read-only slot, also by a walk of page tables or by pushing an event's frame, and takes the
        // address of the entry or frame for that of the operand. By mprotect there is no such case.
        TrapChoice::Slots if native => TrapBy::Mprotect,
        TrapChoice::Slots => TrapBy::Slots,
        TrapChoice::Auto
            if !native && configuration.cpus == 1 && vm.check_extension(Cap::ReadonlyMem) =>
        {
            TrapBy::Slots
        }
        TrapChoice::Auto | TrapChoice::Mprotect => TrapBy::Mprotect,
    };
    let splits_at_page_end = by == TrapBy::Slots || !native;
    let width = cpuid::paging_features(supported).physical_width;
    let mut guard = Guard::new(width, Traps::new(by, Box::new(slots)), splits_at_page_end)?;
    for (number, region) in (0..).zip(ram.mapped()) {
        let id = SlotId(number);
        match ram.alias().filter(|alias| alias.pages == region.pages) {
            None => guard.add_memory(id, region.pages)?,
            Some(MemoryAlias { pages, original }) => guard.add_alias(id, pages, original)?,
        }
    }
    Ok(guard)
}

/// Lets the signal that gets processors out of the guest do nothing else.
fn catch_kicks() {
    extern "C" fn nothing(_: i32) {}
    // Without SA_RESTART: KVM_RUN is to return.
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    let _ = unsafe { sigaction(kick_signal(), &action) }.expect("a signal of this process");
}

/// Where the output of a guest's serial port goes that nobody wants.
pub fn nowhere() -> Box<dyn Write + Send> {
    Box::new(io::sink())
}

//! One processor's file, and what is asked of it.
//!
//! Unsafe because extended state is handed to KVM by pointer.
#![allow(unsafe_code)]

use kvm_bindings::{
    KVM_CAP_ENFORCE_PV_FEATURE_CPUID, KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_UNINITIALIZED, Msrs, kvm_debugregs, kvm_enable_cap, kvm_guest_debug, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xsave,
};
use kvm_ioctls::{Cap, VcpuExit, VcpuFd, VmFd};
use subpage_emulate::bits::RFLAGS_IF;
use subpage_emulate::guest::State;
use subpage_emulate::{DecodeCache, SystemTables, XsaveArea};
use thiserror::Error;

use super::clock::ClockRegisters;
use super::exchange::Exchange;
use super::registers;
use super::trampoline::OwnTrampoline;

/// A request to KVM about a processor failed.
#[derive(Debug, Clone, Copy, Error)]
#[error("KVM cannot {what} of processor {number}: {error}")]
pub struct ProcessorError {
    /// What was asked, as the end of a sentence.
    pub what: &'static str,
    /// Which processor.
    pub number: u32,
    /// What the kernel says.
    pub error: vmm_sys_util::errno::Error,
}

/// A virtual processor. Its holder may use it: its thread while it runs, others while
/// the machine is paused.
pub struct Processor {
    /// KVM's file.
    pub fd: VcpuFd,
    /// 0 is the one that boots.
    pub number: u32,
    /// Instructions that trapped lately.
    pub decode_cache: DecodeCache,
    /// Where substitutes of its instructions are executed.
    pub trampoline: OwnTrampoline,
    /// Components of extended state that both the guest and this host may have.
    pub xstate: u64,
    /// RIP and how often the processor was found there without having gone on.
    pub stuck: Stuck,
    /// The last exit was a piece of a store that may continue.
    pub store_may_go_on: bool,
    /// The guard knows of such a store.
    pub in_pieces: bool,
    /// Where the watch found it last.
    seen_at: Option<u64>,
    /// Its time-stamp counter can run at another rate than the host's.
    pub scales_time: bool,
    /// What the guest has asked for by the MSRs of its clock.
    pub clock: ClockRegisters,
    /// What ends its stays in the guest for a debugger.
    pub debugging: kvm_guest_debug,
    /// Whether registers go through the page that it shares with KVM.
    pub(super) exchange: Exchange,
}

/// What a processor does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// It executes instructions.
    Running,
    /// It has halted until an interrupt comes.
    Waiting,
    /// Nothing can wake it any more: halted with interrupts off, or never started.
    Halted,
}

/// How often a processor came back to the same place for the same reason.
#[derive(Debug, Default)]
pub struct Stuck {
    rip: u64,
    changes: u64,
    times: u32,
}

impl Stuck {
    /// Counts a visit to `rip`; 1 the first time in a row, and the first time after what traps has
    /// changed, by the count of [`changes`](crate::trap::Traps::changes).
    pub fn visit(&mut self, rip: u64, changes: u64) -> u32 {
        if (self.rip, self.changes) != (rip, changes) {
            *self = Self { rip, changes, times: 0 };
        }
        self.times = self.times.saturating_add(1);
        self.times
    }

    /// The processor has gone on.
    pub fn reset(&mut self) {
        self.times = 0;
    }
}

/// A processor where an exit left it.
#[derive(Debug, Clone, Copy)]
pub struct Interrupted {
    /// Registers.
    pub state: State,
    /// Registers of the system, for SGDT and its kin, and for events.
    pub tables: SystemTables,
}

impl Interrupted {
    pub(super) fn of(registers: &kvm_regs, special: &kvm_sregs) -> Self {
        Self {
            state: registers::state(registers, special),
            tables: registers::system_tables(special),
        }
    }
}

impl Processor {
    /// Makes the processor with a number and tells the guest's CPUID.
    pub fn new(
        vm: &VmFd,
        number: u32,
        cpuid: &kvm_bindings::CpuId,
    ) -> Result<Self, ProcessorError> {
        let failed = |what| move |error| ProcessorError { what, number, error };
        let fd = vm.create_vcpu(number.into()).map_err(failed("make the file"))?;
        fd.set_cpuid2(cpuid).map_err(failed("set the features"))?;
        Ok(Self::of(vm, fd, number))
    }

    /// The processor of that number, which has been made.
    pub fn of(vm: &VmFd, fd: VcpuFd, number: u32) -> Self {
        // KVM's own writes to guest memory for the guest's convenience ask nobody: without the
        // feature bits, which are gone from CPUID, it then refuses them. Older kernels cannot.
        let enforce = kvm_enable_cap {
            cap: KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
            args: [1, 0, 0, 0],
            ..kvm_enable_cap::default()
        };
        let _ = fd.enable_cap(&enforce);
        Self {
            fd,
            number,
            decode_cache: DecodeCache::default(),
            trampoline: OwnTrampoline::new(),
            xstate: super::trampoline::components(),
            stuck: Stuck::default(),
            store_may_go_on: false,
            in_pieces: false,
            seen_at: None,
            scales_time: vm.check_extension(Cap::TscControl),
            clock: ClockRegisters::default(),
            debugging: kvm_guest_debug::default(),
            exchange: Exchange::Off,
        }
    }

    fn failed(&self, what: &'static str) -> impl Fn(vmm_sys_util::errno::Error) -> ProcessorError {
        let number = self.number;
        move |error| ProcessorError { what, number, error }
    }

    /// Sets the registers with which it starts.
    pub fn start_at(
        &self,
        registers: &kvm_regs,
        special: impl FnOnce(kvm_sregs) -> kvm_sregs,
    ) -> Result<(), ProcessorError> {
        let from = self.fd.get_sregs().map_err(self.failed("read the system registers"))?;
        self.fd.set_sregs(&special(from)).map_err(self.failed("set the system registers"))?;
        self.fd.set_regs(registers).map_err(self.failed("set the registers"))
    }

    /// Lets it wait for a start-up interrupt, as processors other than the first do.
    pub fn wait_for_start_up(&self) -> Result<(), ProcessorError> {
        self.fd
            .set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_UNINITIALIZED })
            .map_err(self.failed("set the activity state"))
    }

    /// Reads where it is.
    pub fn interrupted(&self) -> Result<Interrupted, ProcessorError> {
        let registers = self.fd.get_regs().map_err(self.failed("read the registers"))?;
        let special = self.fd.get_sregs().map_err(self.failed("read the system registers"))?;
        Ok(Interrupted::of(&registers, &special))
    }

    /// Registers by their names, in lower case, for people who look at it.
    pub fn named_registers(&self) -> Result<Vec<(String, u64)>, ProcessorError> {
        let r = self.fd.get_regs().map_err(self.failed("read the registers"))?;
        let s = self.fd.get_sregs().map_err(self.failed("read the system registers"))?;
        let named = [
            ("rip", r.rip),
            ("rflags", r.rflags),
            ("rax", r.rax),
            ("rbx", r.rbx),
            ("rcx", r.rcx),
            ("rdx", r.rdx),
            ("rsi", r.rsi),
            ("rdi", r.rdi),
            ("rbp", r.rbp),
            ("rsp", r.rsp),
            ("r8", r.r8),
            ("r9", r.r9),
            ("r10", r.r10),
            ("r11", r.r11),
            ("r12", r.r12),
            ("r13", r.r13),
            ("r14", r.r14),
            ("r15", r.r15),
            ("cr0", s.cr0),
            ("cr2", s.cr2),
            ("cr3", s.cr3),
            ("cr4", s.cr4),
            ("efer", s.efer),
            ("cs", s.cs.selector.into()),
            ("ss", s.ss.selector.into()),
            ("ds", s.ds.selector.into()),
            ("es", s.es.selector.into()),
            ("fs", s.fs.selector.into()),
            ("gs", s.gs.selector.into()),
            ("fs_base", s.fs.base),
            ("gs_base", s.gs.base),
            ("gdtr", s.gdt.base),
            ("idtr", s.idt.base),
        ];
        Ok(named.map(|(name, value)| (name.to_owned(), value)).to_vec())
    }

    /// Sets the general registers, RIP and RFLAGS of `after`.
    pub fn go_on(&self, after: &State) -> Result<(), ProcessorError> {
        self.set_general(&registers::general(after))
    }

    pub(super) fn set_general(&self, to: &kvm_regs) -> Result<(), ProcessorError> {
        self.fd.set_regs(to).map_err(self.failed("set the registers"))
    }

    /// The same, and CS and SS of `after`.
    pub fn go_on_with_segments(&self, after: &State) -> Result<(), ProcessorError> {
        self.change_special(|special| {
            special.cs = registers::kvm_segment_of(&after.segments.cs);
            special.ss = registers::kvm_segment_of(&after.segments.ss);
        })?;
        self.go_on(after)
    }

    fn change_special(&self, change: impl FnOnce(&mut kvm_sregs)) -> Result<(), ProcessorError> {
        let read = self.fd.get_sregs().map_err(self.failed("read the system registers"));
        let mut special = read?;
        change(&mut special);
        // Pending external interrupts are given back with the events.
        special.interrupt_bitmap = [0; 4];
        self.fd.set_sregs(&special).map_err(self.failed("set the system registers"))
    }

    /// Events that KVM is delivering or has pending.
    pub fn events(&self) -> Result<kvm_vcpu_events, ProcessorError> {
        self.fd.get_vcpu_events().map_err(self.failed("read the events"))
    }

    /// Sets the events.
    pub fn set_events(&self, events: &kvm_vcpu_events) -> Result<(), ProcessorError> {
        self.fd.set_vcpu_events(events).map_err(self.failed("set the events"))
    }

    /// The debug registers.
    pub fn debug_registers(&self) -> Result<kvm_debugregs, ProcessorError> {
        self.fd.get_debug_regs().map_err(self.failed("read the debug registers"))
    }

    /// Sets the debug registers.
    pub fn set_debug_registers(&self, to: &kvm_debugregs) -> Result<(), ProcessorError> {
        self.fd.set_debug_regs(to).map_err(self.failed("set the debug registers"))
    }

    /// Sets what ends a stay in the guest for debugging.
    pub fn set_guest_debug(&self, to: &kvm_guest_debug) -> Result<(), ProcessorError> {
        self.fd.set_guest_debug(to).map_err(self.failed("set the guest's debugging"))
    }

    /// A model-specific register.
    pub fn msr(&self, index: u32) -> Result<u64, ProcessorError> {
        let wanted = kvm_msr_entry { index, ..kvm_msr_entry::default() };
        let mut msrs = Msrs::from_entries(&[wanted]).expect("one register");
        self.fd.get_msrs(&mut msrs).map_err(self.failed("read a model-specific register"))?;
        Ok(msrs.as_slice()[0].data)
    }

    /// Sets CR2.
    pub fn set_page_fault_address(&self, address: u64) -> Result<(), ProcessorError> {
        self.change_special(|special| special.cr2 = address)
    }

    /// The suberror of the exit `KVM_EXIT_INTERNAL_ERROR` that has just happened.
    pub fn internal_error(&mut self) -> u32 {
        // SAFETY: a plain number; of this exit, KVM has filled in this part of the union.
        unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror }
    }

    /// What the processor does when it is not out of the guest.
    pub fn activity(&self, at: &Interrupted) -> Result<Activity, ProcessorError> {
        let activity = self.fd.get_mp_state().map_err(self.failed("read the activity state"))?;
        Ok(match activity.mp_state {
            KVM_MP_STATE_RUNNABLE => Activity::Running,
            KVM_MP_STATE_HALTED if at.state.rflags & RFLAGS_IF == 0 => Activity::Halted,
            KVM_MP_STATE_UNINITIALIZED => Activity::Halted,
            _ => Activity::Waiting,
        })
    }

    /// Completes what is pending of the last exit, without entering the guest; what else came of it.
    pub fn complete_exit(&mut self) -> Result<(), String> {
        self.fd.set_kvm_immediate_exit(1);
        let result = match self.fd.run() {
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Ok(()),
            Ok(VcpuExit::Intr) => Ok(()),
            other => Err(format!("{other:?}")),
        };
        self.fd.set_kvm_immediate_exit(0);
        result
    }

    /// Whether the watch has found the processor at the same place the last time.
    pub fn found_again(&mut self, rip: u64) -> bool {
        self.seen_at.replace(rip) == Some(rip)
    }

    /// The guest's XCR0.
    pub fn xcr0(&self) -> Result<u64, ProcessorError> {
        let registers = self.fd.get_xcrs().map_err(self.failed("read XCR0"))?;
        let first = registers.xcrs.iter().take(registers.nr_xcrs as usize);
        // x87 is always enabled.
        Ok(first.into_iter().find(|register| register.xcr == 0).map_or(1, |it| it.value))
    }

    /// The extended state in the format of XSAVE.
    pub fn extended(&self) -> Result<Box<XsaveArea>, ProcessorError> {
        let from = self.fd.get_xsave().map_err(self.failed("read the extended state"))?;
        let mut area = Box::new(XsaveArea::INITIAL);
        for (to, word) in area.0.chunks_exact_mut(4).zip(from.region) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        Ok(area)
    }

    /// Sets the extended state.
    pub fn set_extended(&self, area: &XsaveArea) -> Result<(), ProcessorError> {
        let mut to = kvm_xsave::default();
        let mut area = *area;
        // KVM takes MXCSR only with a component that says that it is in use.
        area.keep_mxcsr();
        for (word, from) in to.region.iter_mut().zip(area.0.chunks_exact(4)) {
            *word = u32::from_le_bytes(from.try_into().expect("four bytes"));
        }
        // SAFETY: no state beyond the 4096 bytes was asked for by arch_prctl: AMX is not offered.
        unsafe { self.fd.set_xsave(&to) }.map_err(self.failed("set the extended state"))
    }
}

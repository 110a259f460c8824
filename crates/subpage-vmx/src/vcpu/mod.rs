//! A virtual processor: its VMCS, its registers, entry and exit.

pub mod context;
pub mod events;
pub mod mode;
pub mod setup;

use alloc::boxed::Box;

use subpage::domain::RetryState;

use crate::machine::VirtualMachine;
use crate::memory::window::Window;
use crate::vmx::CurrentVmcs;
use crate::vmx::field::{ExitField, GuestField as G};
use context::{Context, fx_after_reset};
use subpage_emulate::bits::{DR6_BS, EFER_LMA, RFLAGS_RF, RFLAGS_TF, SEGMENT_LONG};
use subpage_emulate::guest::{GeneralRegisters, Register, Segment, Segments, State, Vendor};
use subpage_emulate::{DecodeCache, PagingFeatures, SystemTables, TableRegister, Trampoline};

/// A virtual processor, bound to the processor it was made on.
pub struct Vcpu {
    /// The machine it belongs to.
    pub machine: &'static VirtualMachine,
    /// Its number, from 0 on; also its x2APIC ID.
    pub index: usize,
    /// Its control structure.
    pub vmcs: CurrentVmcs,
    /// Its registers outside the control structure.
    pub context: Box<Context>,
    /// For stores on behalf of the guest.
    pub window: Window,
    /// For instructions carried out on behalf of the guest.
    pub trampoline: Trampoline,
    /// Instructions that trapped lately.
    pub decode_cache: DecodeCache,
    /// RIP of the last exit whose instruction could not be fetched.
    pub not_fetched_at: Option<u64>,
    /// The time-stamp counter as a guest with devices was last left.
    pub left_at: Option<u64>,
    /// What it was last told to retry.
    pub retry: RetryState,
    /// One instruction is run with EPT's flags off, to step over a walk of the guest's page tables.
    pub stepping: bool,
    /// CR8 as the guest sees it.
    pub task_priority: u64,
    /// The guest's x2APIC spurious-interrupt register.
    pub spurious: u64,
    /// Time-stamp counts that the engine took for its last decision about a write, where one look told.
    #[cfg(feature = "test-hooks")]
    pub last_decision: u64,
    /// The last EPT violation or SPP event: reason, qualification, guest-physical address,
    /// IDT-vectoring information, instruction length, RIP.
    #[cfg(feature = "test-hooks")]
    pub last_exit: [u64; 6],
    pub(crate) launched: bool,
    /// Primary controls as last written.
    primary: u32,
}

/// Virtual-processor identifier of processor `index`; 0 is the hypervisor itself.
#[allow(clippy::cast_possible_truncation)] // There are at most 16.
pub const fn vpid(index: usize) -> u16 {
    index as u16 + 1
}

impl Vcpu {
    /// Wraps what [`setup::prepare`] has filled in.
    pub fn new(
        machine: &'static VirtualMachine,
        index: usize,
        vmcs: CurrentVmcs,
        window: Window,
        trampoline: Trampoline,
    ) -> Self {
        let context = Context { registers: GeneralRegisters::default(), fx: fx_after_reset() };
        Self {
            machine,
            index,
            vmcs,
            context: Box::new(context),
            window,
            trampoline,
            decode_cache: DecodeCache::default(),
            not_fetched_at: None,
            left_at: None,
            retry: RetryState::default(),
            stepping: false,
            task_priority: 0,
            spurious: 0xFF,
            #[cfg(feature = "test-hooks")]
            last_decision: 0,
            #[cfg(feature = "test-hooks")]
            last_exit: [0; 6],
            launched: false,
            primary: setup::primary(&machine.capabilities, machine.devices.is_some()),
        }
    }

    /// A general register; RSP is in the VMCS.
    pub fn register(&self, register: Register) -> u64 {
        match register {
            Register::Rsp => self.vmcs.guest(G::RSP),
            other => self.context.registers[other],
        }
    }

    /// Sets a general register.
    pub fn set_register(&mut self, register: Register, value: u64) {
        match register {
            Register::Rsp => self.vmcs.set_guest(G::RSP, value),
            other => self.context.registers[other] = value,
        }
    }

    /// Current privilege level: the DPL of SS (SDM Vol. 3C, "Guest Register State").
    #[allow(clippy::cast_possible_truncation)] // Two bits.
    pub fn cpl(&self) -> u8 {
        (self.vmcs.guest(G::SS_ACCESS) >> 5 & 3) as u8
    }

    /// The whole state, for decoding and emulating.
    pub fn state(&self) -> State {
        let mut registers = self.context.registers;
        registers[Register::Rsp] = self.vmcs.guest(G::RSP);
        let [es, cs, ss, ds, fs, gs] =
            [0, 1, 2, 3, 4, 5].map(|number| self.segment(setup::SEGMENT_FIELDS[number]));
        State {
            registers,
            rip: self.vmcs.guest(G::RIP),
            rflags: self.vmcs.guest(G::RFLAGS),
            cr0: self.vmcs.guest(G::CR0),
            cr3: self.vmcs.guest(G::CR3),
            cr4: self.vmcs.guest(G::CR4),
            efer: self.vmcs.guest(G::EFER),
            cpl: self.cpl(),
            vendor: Vendor::Intel,
            segments: Segments { es, cs, ss, ds, fs, gs },
        }
    }

    /// The part of the state that decoding and the [plain](subpage_emulate::Decoded::is_plain) stores
    /// of 64-bit code go by: of segments, what code it is and the bases of FS and GS. False if the code
    /// is not of 64 bits; `state`, an empty one, is then as it was.
    pub fn plain_state(&self, state: &mut State) -> bool {
        let efer = self.vmcs.guest(G::EFER);
        let access = self.vmcs.guest(G::CS_ACCESS);
        if efer & EFER_LMA == 0 || access & u64::from(SEGMENT_LONG) == 0 {
            return false;
        }
        state.registers = self.context.registers;
        state.registers[Register::Rsp] = self.vmcs.guest(G::RSP);
        state.rip = self.vmcs.guest(G::RIP);
        state.rflags = self.vmcs.guest(G::RFLAGS);
        state.cr0 = self.vmcs.guest(G::CR0);
        state.cr3 = self.vmcs.guest(G::CR3);
        state.cr4 = self.vmcs.guest(G::CR4);
        state.efer = efer;
        state.cpl = self.cpl();
        #[allow(clippy::cast_possible_truncation)] // The field has 32 bits.
        let access = access as u32;
        state.segments.cs.access = access;
        state.segments.fs.base = self.vmcs.guest(G::FS_BASE);
        state.segments.gs.base = self.vmcs.guest(G::GS_BASE);
        true
    }

    /// Takes over what an emulated instruction changed: general registers, RIP, RFLAGS.
    pub fn set_state(&mut self, state: &State) {
        self.context.registers = state.registers;
        self.vmcs.set_guest(G::RSP, state.registers[Register::Rsp]);
        self.vmcs.set_guest(G::RIP, state.rip);
        self.vmcs.set_guest(G::RFLAGS, state.rflags);
    }

    /// The system registers, for deliveries and for instructions that store them.
    #[allow(clippy::cast_possible_truncation)] // The fields have these widths.
    pub fn system_tables(&self) -> SystemTables {
        let table = |base, limit| TableRegister {
            base: self.vmcs.guest(base),
            limit: self.vmcs.guest(limit) as u16,
        };
        SystemTables {
            gdtr: table(G::GDTR_BASE, G::GDTR_LIMIT),
            idtr: table(G::IDTR_BASE, G::IDTR_LIMIT),
            ldtr: self.segment(setup::SEGMENT_FIELDS[6]),
            tr: self.segment(setup::SEGMENT_FIELDS[7]),
        }
    }

    /// What page walks go by.
    pub const fn paging(&self) -> PagingFeatures {
        self.machine.paging
    }

    #[allow(clippy::cast_possible_truncation)] // The fields have these widths.
    fn segment(&self, [selector, base, limit, access]: [G; 4]) -> Segment {
        Segment {
            selector: self.vmcs.guest(selector) as u16,
            base: self.vmcs.guest(base),
            limit: self.vmcs.guest(limit) as u32,
            access: self.vmcs.guest(access) as u32,
        }
    }

    /// Continues behind the instruction that caused the exit, whose length the exit told.
    pub fn skip_instruction(&mut self) {
        self.skip(self.vmcs.exit(ExitField::INSTRUCTION_LENGTH));
    }

    /// Continues `length` bytes further, with what goes with the end of an instruction: RF off, and
    /// blocking by STI or MOV SS over.
    pub fn skip(&mut self, length: u64) {
        let mut rip = self.vmcs.guest(G::RIP).wrapping_add(length);
        if !self.is_64_bit_code() {
            rip &= 0xFFFF_FFFF;
        }
        self.vmcs.set_guest(G::RIP, rip);
        let rflags = self.vmcs.guest(G::RFLAGS);
        self.finish_instruction(rflags);
        if rflags & RFLAGS_TF != 0 {
            let pending = self.vmcs.guest(G::PENDING_DEBUG);
            self.vmcs.set_guest(G::PENDING_DEBUG, pending | DR6_BS);
        }
    }

    /// What goes with the end of an instruction; `rflags` is what the field holds.
    #[inline]
    pub fn finish_instruction(&mut self, rflags: u64) {
        const BLOCKING_BY_STI_OR_MOV_SS: u64 = 3;
        if rflags & RFLAGS_RF != 0 {
            self.vmcs.set_guest(G::RFLAGS, rflags & !RFLAGS_RF);
        }
        let interruptibility = self.vmcs.guest(G::INTERRUPTIBILITY);
        if interruptibility & BLOCKING_BY_STI_OR_MOV_SS != 0 {
            let over = interruptibility & !BLOCKING_BY_STI_OR_MOV_SS;
            self.vmcs.set_guest(G::INTERRUPTIBILITY, over);
        }
    }

    /// State after reset; `page` is where a start-up message lets it begin.
    pub fn reset(&mut self, page: u8) {
        setup::reset(&mut self.vmcs, &self.machine.capabilities, page);
        self.vmcs.invalidate_linear(vpid(self.index));
        self.context.registers = GeneralRegisters::default();
        // EDX after reset: family, model, stepping.
        self.context.registers[Register::Rdx] = u64::from(crate::processor::cpuid::leaf(1, 0).eax);
        self.context.fx = fx_after_reset();
        self.task_priority = 0;
        self.spurious = 0xFF;
        self.retry = RetryState::default();
    }
}

//! The processor that this runs on, as an executor of cases.
//!
//! Unsafe because cases choose the tables that the processor walks. That they lead nowhere but into
//! the arena is up to the maker of the cases: this program guards nothing, and a case that leaves
//! the arena can only break the run.
#![allow(unsafe_code)]

use alloc::boxed::Box;

use super::answer::Exit;
use super::execute::{Arena, CaseRunner, Pointers};
use super::format::{ARENA, guest, mode};
use core::sync::atomic::AtomicBool;

use crate::processor::control::{CR0_NE, CR4_VMXE};
use crate::processor::segments::Bases;
use crate::vcpu::context::{self, Context, fx_after_reset};
use crate::vcpu::setup;
use crate::vmx::controls::{ENTRY_IA32E, PIN_EXTERNAL_INTERRUPT, SECONDARY_SPP};
use crate::vmx::field::{ControlField as C, ExitField, GuestField as G};
use crate::vmx::structure::{self, VmxError};
use crate::vmx::{Bitmaps, Capabilities, CurrentVmcs, TableRoots};
use subpage::address::Hpa;
use subpage::frames::TableFrame;
use subpage_emulate::bits::{
    CR0_PE, CR0_PG, CR0_WP, CR4_OSXSAVE, CR4_PAE, CR4_SMAP, CR4_SMEP, EFER_LMA, EFER_LME, EFER_NXE,
    RFLAGS_AC,
};
use subpage_emulate::guest::{GeneralRegisters, Register, Segment};

/// Any number but 0, which is the host's.
const VPID: u16 = 1;

/// This processor, with a VMCS for the guests of cases.
#[allow(missing_debug_implementations)] // The context has none.
pub struct VmxProcessor {
    vmcs: CurrentVmcs,
    context: Box<Context>,
    sub_page: bool,
    launched: bool,
}

/// VM-instruction error number of an entry that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstructionError(pub u64);

impl VmxProcessor {
    /// Enters VMX operation and prepares the guest that [`guest`] describes.
    ///
    /// # Safety
    /// The arena is free memory, mapped at its physical address; `bases` and `idt` are this
    /// processor's own.
    pub unsafe fn new(
        capabilities: &Capabilities,
        bases: &Bases,
        idt: u64,
    ) -> Result<Self, VmxError> {
        let mut vmcs = structure::start(capabilities)?;
        let root = TableFrame::try_new(Hpa::new(ARENA)).expect("the arena is aligned");
        let sub_page = capabilities.sub_page_permissions;
        let tables =
            TableRoots { ept: root, sppt: sub_page.then_some(root), accessed_dirty: false };
        let bitmaps = Bitmaps::new();
        // SAFETY: bases and IDT by the contract; the arena is never freed.
        unsafe {
            setup::prepare(&mut vmcs, capabilities, bases, idt, &tables, &bitmaps, VPID, false);
        }
        setup::reset(&mut vmcs, capabilities, 0);
        let context = Context { registers: GeneralRegisters::default(), fx: fx_after_reset() };
        let mut processor = Self { vmcs, context: Box::new(context), sub_page, launched: false };
        processor.prepare_guest();
        Ok(processor)
    }

    fn prepare_guest(&mut self) {
        let task =
            Segment { selector: guest::TASK, base: guest::TASK_STATE, limit: 0x67, access: 0x8B };
        let [.., tr] = setup::SEGMENT_FIELDS;
        setup::set_segment(&mut self.vmcs, tr, &task);
        for (field, value) in [
            (G::EFER, EFER_LME | EFER_LMA | EFER_NXE),
            (G::GDTR_BASE, guest::GDT),
            (G::GDTR_LIMIT, u64::from(guest::GDT_BYTES) - 1),
            (G::IDTR_BASE, guest::IDT),
            (G::IDTR_LIMIT, u64::from(guest::IDT_BYTES) - 1),
        ] {
            self.vmcs.set_guest(field, value);
        }
        let entry = self.vmcs.control(C::ENTRY) | u64::from(ENTRY_IA32E);
        // SAFETY: EFER above says the same.
        unsafe { self.vmcs.set_control(C::ENTRY, entry) };
        // Guests have interrupts off: one of the machine's waits, and ends no step.
        let pins = self.vmcs.control(C::PIN_BASED) & !u64::from(PIN_EXTERNAL_INTERRUPT);
        // SAFETY: as for the host, interrupts stay off.
        unsafe { self.vmcs.set_control(C::PIN_BASED, pins) };
        // SAFETY: more exits than before take nothing from the host.
        unsafe { self.vmcs.set_control(C::EXCEPTION_BITMAP, u64::from(u32::MAX)) };
    }

    /// INVEPT for all contexts.
    pub fn invalidate_ept(&mut self) {
        self.vmcs.invalidate_ept();
    }

    /// Sets what a step's mode decides: segments, CR0, CR4, RFLAGS.
    fn set_mode(&mut self, mode: u32) {
        const CR0_MP_ET: u64 = 1 << 1 | 1 << 4;
        const CR4_OSFXSR_OSXMMEXCPT: u64 = 3 << 9;
        let bit = |of: u32, bit: u64| if mode & of != 0 { bit } else { 0 };
        let cr0 = CR0_PE | CR0_MP_ET | CR0_NE | CR0_PG | bit(mode::WRITE_PROTECT, CR0_WP);
        let cr4 = CR4_PAE | CR4_OSFXSR_OSXMMEXCPT | CR4_OSXSAVE;
        let cr4 = cr4 | bit(mode::SMEP, CR4_SMEP) | bit(mode::SMAP, CR4_SMAP);
        for (field, value) in [
            (G::CR0, cr0),
            (G::CR0_SHADOW, cr0),
            (G::CR4, cr4 | CR4_VMXE),
            (G::CR4_SHADOW, cr4),
            (G::RFLAGS, 2 | bit(mode::ALIGNMENT_CHECK, RFLAGS_AC)),
        ] {
            self.vmcs.set_guest(field, value);
        }
        // Bits 6:5 of the access rights are the DPL.
        let (data, code, dpl) = if mode & mode::USER == 0 {
            (guest::DATA, guest::CODE, 0)
        } else {
            (guest::USER_DATA, guest::USER_CODE, 3 << 5)
        };
        let data = Segment { selector: data, base: 0, limit: u32::MAX, access: 0xC093 | dpl };
        let code = Segment { selector: code, access: 0xA09B | dpl, ..data };
        let [es, cs, ss, ds, ..] = setup::SEGMENT_FIELDS;
        for (fields, segment) in [(es, &data), (cs, &code), (ss, &data), (ds, &data)] {
            setup::set_segment(&mut self.vmcs, fields, segment);
        }
    }

    fn set_pointers(&mut self, pointers: &Pointers) {
        let root = TableFrame::try_new(Hpa::new(pointers.ept)).expect("a frame of the arena");
        let tables = TableRoots { ept: root, sppt: None, accessed_dirty: pointers.accessed_dirty };
        let eptp = tables.eptp(pointers.accessed_dirty);
        let spp = u64::from(SECONDARY_SPP);
        let secondary = self.vmcs.control(C::SECONDARY) & !spp;
        // SAFETY: tables in the arena; where else they lead is the case's matter (see above).
        unsafe { self.vmcs.set_control(C::EPTP, eptp) };
        let secondary = if let Some(sppt) = pointers.sppt.filter(|_| self.sub_page) {
            // SAFETY: as above.
            unsafe { self.vmcs.set_control(C::SPPTP, sppt) };
            secondary | spp
        } else {
            secondary
        };
        // SAFETY: this bit is set only where the processor has it.
        unsafe { self.vmcs.set_control(C::SECONDARY, secondary) };
        self.vmcs.set_guest(G::CR3, pointers.cr3);
        self.vmcs.invalidate_ept();
        self.vmcs.invalidate_linear(VPID);
    }

    #[allow(clippy::cast_possible_truncation)] // The fields have these widths.
    fn exit(&self) -> Exit {
        let narrow = |field| self.vmcs.exit(field) as u32;
        let registers = &self.context.registers;
        Exit {
            reason: narrow(ExitField::REASON),
            qualification: self.vmcs.exit(ExitField::QUALIFICATION),
            gpa: self.vmcs.exit(ExitField::GUEST_PHYSICAL),
            gla: self.vmcs.exit(ExitField::GUEST_LINEAR),
            event: narrow(ExitField::EVENT),
            error: narrow(ExitField::EVENT_ERROR_CODE),
            vectoring: narrow(ExitField::VECTORING),
            length: narrow(ExitField::INSTRUCTION_LENGTH),
            rip: self.vmcs.guest(G::RIP),
            registers: [
                registers[Register::Rax],
                registers[Register::Rcx],
                registers[Register::Rdx],
                registers[Register::Rbx],
                self.vmcs.guest(G::RSP),
                registers[Register::Rbp],
                registers[Register::Rsi],
                registers[Register::Rdi],
            ],
        }
    }
}

impl CaseRunner for VmxProcessor {
    type Error = InstructionError;

    fn arena(&mut self) -> &mut Arena {
        let arena = ARENA as *mut Arena;
        // SAFETY: free memory by the contract of `new`, borrowed as long as this processor is; its
        // guest, the only other user, does not run meanwhile.
        unsafe { &mut *arena }
    }

    fn run(&mut self, pointers: &Pointers, mode: u32) -> Result<Exit, InstructionError> {
        self.set_pointers(pointers);
        self.set_mode(mode);
        for (field, value) in [
            (G::RIP, guest::RIP),
            (G::RSP, guest::RSP),
            (G::INTERRUPTIBILITY, 0),
            (G::ACTIVITY, 0),
            (G::PENDING_DEBUG, 0),
            (G::ENTRY_EVENT, 0),
        ] {
            self.vmcs.set_guest(field, value);
        }
        self.context.registers = GeneralRegisters::default();
        // Nobody sends messages here.
        static NO_NMI: AtomicBool = AtomicBool::new(false);
        let entered = context::run(&mut self.vmcs, &mut self.context, self.launched, &NO_NMI);
        entered.map_err(|_| InstructionError(self.vmcs.error()))?;
        self.launched = true;
        Ok(self.exit())
    }
}

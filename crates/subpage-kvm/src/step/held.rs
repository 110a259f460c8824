//! One instruction of a guest that is held, for whoever steps it. What the guest sees of it is nothing: TF is
//! set where it goes nowhere, else breakpoints end the step, and frames lose it.

use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_SW_BP,
    kvm_guest_debug,
};
use subpage_emulate::bits::{DR6_BS, RFLAGS_RF, RFLAGS_TF};
use subpage_emulate::guest::State;

use super::plan::{End, Plan, plan_held};
use super::{clear_trap_flag_at, flags_in_frame};
use crate::memory::Ram;
use crate::store::{StoreContext, end_instruction};
use crate::vcpu::{Interrupted, Processor, ProcessorError};

/// A step over the instruction at RIP.
pub(crate) struct HeldStep {
    before: Interrupted,
    /// None of an instruction, or a mode, that is not known: TF is set.
    plan: Option<Plan>,
}

impl HeldStep {
    /// Plans it.
    pub(crate) fn new(
        context: StoreContext<'_, Ram>,
        processor: &Processor,
        before: &Interrupted,
    ) -> Result<Self, ProcessorError> {
        let watched = processor.debug_registers()?.dr7;
        Ok(Self { before: *before, plan: plan_held(context, processor, before, watched) })
    }

    /// Has the processor stop behind the instruction the next time that it is in the guest.
    pub(crate) fn arm(&self, processor: &Processor) -> Result<(), ProcessorError> {
        let usual = &processor.debugging;
        let mut debug = match &self.plan {
            Some(plan) => plan.debug(),
            None => kvm_guest_debug {
                control: usual.control | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ,
                ..*usual
            },
        };
        debug.control |= KVM_GUESTDBG_ENABLE | usual.control & KVM_GUESTDBG_USE_SW_BP;
        if processor.set_guest_debug(&debug).is_err() {
            // Older kernels deliver interrupts in a step.
            debug.control &= !KVM_GUESTDBG_BLOCKIRQ;
            processor.set_guest_debug(&debug)?;
        }
        Ok(())
    }

    /// #DB has ended the stay, with this in DR6: the instruction has happened, or an exception in its
    /// place.
    pub(crate) fn stopped(
        &self,
        context: StoreContext<'_, Ram>,
        processor: &mut Processor,
        dr6: u64,
    ) -> Result<(), ProcessorError> {
        let Some(plan) = &self.plan else { return Ok(()) };
        let now = processor.interrupted()?.state;
        if dr6 & DR6_BS == 0 {
            let handler = plan.handlers.iter().find(|handler| handler.1 == now.rip);
            if let (Some((vector, _)), End::TrapFlag) = (handler, plan.end)
                && let Some(flags) = flags_in_frame(context, &now, *vector)
            {
                clear_trap_flag_at(context.ram, flags);
            }
        } else if plan.end == End::TrapFlag {
            // Between two iterations of a string instruction; a processor has it in frames only.
            if now.rflags & RFLAGS_RF != 0 {
                processor.go_on(&State { rflags: now.rflags & !RFLAGS_RF, ..now })?;
            }
        } else {
            // The trap is the guest's own.
            let mut before = self.before;
            before.state.rflags |= RFLAGS_TF;
            end_instruction(processor, &before, false)?;
        }
        Ok(())
    }
}

//! What happens when the guest exits: the loop, and which handler a reason has.

mod backend;
mod delivery;
mod devices;
mod features;
mod input_output;
mod instructions;
mod kernel;
mod registers;
mod step;
mod store;
mod violation;

use core::sync::atomic::{AtomicBool, Ordering};

use subpage::exit::ExitReason;

use crate::processor::{control, interrupts};
use crate::smp::mailbox::Next;
use crate::stop::Stop;
use crate::vcpu::Vcpu;
use crate::vcpu::context::{self, Ran};
use crate::vmx::field::{ExitField, GuestField as G};
use subpage_emulate::Exception;
use subpage_emulate::bits::RFLAGS_IF;

/// Basic exit reasons besides those of the engine (SDM Vol. 3D, appendix "VMX Basic Exit Reasons").
pub mod reason {
    #![allow(missing_docs)]
    use super::ExitReason;

    pub const EXCEPTION_OR_NMI: ExitReason = ExitReason(0);
    pub const EXTERNAL_INTERRUPT: ExitReason = ExitReason(1);
    pub const TRIPLE_FAULT: ExitReason = ExitReason(2);
    pub const INIT: ExitReason = ExitReason(3);
    pub const START_UP: ExitReason = ExitReason(4);
    pub const TASK_SWITCH: ExitReason = ExitReason(9);
    pub const INTERRUPT_WINDOW: ExitReason = ExitReason(7);
    pub const NMI_WINDOW: ExitReason = ExitReason(8);
    pub const CPUID: ExitReason = ExitReason(10);
    pub const GETSEC: ExitReason = ExitReason(11);
    pub const HLT: ExitReason = ExitReason(12);
    pub const INVD: ExitReason = ExitReason(13);
    pub const VMCALL: ExitReason = ExitReason(18);
    pub const VMCLEAR: ExitReason = ExitReason(19);
    pub const VMXON: ExitReason = ExitReason(27);
    pub const CONTROL_REGISTER: ExitReason = ExitReason(28);
    pub const INPUT_OUTPUT: ExitReason = ExitReason(30);
    pub const RDMSR: ExitReason = ExitReason(31);
    pub const WRMSR: ExitReason = ExitReason(32);
    pub const INVALID_GUEST_STATE: ExitReason = ExitReason(33);
    pub const MWAIT: ExitReason = ExitReason(36);
    pub const MONITOR_TRAP: ExitReason = ExitReason(37);
    pub const MONITOR: ExitReason = ExitReason(39);
    pub const INVEPT: ExitReason = ExitReason(50);
    pub const INVVPID: ExitReason = ExitReason(53);
    pub const XSETBV: ExitReason = ExitReason(55);
}

impl Vcpu {
    /// Runs the guest forever, or until something stops the machine.
    pub fn run(mut self) -> ! {
        if self.machine.devices.is_none() || self.index == 0 {
            self.machine.join(self.index);
        } else {
            self.wait_for_start_up();
        }
        loop {
            if let Err(stop) = self.step() {
                let (rip, index) = (self.vmcs.guest(G::RIP), self.index);
                let reason = format_args!("{stop} (processor {index} at {rip:#x})");
                self.machine.stop(reason, stop.is_reset());
            }
        }
    }

    fn step(&mut self) -> Result<(), Stop> {
        // From here on an NMI, and so a message, is noticed before the entry.
        self.nmi_came().store(false, Ordering::SeqCst);
        if self.machine.devices.is_some() {
            self.deliver_nmi();
            if let Some(left) = self.left_at.take() {
                self.machine.costs.ticks(control::time_stamp().saturating_sub(left));
            }
        } else if self.machine.mail.is_filled(self.index) {
            match self.machine.mail.next(self.index) {
                Next::Run => self.deliver_mail(),
                Next::Reset => {
                    self.reset(0);
                    return Ok(());
                }
                Next::Start(page) => {
                    self.reset(page);
                    return Ok(());
                }
                Next::Wait => {
                    core::hint::spin_loop();
                    return Ok(());
                }
                Next::AllWait => return Err(Stop::AllHalted),
            }
        }
        match self.enter() {
            Ran::Exited => self.handle(),
            Ran::NotYet => Ok(()),
        }
    }

    /// Handles the exit that has just happened.
    fn handle(&mut self) -> Result<(), Stop> {
        let full = self.vmcs.exit(ExitField::REASON);
        const ENTRY_FAILURE: u64 = 1 << 31;
        if full & ENTRY_FAILURE != 0 {
            return Err(Stop::InvalidState);
        }
        #[allow(clippy::cast_possible_truncation)] // Bits 15:0 are the basic reason.
        let reason = ExitReason(full as u16);
        let count = self.machine.exits.count(reason);
        if self.machine.devices.is_some() {
            self.left_at = Some(control::time_stamp());
            if let Some(done) = self.handle_with_devices(reason) {
                return done;
            }
        }
        match reason {
            reason::VMCALL => self.vmcall(),
            ExitReason::EPT_VIOLATION => self.ept_violation(),
            ExitReason::SPP_EVENT => self.spp_event(),
            reason::CPUID => {
                self.cpuid();
                Ok(())
            }
            reason::EXCEPTION_OR_NMI => self.exception_or_nmi(reason),
            // Acknowledged by the exit; devices are not the guest's.
            reason::EXTERNAL_INTERRUPT | reason::INIT => Ok(()),
            reason::TRIPLE_FAULT => Err(Stop::TripleFault),
            reason::INTERRUPT_WINDOW | reason::NMI_WINDOW => {
                self.deliver_mail();
                Ok(())
            }
            reason::HLT => {
                self.skip_instruction();
                let interrupts_on = self.vmcs.guest(G::RFLAGS) & RFLAGS_IF != 0;
                self.machine.mail.halt(self.index, interrupts_on);
                Ok(())
            }
            reason::INVD => {
                // The guest's own lines must not be lost with those of others.
                control::write_back_caches();
                self.skip_instruction();
                Ok(())
            }
            reason::CONTROL_REGISTER => self.control_register(),
            reason::INPUT_OUTPUT => {
                self.input_output();
                Ok(())
            }
            // Task switches by hardware are not virtualized.
            reason::TASK_SWITCH => {
                self.inject(Exception::general_protection(0));
                Ok(())
            }
            reason::RDMSR => {
                self.rdmsr();
                Ok(())
            }
            reason::WRMSR => {
                self.wrmsr();
                Ok(())
            }
            reason::XSETBV => {
                self.xsetbv();
                Ok(())
            }
            reason::MONITOR_TRAP => {
                self.step_done();
                step::tell(count);
                Ok(())
            }
            ExitReason::EPT_MISCONFIGURATION => {
                Err(Stop::Misconfiguration(self.vmcs.exit(ExitField::GUEST_PHYSICAL)))
            }
            reason::INVALID_GUEST_STATE => Err(Stop::InvalidState),
            ExitReason(19..=27)
            | reason::GETSEC
            | reason::MWAIT
            | reason::MONITOR
            | reason::INVEPT
            | reason::INVVPID => {
                self.inject(Exception::INVALID_OPCODE);
                Ok(())
            }
            other => Err(Stop::Unknown(other)),
        }
    }

    fn exception_or_nmi(&mut self, reason: ExitReason) -> Result<(), Stop> {
        const KIND: u64 = 7 << 8;
        const NMI: u64 = 2 << 8;
        if self.vmcs.exit(ExitField::EVENT) & KIND != NMI {
            // No exception is asked for by the exception bitmap.
            return Err(Stop::Unknown(reason));
        }
        control::unblock_nmis();
        self.machine.nmi(self.index);
        // An NMI that interrupted the delivery of an event is no reason to lose that.
        let delivery = self.delivery();
        self.fix_up_delivery(delivery.fixup(false));
        Ok(())
    }

    fn nmi_came(&self) -> &'static AtomicBool {
        interrupts::nmi_came(self.index)
    }

    fn enter(&mut self) -> Ran {
        let nmi = self.nmi_came();
        let Ok(ran) = context::run(&mut self.vmcs, &mut self.context, self.launched, nmi) else {
            let error = self.vmcs.error();
            panic!("VM entry on processor {} failed with error {error}", self.index);
        };
        self.launched |= ran == Ran::Exited;
        ran
    }
}

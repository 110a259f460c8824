//! Registers in the page that a processor shares with KVM: copied there at each exit, taken from there
//! at the next entry (`KVM_CAP_SYNC_REGS`, Linux 4.17).
//!
//! A store that traps before it has happened needs to know all registers and to set some. Asking by a
//! request each costs as much as an exit, or more where a request has to load the processor. Where
//! exits tell of stores afterwards, registers are rarely wanted, and copying them would cost more.
//!
//! What is in the page is true between an exit and the next request that sets registers. Registers
//! that wait for the next entry are given to KVM before anybody else may hold the processor.

use kvm_bindings::{KVM_SYNC_X86_EVENTS, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, kvm_vcpu_events};
use kvm_ioctls::{Cap, SyncReg, VmFd};
use subpage_emulate::bits::RFLAGS_TF;
use subpage_emulate::guest::State;

use super::processor::{Interrupted, Processor, ProcessorError};
use super::registers;

/// What is copied at exits.
const WANTED: [SyncReg; 3] = [SyncReg::Register, SyncReg::SystemRegister, SyncReg::VcpuEvents];
const WANTED_BITS: u32 = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS;

/// Whether registers go through the shared page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Exchange {
    /// By requests.
    #[default]
    Off,
    /// Through the page.
    On,
    /// Through the page, where some wait for the next entry.
    Waiting,
}

impl Processor {
    /// Lets KVM copy registers at exits from now on, if it can.
    pub fn exchange_registers(&mut self, vm: &VmFd) {
        let can = u32::try_from(vm.check_extension_int(Cap::SyncRegs)).unwrap_or(0);
        if can & WANTED_BITS == WANTED_BITS {
            self.share_registers();
            self.exchange = Exchange::On;
        }
    }

    /// Asks for the registers in the page at exits from now on.
    pub(crate) fn share_registers(&mut self) {
        for registers in WANTED {
            self.fd.set_sync_valid_reg(registers);
        }
    }

    /// Whether registers go through the page.
    pub fn exchanges(&self) -> bool {
        self.exchange != Exchange::Off
    }

    /// Where the exit that has just been left it: to be asked before anything is set.
    pub fn at_exit(&mut self) -> Result<(Interrupted, kvm_vcpu_events), ProcessorError> {
        if self.exchange == Exchange::Off {
            return Ok((self.interrupted()?, self.events()?));
        }
        let page = self.fd.sync_regs_mut();
        Ok((Interrupted::of(&page.regs, &page.sregs), page.events))
    }

    /// Takes over into `state` where the exit that has just been left it, as far as a
    /// [plain](registers::plain_state) store needs to know. False if there is more to it: other code, an
    /// event that is being delivered, blocking by STI or MOV SS, single steps, or no page to look at.
    pub fn at_plain_exit(&mut self, state: &mut State) -> bool {
        if self.exchange == Exchange::Off {
            return false;
        }
        let page = self.fd.sync_regs_mut();
        let kvm_vcpu_events { exception, interrupt, nmi, .. } = &page.events;
        let busy = exception.injected | interrupt.injected | interrupt.shadow | nmi.injected;
        if busy != 0 || page.regs.rflags & RFLAGS_TF != 0 {
            return false;
        }
        registers::plain_state(&page.regs, &page.sregs, state)
    }

    /// Sets the general registers, RIP and RFLAGS of `after`, at the latest when it enters the guest
    /// or when [`give_back`](Self::give_back) is called.
    pub fn go_on_at_entry(&mut self, after: &State) -> Result<(), ProcessorError> {
        if self.exchange == Exchange::Off {
            return self.go_on(after);
        }
        self.fd.sync_regs_mut().regs = registers::general(after);
        self.fd.set_sync_dirty_reg(SyncReg::Register);
        self.exchange = Exchange::Waiting;
        Ok(())
    }

    /// The guest is entered next: KVM takes what waits, whatever else the entry comes to.
    pub fn entered(&mut self) {
        if self.exchange == Exchange::Waiting {
            self.exchange = Exchange::On;
        }
    }

    /// Gives KVM the registers that wait for an entry: others may ask for them next.
    pub fn give_back(&mut self) -> Result<(), ProcessorError> {
        if self.exchange == Exchange::Waiting {
            self.exchange = Exchange::On;
            self.fd.clear_sync_dirty_reg(SyncReg::Register);
            let waiting = self.fd.sync_regs_mut().regs;
            self.set_general(&waiting)?;
        }
        Ok(())
    }
}

//! Events for the guest: exceptions, messages of other virtual processors, what an exit interrupted.
//!
//! Unsafe for the controls that ask for an exit as soon as an event can be delivered.
#![allow(unsafe_code)]

use subpage::exit::{DeliveryFixup, VectoringInfo};

use super::Vcpu;
use crate::processor::control;
use crate::vmx::controls::{PRIMARY_INTERRUPT_WINDOW, PRIMARY_MTF, PRIMARY_NMI_WINDOW};
use crate::vmx::field::{ControlField, ExitField, GuestField as G};
use subpage_emulate::Exception;
use subpage_emulate::bits::{CR0_PE, RFLAGS_IF, RFLAGS_RF};

const VALID: u64 = 1 << 31;
const WITH_ERROR_CODE: u64 = 1 << 11;
const KIND_EXTERNAL: u64 = 0;
const KIND_NMI: u64 = 2 << 8;
const KIND_HARDWARE: u64 = 3 << 8;

const BLOCKING_BY_STI: u64 = 1 << 0;
const BLOCKING_BY_MOV_SS: u64 = 1 << 1;
const BLOCKING_BY_NMI: u64 = 1 << 3;

impl Vcpu {
    /// Injects an exception at the next entry. RIP is that of the instruction that causes it.
    pub fn inject(&mut self, exception: Exception) {
        if let Some(address) = exception.address {
            control::set_cr2(address);
        }
        let mut event = VALID | KIND_HARDWARE | u64::from(exception.vector);
        // A fault is pushed with RF set, so that a breakpoint at its instruction is hit once (SDM
        // Vol. 3B, "Instruction-Breakpoint Exception Condition").
        self.vmcs.set_guest(G::RFLAGS, self.vmcs.guest(G::RFLAGS) | RFLAGS_RF);
        // In real mode no error code is pushed, and entry refuses one.
        if let Some(code) = exception.error_code.filter(|_| self.vmcs.guest(G::CR0) & CR0_PE != 0) {
            event |= WITH_ERROR_CODE;
            self.vmcs.set_guest(G::ENTRY_ERROR_CODE, code.into());
        }
        self.vmcs.set_guest(G::ENTRY_EVENT, event);
    }

    /// Whether an event waits for the next entry.
    pub fn is_injecting(&self) -> bool {
        self.vmcs.guest(G::ENTRY_EVENT) & VALID != 0
    }

    /// Injects an event by its interruption information.
    pub fn inject_raw(&mut self, event: VectoringInfo, error_code: u32, length: u64) {
        let event = event.with_rest(0).with_valid(true);
        if event.error_code() {
            self.vmcs.set_guest(G::ENTRY_ERROR_CODE, error_code.into());
        }
        // Software interrupts and exceptions need the length of their instruction.
        if matches!(event.kind(), 4..=6) {
            self.vmcs.set_guest(G::ENTRY_INSTRUCTION_LENGTH, length);
        }
        self.vmcs.set_guest(G::ENTRY_EVENT, u32::from(event).into());
    }

    /// Does what the engine says about an interrupted event delivery (D35, D38).
    pub fn fix_up_delivery(&mut self, fixup: DeliveryFixup) {
        if let Some((event, error_code)) = fixup.reinject {
            let length = self.vmcs.exit(ExitField::INSTRUCTION_LENGTH);
            self.inject_raw(event, error_code, length);
        }
        if fixup.block_nmi {
            let now = self.vmcs.guest(G::INTERRUPTIBILITY);
            self.vmcs.set_guest(G::INTERRUPTIBILITY, now | BLOCKING_BY_NMI);
        }
    }

    /// Injects what other processors have sent, or asks for an exit as soon as it can be.
    pub fn deliver_mail(&mut self) {
        let waiting = self.machine.mail.deliverable(self.index);
        let interruptibility = self.vmcs.guest(G::INTERRUPTIBILITY);
        let shadow = interruptibility & (BLOCKING_BY_STI | BLOCKING_BY_MOV_SS) != 0;
        let mut nmi_window = false;
        let mut interrupt_window = false;
        if waiting.nmi {
            if self.is_injecting() || shadow || interruptibility & BLOCKING_BY_NMI != 0 {
                nmi_window = true;
            } else {
                self.vmcs.set_guest(G::ENTRY_EVENT, VALID | KIND_NMI | 2);
                self.machine.mail.nmi_delivered(self.index);
            }
        }
        if let Some(vector) = waiting.vector.filter(|&v| u64::from(v >> 4) > self.task_priority) {
            let on = self.vmcs.guest(G::RFLAGS) & RFLAGS_IF != 0;
            if self.is_injecting() || shadow || !on {
                interrupt_window = true;
            } else {
                self.vmcs.set_guest(G::ENTRY_EVENT, VALID | KIND_EXTERNAL | u64::from(vector));
                self.machine.mail.delivered(self.index, vector);
            }
        }
        let mut primary = self.primary & !(PRIMARY_NMI_WINDOW | PRIMARY_INTERRUPT_WINDOW);
        if nmi_window {
            primary |= PRIMARY_NMI_WINDOW;
        }
        if interrupt_window {
            primary |= PRIMARY_INTERRUPT_WINDOW;
        }
        self.set_primary(primary);
    }

    /// Injects an NMI of the machine's, if one waits, or asks for an exit as soon as it can be.
    pub fn deliver_nmi(&mut self) {
        const BLOCKING: u64 = BLOCKING_BY_STI | BLOCKING_BY_MOV_SS | BLOCKING_BY_NMI;
        let primary = self.primary & !PRIMARY_NMI_WINDOW;
        if !self.machine.nmis.waits(self.index) {
            self.set_primary(primary);
            return;
        }
        if self.is_injecting() || self.vmcs.guest(G::INTERRUPTIBILITY) & BLOCKING != 0 {
            self.set_primary(primary | PRIMARY_NMI_WINDOW);
            return;
        }
        self.vmcs.set_guest(G::ENTRY_EVENT, VALID | KIND_NMI | 2);
        self.machine.nmis.delivered(self.index);
        // It ends every wait.
        self.machine.lives(self.index);
        self.set_primary(primary);
    }

    /// Asks for an exit after the next instruction, or not (monitor trap flag).
    pub fn set_monitor_trap(&mut self, on: bool) {
        let others = self.primary & !PRIMARY_MTF;
        self.set_primary(if on { others | PRIMARY_MTF } else { others });
    }

    fn set_primary(&mut self, primary: u32) {
        if primary != self.primary {
            self.primary = primary;
            // SAFETY: only the three bits above differ from what `prepare` has written.
            unsafe { self.vmcs.set_control(ControlField::PRIMARY, primary.into()) };
        }
    }
}

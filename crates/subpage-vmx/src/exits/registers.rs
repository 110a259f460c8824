//! Control registers and model-specific registers that exit.

use crate::processor::msr::Msr;
use crate::smp::mailbox::Mail;
use crate::stop::Stop;
use crate::vcpu::Vcpu;
use crate::vmx::field::{ExitField, GuestField as G};
use subpage_emulate::Exception;
use subpage_emulate::guest::Register;

/// The guest's APIC base: at its usual address, enabled, in x2APIC mode, for good.
const APIC_BASE: u64 = 0xFEE0_0000 | 1 << 11 | 1 << 10;
/// APIC_BASE bit 8: this is the processor that started first.
const BOOTSTRAP: u64 = 1 << 8;

const X2APIC_ID: u32 = 0x802;
const X2APIC_VERSION: u32 = 0x803;
const X2APIC_TASK_PRIORITY: u32 = 0x808;
const X2APIC_END_OF_INTERRUPT: u32 = 0x80B;
const X2APIC_SPURIOUS: u32 = 0x80F;
const X2APIC_COMMAND: u32 = 0x830;
const X2APIC_SELF: u32 = 0x83F;

/// The register does not exist for the guest, or does not take the value: #GP.
pub(super) struct Refused;

const REGISTERS: [Register; 16] = [
    Register::Rax,
    Register::Rcx,
    Register::Rdx,
    Register::Rbx,
    Register::Rsp,
    Register::Rbp,
    Register::Rsi,
    Register::Rdi,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];

impl Vcpu {
    /// SDM Vol. 3C, "Exit Qualification for Control-Register Accesses".
    pub(super) fn control_register(&mut self) -> Result<(), Stop> {
        let qualification = self.vmcs.exit(ExitField::QUALIFICATION);
        let number = qualification & 0xF;
        let kind = qualification >> 4 & 3;
        let register = REGISTERS[(qualification >> 8 & 0xF) as usize];
        const TO: u64 = 0;
        const FROM: u64 = 1;
        const CLTS: u64 = 2;
        const LMSW: u64 = 3;
        let result = match (kind, number) {
            (TO, 0) => self.set_cr0(self.register(register)),
            (TO, 4) => self.set_cr4(self.register(register)),
            (TO, 8) => {
                self.task_priority = self.register(register) & 0xF;
                self.machine.mail.look(self.index);
                Ok(())
            }
            (FROM, 8) => {
                self.set_register(register, self.task_priority);
                Ok(())
            }
            (CLTS, _) => {
                const TS: u64 = 1 << 3;
                self.set_cr0(self.visible_cr0() & !TS)
            }
            (LMSW, _) => {
                let low = qualification >> 16 & 0xF;
                let old = self.visible_cr0();
                // LMSW cannot clear PE.
                self.set_cr0(old & !0xE | low | old & 1)
            }
            _ => return Err(Stop::Unknown(super::reason::CONTROL_REGISTER)),
        };
        match result {
            Ok(()) => self.skip_instruction(),
            Err(_) => self.inject(Exception::general_protection(0)),
        }
        Ok(())
    }

    /// CR0 as the guest reads it.
    fn visible_cr0(&self) -> u64 {
        use crate::processor::control::{CR0_CD, CR0_NE, CR0_NW};
        const MASK: u64 = CR0_NE | CR0_NW | CR0_CD;
        self.vmcs.guest(G::CR0) & !MASK | self.vmcs.guest(G::CR0_SHADOW) & MASK
    }

    pub(super) fn rdmsr(&mut self) {
        match self.read_msr(low(self.register(Register::Rcx))) {
            Ok(value) => {
                self.set_register(Register::Rax, value & 0xFFFF_FFFF);
                self.set_register(Register::Rdx, value >> 32);
                self.skip_instruction();
            }
            Err(Refused) => self.inject(Exception::general_protection(0)),
        }
    }

    pub(super) fn wrmsr(&mut self) {
        let value = self.register(Register::Rax) & 0xFFFF_FFFF | self.register(Register::Rdx) << 32;
        match self.write_msr(low(self.register(Register::Rcx)), value) {
            Ok(()) => self.skip_instruction(),
            Err(Refused) => self.inject(Exception::general_protection(0)),
        }
    }

    fn read_msr(&self, number: u32) -> Result<u64, Refused> {
        if self.machine.devices.is_some() {
            return self.read_kept_msr(Msr(number));
        }
        Ok(match Msr(number) {
            Msr::APIC_BASE => APIC_BASE | if self.index == 0 { BOOTSTRAP } else { 0 },
            Msr::EFER => self.vmcs.guest(G::EFER),
            Msr::PAT => self.vmcs.guest(G::PAT),
            Msr::BIOS_SIGN_ID | Msr::MTRR_CAP | Msr::MTRR_DEF_TYPE => 0,
            // Locked without VMX; fast strings.
            Msr::FEATURE_CONTROL | Msr::MISC_ENABLE => 1,
            _ => match number {
                X2APIC_ID => self.index as u64,
                // Version 14H, six local vectors.
                X2APIC_VERSION => 0x14 | 5 << 16,
                X2APIC_TASK_PRIORITY => self.task_priority << 4,
                X2APIC_SPURIOUS => self.spurious,
                X2APIC_COMMAND => 0,
                _ => return Err(Refused),
            },
        })
    }

    /// PAT (SDM Vol. 3A, "Page Attribute Table (PAT)").
    pub(super) fn set_pat(&mut self, value: u64) -> Result<(), Refused> {
        let legal = value.to_le_bytes().iter().all(|&kind| matches!(kind, 0 | 1 | 4..=7));
        if !legal {
            return Err(Refused);
        }
        self.vmcs.set_guest(G::PAT, value);
        Ok(())
    }

    fn write_msr(&mut self, number: u32, value: u64) -> Result<(), Refused> {
        if self.machine.devices.is_some() {
            return self.write_kept_msr(Msr(number), value);
        }
        match Msr(number) {
            Msr::APIC_BASE if value | BOOTSTRAP == APIC_BASE | BOOTSTRAP => {}
            Msr::EFER => self.set_efer(value).map_err(|_| Refused)?,
            Msr::PAT => self.set_pat(value)?,
            Msr::BIOS_SIGN_ID => {}
            _ => match number {
                X2APIC_TASK_PRIORITY if value <= 0xFF => {
                    self.task_priority = value >> 4;
                    self.machine.mail.look(self.index);
                }
                X2APIC_END_OF_INTERRUPT if value == 0 => {
                    self.machine.mail.end_of_interrupt(self.index);
                }
                X2APIC_SPURIOUS if value <= 0x1FF => self.spurious = value,
                X2APIC_COMMAND => self.send_message(value)?,
                X2APIC_SELF if (16..=0xFF).contains(&value) => {
                    self.machine.mail.send(self.index, Mail::Fixed(low(value).to_le_bytes()[0]));
                }
                _ => return Err(Refused),
            },
        }
        Ok(())
    }

    /// SDM Vol. 3A, "Interrupt Command Register": destination, shorthand, delivery mode, vector.
    fn send_message(&self, command: u64) -> Result<(), Refused> {
        const LOGICAL: u64 = 1 << 11;
        let vector = low(command).to_le_bytes()[0];
        let mail = match command >> 8 & 7 {
            0 if vector >= 16 => Mail::Fixed(vector),
            4 => Mail::Nmi,
            // Level de-assert is of the past.
            5 if command & 1 << 14 == 0 && command & 1 << 15 != 0 => return Ok(()),
            5 => Mail::Init,
            6 => Mail::StartUp(vector),
            _ => return Err(Refused),
        };
        let destination = command >> 32;
        let shorthand = command >> 18 & 3;
        if shorthand == 0 && command & LOGICAL != 0 {
            return Err(Refused);
        }
        const BROADCAST: u64 = 0xFFFF_FFFF;
        for to in 0..self.machine.processors() {
            let meant = match shorthand {
                0 => destination == to as u64 || destination == BROADCAST,
                1 => to == self.index,
                2 => true,
                _ => to != self.index,
            };
            if meant {
                self.machine.mail.send(to, mail);
                if to != self.index {
                    self.machine.kick(to);
                }
            }
        }
        Ok(())
    }
}

#[allow(clippy::cast_possible_truncation)] // Instructions that use the low half.
const fn low(value: u64) -> u32 {
    value as u32
}

//! I/O ports: what an exit tells, and a console, which is all that a small guest has.

use crate::devices::{PortAccess, Width};
use crate::processor::console;
use crate::vcpu::Vcpu;
use crate::vmx::field::ExitField;
use subpage_emulate::Exception;
use subpage_emulate::guest::Register;

const DEBUG_OUTPUT: u16 = 0xE9;
const UART_FIRST: u16 = 0x3F8;
const UART_LAST: u16 = 0x3FF;
const UART_LINE_STATUS: u16 = 0x3FD;
/// Transmitter and holding register empty.
const UART_IDLE: u32 = 0x60;

/// An exit by IN, OUT, INS or OUTS.
pub(super) struct PortExit {
    pub(super) access: PortAccess,
    /// IN or INS.
    pub(super) input: bool,
    /// INS or OUTS.
    pub(super) string: bool,
}

impl Vcpu {
    /// SDM Vol. 3C, "Exit Qualification for I/O Instructions".
    pub(super) fn port_exit(&self) -> PortExit {
        let qualification = self.vmcs.exit(ExitField::QUALIFICATION);
        let width = match qualification & 7 {
            0 => Width::Byte,
            1 => Width::Word,
            _ => Width::Double,
        };
        #[allow(clippy::cast_possible_truncation)] // The field has 16 bits.
        let port = (qualification >> 16) as u16;
        PortExit {
            access: PortAccess { port, width },
            input: qualification & 1 << 3 != 0,
            string: qualification & 1 << 4 != 0,
        }
    }

    /// Puts what IN has read into the guest's register, the rest of which is kept; 32 bits clear the
    /// upper half, as any write of a 32-bit register does.
    pub(super) fn set_input(&mut self, width: Width, value: u32) {
        let mask = (1_u64 << (u32::from(width.bytes()) * 8)) - 1;
        let rax = self.register(Register::Rax);
        let kept = if width == Width::Double { 0 } else { rax & !mask };
        self.set_register(Register::Rax, kept | u64::from(value) & mask);
    }

    /// Ports that nothing answers read as all ones and take what is written; INS and OUTS are refused,
    /// since they access memory.
    pub(super) fn input_output(&mut self) {
        let PortExit { access: PortAccess { port, width }, input, string } = self.port_exit();
        if string {
            self.inject(Exception::general_protection(0));
            return;
        }
        if input {
            let value = match port {
                // Bochs answers with the port's number: here is a debug output.
                DEBUG_OUTPUT => DEBUG_OUTPUT.into(),
                UART_LINE_STATUS => UART_IDLE,
                UART_FIRST..=UART_LAST => 0,
                _ => u32::MAX,
            };
            self.set_input(width, value);
        } else if matches!(port, DEBUG_OUTPUT | UART_FIRST) {
            let rax = self.register(Register::Rax);
            console::pass_on(&[rax.to_le_bytes()[0]]);
        }
        self.skip_instruction();
    }
}

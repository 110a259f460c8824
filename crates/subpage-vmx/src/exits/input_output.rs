//! I/O ports: a console, and nothing else.

use crate::processor::console;
use crate::vcpu::Vcpu;
use crate::vmx::field::ExitField;
use subpage_emulate::Exception;
use subpage_emulate::guest::Register;

const DEBUG_OUTPUT: u64 = 0xE9;
const UART_FIRST: u64 = 0x3F8;
const UART_LAST: u64 = 0x3FF;
const UART_LINE_STATUS: u64 = 0x3FD;
/// Transmitter and holding register empty.
const UART_IDLE: u64 = 0x60;

impl Vcpu {
    /// SDM Vol. 3C, "Exit Qualification for I/O Instructions". Ports that nothing answers read as
    /// all ones and take what is written; INS and OUTS are refused, since they access memory.
    pub(super) fn input_output(&mut self) {
        let qualification = self.vmcs.exit(ExitField::QUALIFICATION);
        let bytes = (qualification & 7) + 1;
        let input = qualification & 1 << 3 != 0;
        let string = qualification & 1 << 4 != 0;
        let port = qualification >> 16 & 0xFFFF;
        if string {
            self.inject(Exception::general_protection(0));
            return;
        }
        let mask = (1_u64 << (bytes * 8)) - 1;
        let rax = self.register(Register::Rax);
        if input {
            let value = match port {
                // Bochs answers with the port's number: here is a debug output.
                DEBUG_OUTPUT => DEBUG_OUTPUT,
                UART_LINE_STATUS => UART_IDLE,
                UART_FIRST..=UART_LAST => 0,
                _ => mask,
            };
            // A 32-bit result clears the upper half, as any write of a 32-bit register does.
            let kept = if bytes == 4 { 0 } else { rax & !mask };
            self.set_register(Register::Rax, kept | value & mask);
        } else if matches!(port, DEBUG_OUTPUT | UART_FIRST) {
            console::pass_on(&[rax.to_le_bytes()[0]]);
        }
        self.skip_instruction();
    }
}

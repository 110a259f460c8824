//! Where the hypervisor writes its lines: the serial port COM1, and port E9H for emulators.
//!
//! Unsafe for the ports named here, behind which are a UART, an emulator's debug output, an
//! emulator's power switch and the reset register: none of them writes to memory.
#![allow(unsafe_code)]

use core::fmt::{self, Write};

use spin::mutex::TicketMutex;

use super::port;

const UART_DATA: u16 = 0x3F8;
const UART_LINE_STATUS: u16 = 0x3FD;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// Output of Bochs and QEMU.
const DEBUG_OUTPUT: u16 = 0xE9;
/// Bochs ends when it reads "Shutdown" here.
const BOCHS_SHUTDOWN: u16 = 0x8900;

/// How often a byte waits for the transmitter before it is dropped: no UART may be there.
const PATIENCE: u32 = 100_000;

struct Console {
    /// There is no UART, or it has stopped: do not wait for it again.
    uart_is_dead: bool,
}

/// In turns: a guest that prints without end must not keep the last line away.
static CONSOLE: TicketMutex<Console> = TicketMutex::new(Console { uart_is_dead: false });

impl Console {
    fn byte(&mut self, byte: u8) {
        // SAFETY: an emulator's debug output.
        unsafe { port::write(DEBUG_OUTPUT, byte) };
        if self.uart_is_dead {
            return;
        }
        for _ in 0..PATIENCE {
            // SAFETY: a UART's status register.
            if unsafe { port::read(UART_LINE_STATUS) } & TRANSMITTER_EMPTY != 0 {
                // SAFETY: a UART's data register.
                unsafe { port::write(UART_DATA, byte) };
                return;
            }
        }
        self.uart_is_dead = true;
    }
}

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.byte(byte);
        }
        Ok(())
    }
}

/// Prints a line.
pub fn print_line(line: fmt::Arguments<'_>) {
    let mut console = CONSOLE.lock();
    // Writing to the console cannot fail.
    let _ = writeln!(console, "{line}");
}

/// Prints the last line; `silence` stops the other processors for good, none of which holds the
/// console then.
pub fn print_last_line(line: fmt::Arguments<'_>, silence: impl FnOnce()) {
    let mut console = CONSOLE.lock();
    silence();
    // Writing to the console cannot fail.
    let _ = writeln!(console, "{line}");
}

/// Passes on bytes that a guest has written.
pub fn pass_on(bytes: &[u8]) {
    let mut console = CONSOLE.lock();
    for &byte in bytes {
        console.byte(byte);
    }
}

/// Ends an emulator; on a real machine, halts this processor for good.
pub fn end_machine() -> ! {
    for byte in *b"Shutdown" {
        // SAFETY: an emulator's power switch; no device answers there on a real machine.
        unsafe { port::write(BOCHS_SHUTDOWN, byte) };
    }
    loop {
        super::control::halt();
    }
}

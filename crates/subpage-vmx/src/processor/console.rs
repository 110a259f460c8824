//! Where the hypervisor writes its lines: a serial port, and port E9H for emulators. The serial port is
//! COM1, unless the guest has it.
//!
//! The text of a guest without devices goes there, too. Each of its lines begins with [`GUEST_MARK`], and no line of the
//! hypervisor does: a guest cannot forge a result.
//!
//! Unsafe for the ports named here, behind which are a UART, an emulator's debug output, an
//! emulator's power switch and the reset register: none of them writes to memory.
#![allow(unsafe_code)]

use core::fmt::{self, Write};

use spin::mutex::TicketMutex;

use super::port;

/// First port of the first UART.
pub const COM1: u16 = 0x3F8;
/// Of the second one.
pub const COM2: u16 = 0x2F8;
// Registers of a UART, from its first port on.
const INTERRUPT_ENABLE: u16 = 1;
const FIFO_CONTROL: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// The last bit has left it.
const TRANSMITTER_IDLE: u8 = 1 << 6;
/// Output of Bochs and QEMU.
const DEBUG_OUTPUT: u16 = 0xE9;
/// Bochs ends when it reads "Shutdown" here.
const BOCHS_SHUTDOWN: u16 = 0x8900;

/// How often a byte waits for the transmitter before it is dropped: no UART may be there.
const PATIENCE: u32 = 100_000;

/// What stands at the start of each line of a guest, and of no other.
pub const GUEST_MARK: &str = "guest| ";

struct Console {
    /// First port of the UART; `None` if none is to be used, there is none, or it has stopped.
    uart: Option<u16>,
    guest: GuestText,
}

/// In turns: a guest that prints without end must not keep the last line away.
static CONSOLE: TicketMutex<Console> =
    TicketMutex::new(Console { uart: Some(COM1), guest: GuestText::new() });

/// Where the guest's text stands.
struct GuestText {
    /// In a line that it has not ended.
    in_line: bool,
    /// Behind a carriage return in a line, which ends that line unless a line feed follows: what comes
    /// next would be seen in place of the mark.
    returned: bool,
}

impl GuestText {
    const fn new() -> Self {
        Self { in_line: false, returned: false }
    }

    /// Puts out a byte of the guest; what is neither printable ASCII, a tab nor the end of a line, as
    /// `\xNN`.
    fn byte(&mut self, byte: u8, put: &mut dyn FnMut(u8)) {
        match byte {
            b'\n' => {
                self.begin(put);
                self.end_line(put);
            }
            b'\r' => self.returned = self.in_line,
            _ => {
                if self.returned {
                    self.end_line(put);
                }
                self.begin(put);
                if byte == b'\t' || (b' '..=b'~').contains(&byte) {
                    put(byte);
                    return;
                }
                const DIGITS: &[u8; 16] = b"0123456789abcdef";
                let digits = [byte >> 4, byte & 15].map(|digit| DIGITS[usize::from(digit)]);
                b"\\x".iter().chain(&digits).for_each(|&byte| put(byte));
            }
        }
    }

    fn begin(&mut self, put: &mut dyn FnMut(u8)) {
        if !self.in_line {
            self.in_line = true;
            GUEST_MARK.bytes().for_each(put);
        }
    }

    /// Ends the line that the guest is in, if it is in one.
    fn end_line(&mut self, put: &mut dyn FnMut(u8)) {
        if self.in_line {
            put(b'\n');
        }
        *self = Self::new();
    }
}

impl Console {
    fn byte(&mut self, byte: u8) {
        // SAFETY: an emulator's debug output.
        unsafe { port::write(DEBUG_OUTPUT, byte) };
        let Some(uart) = self.uart else { return };
        for _ in 0..PATIENCE {
            // SAFETY: a UART's status register.
            if unsafe { port::read(uart + LINE_STATUS) } & TRANSMITTER_EMPTY != 0 {
                // SAFETY: a UART's data register.
                unsafe { port::write(uart, byte) };
                return;
            }
        }
        self.uart = None;
    }

    /// Does `work` with the guest's text and with what puts out a byte.
    fn with_guest(&mut self, work: impl FnOnce(&mut GuestText, &mut dyn FnMut(u8))) {
        let mut guest = core::mem::replace(&mut self.guest, GuestText::new());
        work(&mut guest, &mut |byte| self.byte(byte));
        self.guest = guest;
    }

    /// Prints a line of the hypervisor.
    fn line(&mut self, line: fmt::Arguments<'_>) {
        self.with_guest(GuestText::end_line);
        // Writing to the console cannot fail.
        let _ = writeln!(self, "{line}");
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

/// Writes to another UART from now on, whose first port is given, or to none.
pub fn use_uart(uart: Option<u16>) {
    let mut console = CONSOLE.lock();
    if let Some(base) = uart.filter(|_| console.uart != uart) {
        // 115,200 bits a second, eight bits and no parity, FIFO, no interrupt.
        for (register, value) in [
            (INTERRUPT_ENABLE, 0),
            (LINE_CONTROL, 0x80),
            (0, 1),
            (1, 0),
            (LINE_CONTROL, 3),
            (FIFO_CONTROL, 0xC7),
            (MODEM_CONTROL, 3),
        ] {
            // SAFETY: registers of a UART.
            unsafe { port::write(base + register, value) };
        }
    }
    console.uart = uart;
}

/// Prints a line.
pub fn print_line(line: fmt::Arguments<'_>) {
    CONSOLE.lock().line(line);
}

/// Prints the last line; `silence` stops the other processors for good, none of which holds the
/// console then.
pub fn print_last_line(line: fmt::Arguments<'_>, silence: impl FnOnce()) {
    let mut console = CONSOLE.lock();
    silence();
    console.line(line);
}

/// Passes on bytes that a guest has written.
pub fn pass_on(bytes: &[u8]) {
    let mut console = CONSOLE.lock();
    console.with_guest(|guest, put| {
        for &byte in bytes {
            guest.byte(byte, put);
        }
    });
}

/// Ends an emulator once the serial line is silent; returns on a real machine.
pub fn end_emulator() {
    // A processor that was silenced may wait for its turn, for ever.
    if let Some(uart) = CONSOLE.try_lock().and_then(|console| console.uart) {
        for _ in 0..PATIENCE {
            // SAFETY: a UART's status register.
            if unsafe { port::read(uart + LINE_STATUS) } & TRANSMITTER_IDLE != 0 {
                break;
            }
        }
    }
    for byte in *b"Shutdown" {
        // SAFETY: an emulator's power switch; no device answers there on a real machine.
        unsafe { port::write(BOCHS_SHUTDOWN, byte) };
    }
}

/// Ends an emulator; on a real machine, halts this processor for good.
pub fn end_machine() -> ! {
    end_emulator();
    loop {
        super::control::halt();
    }
}

#[cfg(test)]
mod tests {
    use std::format;
    use std::string::String;

    use super::*;

    fn shown(text: &[u8]) -> String {
        let (mut guest, mut shown) = (GuestText::new(), String::new());
        let mut put = |byte: u8| shown.push(char::from(byte));
        for &byte in text {
            guest.byte(byte, &mut put);
        }
        guest.end_line(&mut put);
        shown
    }

    #[test]
    fn each_line_of_a_guest_has_its_mark() {
        assert_eq!(shown(b""), "");
        assert_eq!(
            shown(b"one\r\ntwo\n\nthree"),
            "guest| one\nguest| two\nguest| \nguest| three\n"
        );
    }

    /// Whatever a guest sends, no line and no terminal shows it as the hypervisor's.
    #[test]
    fn a_guest_forges_no_line() {
        let forged = "hypervisor: stopped: guest ended with status 0";
        for before in
            ["", "\n", "x\r", "\r", "\x1b[1G", "\x08\x08", "\u{202e}", "\u{9b}1G", "\x0c", "\0"]
        {
            let text = shown(format!("{before}{forged}\n").as_bytes());
            assert!(text.lines().all(|line| line.starts_with(GUEST_MARK)), "{text:?}");
            assert!(text.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)));
        }
        assert_eq!(shown(b"\x1b[2J\xff"), "guest| \\x1b[2J\\xff\n");
    }
}

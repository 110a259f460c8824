//! Ports: all are the guest's but those by which the machine is reset, and the hypervisor's console.
//!
//! An access of several bytes exits if one of them is kept, so the other bytes come here as well.

/// Ports by which a guest can reset the machine: the keyboard controller, system control port A, the
/// reset control register.
const RESET_PORTS: [u16; 3] = [0x64, 0x92, 0xCF9];

/// Output of Bochs and QEMU, where the hypervisor writes its lines.
const DEBUG_OUTPUT: u16 = 0xE9;

/// How many ports an access reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// AL.
    Byte,
    /// AX.
    Word,
    /// EAX.
    Double,
}

/// An access to ports that does not come from memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortAccess {
    /// The first port.
    pub port: u16,
    /// How many there are from it on.
    pub width: Width,
}

/// What becomes of a guest's access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The machine gets it as it is.
    Pass,
    /// It resets the machine by this port.
    Reset(u16),
    /// It reaches the hypervisor's console: the machine does not get it.
    Console,
}

/// Where PCI's configuration is chosen, by all four bytes at once; one byte of it is another register.
const PCI_ADDRESS: PortAccess = PortAccess { port: 0xCF8, width: Width::Double };

impl Width {
    /// How many ports.
    pub const fn bytes(self) -> u8 {
        match self {
            Self::Byte => 1,
            Self::Word => 2,
            Self::Double => 4,
        }
    }
}

impl PortAccess {
    /// What becomes of it; `written` is `None` if it reads. The hypervisor's UART, if it has one, is at
    /// `uart`.
    pub fn verdict(self, written: Option<u32>, uart: Option<u16>) -> Verdict {
        let is_console = |port| {
            port == DEBUG_OUTPUT || uart.is_some_and(|base| (base..base + 8).contains(&port))
        };
        if self.ports().any(is_console) {
            return Verdict::Console;
        }
        let Some(value) = written.filter(|_| self != PCI_ADDRESS) else { return Verdict::Pass };
        let mut bytes = self.ports().zip(value.to_le_bytes());
        bytes
            .find(|&(port, byte)| is_reset(port, byte))
            .map_or(Verdict::Pass, |(port, _)| Verdict::Reset(port))
    }

    /// The ports that it reaches; there are none behind FFFFH.
    fn ports(self) -> impl Iterator<Item = u16> {
        (0..u16::from(self.width.bytes())).map_while(move |byte| self.port.checked_add(byte))
    }
}

/// Whether a byte that is written to a port resets the machine.
const fn is_reset(port: u16, value: u8) -> bool {
    match port {
        // The keyboard controller pulses output lines whose bit is 0; line 0 is the reset.
        0x64 => value & 0xF1 == 0xF0,
        0x92 => value & 1 != 0,
        0xCF9 => value & 4 != 0,
        _ => false,
    }
}

/// The ports that exit: those of a reset and those of the console, whose UART, if it has one, is at
/// `uart`.
pub fn own_ports(uart: Option<u16>) -> impl Iterator<Item = u16> {
    let uart = uart.into_iter().flat_map(|base| base..base + 8);
    RESET_PORTS.into_iter().chain([DEBUG_OUTPUT]).chain(uart)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_resets_the_machine_is_known() {
        for (port, value, expected) in [
            (0x64, 0xFE, true),
            (0x64, 0xF0, true),
            (0x64, 0xFF, false),
            (0x64, 0xAE, false),
            (0x92, 0x01, true),
            (0x92, 0x02, false),
            (0xCF9, 0x06, true),
            (0xCF9, 0x02, false),
            (0x70, 0xFE, false),
        ] {
            assert_eq!(is_reset(port, value), expected, "{value:#x} to {port:#x}");
        }
    }

    fn verdict(port: u16, width: Width, written: Option<u32>) -> Verdict {
        PortAccess { port, width }.verdict(written, Some(0x2F8))
    }

    #[test]
    fn several_bytes_reach_the_machine_if_none_is_the_hypervisors() {
        use Verdict::{Console, Pass, Reset};
        use Width::{Byte, Double, Word};
        for (port, width, written, expected) in [
            // PCI's address, whose second byte is no reset, and everything that Linux tries there.
            (0xCF8, Double, Some(0x8000_0600), Pass),
            (0xCF8, Double, None, Pass),
            (0xCFB, Byte, Some(1), Pass),
            (0xCF8, Byte, Some(0), Pass),
            (0xCF9, Byte, Some(2), Pass),
            (0xCF9, Byte, Some(6), Reset(0xCF9)),
            (0xCF8, Word, Some(0x0600), Reset(0xCF9)),
            (0xCF7, Double, Some(0x06_0000), Reset(0xCF9)),
            (0x64, Word, Some(0x00AE), Pass),
            (0x64, Word, Some(0x00FE), Reset(0x64)),
            (0x60, Double, None, Pass),
            (0x61, Double, Some(0xFE00_0000), Reset(0x64)),
            (0x91, Word, Some(0x0100), Reset(0x92)),
            (0xE9, Byte, Some(0x41), Console),
            (0xE8, Word, Some(0x4100), Console),
            (0xE6, Double, None, Console),
            (0x2F8, Byte, Some(0x41), Console),
            (0x2F5, Double, Some(0), Console),
            (0x2FF, Word, None, Console),
            (0xFFFF, Double, None, Pass),
        ] {
            assert_eq!(verdict(port, width, written), expected, "{port:#x} {width:?} {written:x?}");
        }
        let com2 = PortAccess { port: 0x2F8, width: Byte };
        assert_eq!(com2.verdict(None, None), Pass);
    }

    #[test]
    fn the_first_serial_line_is_the_guests() {
        assert!(own_ports(None).all(|port| !(0x3F8..0x400).contains(&port)));
        assert!(own_ports(Some(0x2F8)).any(|port| port == 0x2FD));
        assert_eq!(own_ports(Some(0x2F8)).count(), 12);
    }
}

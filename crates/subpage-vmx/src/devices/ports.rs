//! Ports: all are the guest's but those by which the machine is reset or suspended to memory, and the
//! hypervisor's console.
//!
//! An access of several bytes exits if one of them is kept, so the other bytes come here as well.

use arrayvec::ArrayVec;

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

/// A byte by which ACPI's sleep states are entered: the second one of PM1a_CNT or PM1b_CNT, or the sleep
/// control register, which has the same bits there (ACPI 6.5, "PM1 Control Registers").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SleepControl {
    /// Its port.
    pub port: u16,
    /// Bit N is set if the sleep type N suspends to memory (S3).
    pub suspend: u8,
}

/// Most bytes of that kind.
pub const MOST_SLEEP: usize = 3;

/// The ports that depend on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Own {
    /// First port of the hypervisor's UART, if it has one.
    pub uart: Option<u16>,
    /// Where the machine is suspended.
    pub sleep: ArrayVec<SleepControl, MOST_SLEEP>,
}

/// What becomes of a guest's access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The machine gets it as it is.
    Pass,
    /// It resets the machine by this port.
    Reset(u16),
    /// It suspends the machine to memory, from which the firmware would resume the guest by itself.
    Suspend(u16),
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
    /// What becomes of it; `written` is `None` if it reads.
    pub fn verdict(self, written: Option<u32>, own: &Own) -> Verdict {
        let uart = own.uart;
        let is_console = |port| {
            port == DEBUG_OUTPUT || uart.is_some_and(|base| (base..base + 8).contains(&port))
        };
        if self.ports().any(is_console) {
            return Verdict::Console;
        }
        let Some(value) = written.filter(|_| self != PCI_ADDRESS) else { return Verdict::Pass };
        let mut bytes = self.ports().zip(value.to_le_bytes());
        let verdict = bytes.find_map(|(port, byte)| {
            if is_reset(port, byte) {
                return Some(Verdict::Reset(port));
            }
            let control = own.sleep.iter().find(|control| control.port == port)?;
            control.is_suspend(byte).then_some(Verdict::Suspend(port))
        });
        verdict.unwrap_or(Verdict::Pass)
    }

    /// The ports that it reaches; there are none behind FFFFH.
    fn ports(self) -> impl Iterator<Item = u16> {
        (0..u16::from(self.width.bytes())).map_while(move |byte| self.port.checked_add(byte))
    }
}

impl SleepControl {
    const fn is_suspend(self, byte: u8) -> bool {
        const ENABLE: u8 = 1 << 5;
        let kind = byte >> 2 & 7;
        byte & ENABLE != 0 && self.suspend & 1 << kind != 0
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

/// The ports that exit: those of a reset and of sleep, and those of the console.
pub fn own_ports(own: &Own) -> impl Iterator<Item = u16> {
    let uart = own.uart.into_iter().flat_map(|base| base..base + 8);
    let sleep = own.sleep.iter().map(|control| control.port);
    RESET_PORTS.into_iter().chain([DEBUG_OUTPUT]).chain(uart).chain(sleep)
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

    /// A UART, and a PM1a_CNT at 1804H whose type 5 is S3.
    fn own() -> Own {
        let sleep = [SleepControl { port: 0x1805, suspend: 1 << 5 }];
        Own { uart: Some(0x2F8), sleep: sleep.into_iter().collect() }
    }

    #[test]
    fn suspend_to_memory_is_known_and_other_sleep_is_the_guests() {
        use Width::{Byte, Double, Word};
        for (port, width, written, expected) in [
            // SLP_EN with type 5, as Linux writes it; before it the type alone.
            (0x1804, Word, 0x3401, Verdict::Suspend(0x1805)),
            (0x1804, Word, 0x1401, Verdict::Pass),
            (0x1805, Byte, 0x34, Verdict::Suspend(0x1805)),
            (0x1802, Double, 0x3401_0000, Verdict::Suspend(0x1805)),
            (0x1803, Double, 0x0034_0100, Verdict::Suspend(0x1805)),
            // Power-off.
            (0x1804, Word, 0x3C01, Verdict::Pass),
            (0x1806, Byte, 0x34, Verdict::Pass),
        ] {
            assert_eq!(verdict(port, width, Some(written)), expected, "{written:#x} to {port:#x}");
        }
        assert_eq!(verdict(0x1804, Word, None), Verdict::Pass);
        assert!(own_ports(&own()).any(|port| port == 0x1805));
    }

    fn verdict(port: u16, width: Width, written: Option<u32>) -> Verdict {
        PortAccess { port, width }.verdict(written, &own())
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
        assert_eq!(com2.verdict(None, &Own::default()), Pass);
    }

    #[test]
    fn the_first_serial_line_is_the_guests() {
        assert!(own_ports(&Own::default()).all(|port| !(0x3F8..0x400).contains(&port)));
        assert!(own_ports(&own()).any(|port| port == 0x2FD));
        assert_eq!(own_ports(&own()).count(), 13);
    }
}

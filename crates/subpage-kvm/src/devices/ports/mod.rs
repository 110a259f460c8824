//! Which device a port belongs to.

use std::fmt;
use std::io::Write;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

use super::acpi_ports::{AcpiRegisters, AcpiState, RESET};
use super::cmos::{Cmos, CmosState, REGISTERS};
use super::console_tail::{ConsoleTail, PanicReport};
use super::pci::{PciBus, PciState};
use super::serial::{FIFO_BYTES, Serial, SerialState};
use crate::memory::HOLE_START;

const COM1: u16 = 0x3f8;
const COM1_LAST: u16 = 0x3ff;
const KEYBOARD_DATA: u16 = 0x60;
const KEYBOARD_COMMAND: u16 = 0x64;
const CMOS_INDEX: u16 = 0x70;
const CMOS_DATA: u16 = 0x71;
const EXIT: u16 = 0xf4;
const ARM: u16 = 0xf5;

/// The keyboard controller pulses the processor's reset line.
const KEYBOARD_RESET: u8 = 0xfe;
/// No byte waits, and commands are taken.
const KEYBOARD_IDLE: u8 = 0;
const RESET_NOW: u8 = 1 << 2;

/// What a write to a port asks of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum PortEffect {
    /// Nothing.
    None,
    /// To begin anew.
    Reset,
    /// To end.
    PowerOff,
    /// To put rules in force that wait for it.
    Arm,
    /// To end with a code.
    Exit {
        /// The byte that was written.
        code: u8,
    },
}

/// Why a saved state is not taken; nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// The serial port received more than it holds.
    #[error("the saved serial port holds {bytes} received bytes, {most} are possible")]
    Serial {
        /// Bytes that it claims.
        bytes: usize,
        /// How many fit.
        most: usize,
    },
    /// The clock has other registers.
    #[error("the saved real-time clock has {registers} registers, not {expected}")]
    Cmos {
        /// Registers that it claims.
        registers: usize,
        /// How many it has.
        expected: usize,
    },
}

/// The state of all devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortsState {
    serial: SerialState,
    cmos: CmosState,
    /// Absent in files of versions that had no such registers.
    #[serde(default)]
    acpi: AcpiState,
    #[serde(default)]
    pci: PciState,
}

/// All devices behind ports.
pub struct Ports {
    serial: Serial,
    console: ConsoleTail,
    cmos: Cmos,
    acpi: AcpiRegisters,
    pci: PciBus,
}

impl Ports {
    /// Devices as after power-on. `serial_out` takes what the guest sends to COM1, byte by byte,
    /// each flushed; while it blocks, the guest does. `serial_irq` is signalled for interrupt 4.
    /// `memory` is the guest's memory in bytes.
    pub fn new(serial_out: Box<dyn Write + Send>, serial_irq: EventFd, memory: u64) -> Self {
        let low = memory.min(HOLE_START);
        let console = ConsoleTail::default();
        Self {
            serial: Serial::new(console.remembering(serial_out), serial_irq),
            console,
            cmos: Cmos::new(low, memory - low),
            acpi: AcpiRegisters::new(),
            pci: PciBus::default(),
        }
    }

    /// An `out` of 1, 2 or 4 bytes. Each element of a string instruction is a call of its own.
    pub fn write(&mut self, port: u16, data: &[u8]) -> PortEffect {
        match (port, data) {
            (ARM, _) => PortEffect::Arm,
            (EXIT, &[code, ..]) => PortEffect::Exit { code },
            (port, data) if AcpiRegisters::has(port) => {
                if self.acpi.write(port, data) {
                    PortEffect::PowerOff
                } else {
                    PortEffect::None
                }
            }
            // Only a byte reaches the reset register: wider ones configure the PCI bus around it.
            (RESET, &[value]) if value & RESET_NOW != 0 => PortEffect::Reset,
            (port, data) if self.pci.write(port, data) => PortEffect::None,
            _ => {
                let mut effect = PortEffect::None;
                for (port, &value) in bytes_of(port).zip(data) {
                    if self.write_byte(port, value) == PortEffect::Reset {
                        effect = PortEffect::Reset;
                    }
                }
                effect
            }
        }
    }

    /// An `in` of 1, 2 or 4 bytes. Each element of a string instruction is a call of its own.
    pub fn read(&mut self, port: u16, data: &mut [u8]) {
        crate::devices::read_open_bus(data);
        if AcpiRegisters::has(port) {
            return self.acpi.read(port, data);
        }
        if self.pci.read(port, data) {
            return;
        }
        for (port, value) in bytes_of(port).zip(data) {
            if let Some(read) = self.read_byte(port) {
                *value = read;
            }
        }
    }

    /// Gives COM1 what somebody typed; returns how many bytes it had room for, from the first.
    pub fn input(&mut self, bytes: &[u8]) -> usize {
        self.serial.receive(bytes)
    }

    /// Bytes that [`Self::input`] would take now, unless a driver tests the port by looping it back.
    pub fn input_room(&self) -> usize {
        self.serial.room()
    }

    /// Bytes that the guest sent to COM1 and that could not be written.
    pub fn lost_output(&self) -> u64 {
        self.serial.lost()
    }

    /// What the guest's kernel has said on the console about a panic.
    pub(crate) fn panic(&self) -> Option<PanicReport> {
        self.console.panic()
    }

    /// All devices as after a reset of the guest: COM1 as at power-on, the clock's memory as it was.
    pub fn reset(&mut self) {
        self.serial.reset();
        self.console.forget();
        self.cmos.select(0);
        self.acpi.reset();
        self.pci.reset();
    }

    /// The state of all devices. Output is not part of it: it has left.
    pub fn save(&self) -> PortsState {
        PortsState {
            serial: self.serial.save(),
            cmos: self.cmos.save(),
            acpi: self.acpi.save(),
            pci: self.pci.save(),
        }
    }

    /// Takes a state. A pending interrupt is signalled once more.
    pub fn restore(&mut self, state: &PortsState) -> Result<(), RestoreError> {
        let (bytes, registers) = (state.serial.received(), state.cmos.registers());
        if bytes > FIFO_BYTES {
            return Err(RestoreError::Serial { bytes, most: FIFO_BYTES });
        }
        if registers != REGISTERS {
            return Err(RestoreError::Cmos { registers, expected: REGISTERS });
        }
        self.serial.restore(&state.serial);
        self.cmos.restore(&state.cmos);
        self.acpi.restore(&state.acpi);
        self.pci.restore(state.pci);
        Ok(())
    }

    fn write_byte(&mut self, port: u16, value: u8) -> PortEffect {
        match port {
            COM1..=COM1_LAST => self.serial.write(register(port), value),
            KEYBOARD_COMMAND if value == KEYBOARD_RESET => return PortEffect::Reset,
            CMOS_INDEX => self.cmos.select(value),
            CMOS_DATA => self.cmos.write(value),
            _ => {}
        }
        PortEffect::None
    }

    fn read_byte(&mut self, port: u16) -> Option<u8> {
        match port {
            COM1..=COM1_LAST => Some(self.serial.read(register(port))),
            KEYBOARD_DATA | KEYBOARD_COMMAND => Some(KEYBOARD_IDLE),
            CMOS_DATA => Some(self.cmos.read()),
            _ => None,
        }
    }
}

impl fmt::Debug for Ports {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Ports").field("lost_output", &self.lost_output()).finish_non_exhaustive()
    }
}

/// The ports that the bytes of a wide access go to: all these devices are 8 bits wide.
fn bytes_of(port: u16) -> impl Iterator<Item = u16> {
    port..=u16::MAX
}

fn register(port: u16) -> u8 {
    u8::try_from(port - COM1).expect("one of eight")
}

#[cfg(test)]
mod tests;

//! Devices behind ports, and what answers where there are none.
//!
//! | ports | device |
//! |---|---|
//! | 0x3f8..=0x3ff | COM1, a 16550A on interrupt 4 |
//! | 0x60, 0x64 | keyboard controller without a keyboard; command 0xfe resets |
//! | 0x70, 0x71 | real-time clock (UTC of the host) and CMOS memory |
//! | 0xf4 | a byte written here ends the guest with it as exit code |
//! | 0xf5 | any write puts rules in force that wait for it |
//! | 0x600..=0x60b | ACPI: events (none occurs), control (off by sleep type 0), timer |
//! | 0xcf9 | reset, if bit 2 is written as 1 |
//! | 0xcf8, 0xcfc..=0xcff | a PCI bus with its bridge alone |
//!
//! Every other port, and every address that is no memory, reads as ones and ignores writes.

pub(crate) mod acpi_ports;
mod cmos;
mod console_tail;
mod pci;
mod ports;
mod serial;

pub use acpi_ports::AcpiState;
pub use cmos::CmosState;
pub(crate) use console_tail::PanicReport;
pub use pci::PciState;
pub use ports::{PortEffect, Ports, PortsState, RestoreError};
pub use serial::SerialState;

/// What a read gives where nothing answers: ones.
pub fn read_open_bus(data: &mut [u8]) {
    data.fill(0xff);
}

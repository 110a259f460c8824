//! Devices behind ports, and what answers where there are none.
//!
//! | ports | device |
//! |---|---|
//! | 0x3f8..=0x3ff | COM1, a 16550A on interrupt 4 |
//! | 0x60, 0x64 | keyboard controller without a keyboard; command 0xfe resets |
//! | 0x70, 0x71 | real-time clock (UTC of the host) and CMOS memory |
//! | 0xf4 | a byte written here ends the guest with it as exit code |
//! | 0x604 | the word 0x2000 powers off |
//! | 0xcf9 | reset, if bit 2 is written as 1 |
//! | 0xcf8..=0xcff | no PCI bus |
//!
//! Every other port, and every address that is no memory, reads as ones and ignores writes.

mod cmos;
mod ports;
mod serial;

pub use cmos::CmosState;
pub use ports::{PortEffect, Ports, PortsState, RestoreError};
pub use serial::SerialState;

/// What a read gives where nothing answers: ones.
pub fn read_open_bus(data: &mut [u8]) {
    data.fill(0xff);
}

//! A PCI bus with nothing on it but the bridge to the processor (PCI Local Bus Specification 3.0,
//! configuration mechanism 1): kernels complain where they find no bus at all.

use serde::{Deserialize, Serialize};

/// The address of a register, 32 bits.
const ADDRESS: u16 = 0xcf8;
/// The register, four bytes.
const DATA: u16 = 0xcfc;
const DATA_LAST: u16 = 0xcff;

/// The address is one of configuration space.
const ENABLE: u32 = 1 << 31;
/// Bits of an address that a guest can set.
const KEPT: u32 = ENABLE | 0x00ff_fffc;

/// The bridge's first registers: maker and device, as other VMMs on KVM have it; command and status;
/// revision and class, a host bridge; a single function. The others are 0.
const BRIDGE: [u32; 4] = [0x0d57_8086, 0, 0x0600_0000, 0];
/// Registers of a function, in words.
const WORDS: usize = 64;

/// The address that was written last.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciState {
    address: u32,
}

/// The bus.
#[derive(Debug, Default)]
pub(super) struct PciBus {
    address: u32,
}

impl PciBus {
    /// Writes the address; a register is never changed. True if the port is one of the bus's.
    pub(super) fn write(&mut self, port: u16, data: &[u8]) -> bool {
        match (port, data) {
            (ADDRESS, &[a, b, c, d]) => {
                self.address = u32::from_le_bytes([a, b, c, d]) & KEPT;
                true
            }
            (DATA..=DATA_LAST, _) => true,
            // Narrower writes there are of other devices.
            _ => false,
        }
    }

    /// Reads the address, or bytes of the register. True if the port is one of the bus's.
    pub(super) fn read(&self, port: u16, data: &mut [u8]) -> bool {
        let (word, first) = match (port, data.len()) {
            (ADDRESS, 4) => (self.address, ADDRESS),
            (DATA..=DATA_LAST, _) => (self.register(), DATA),
            _ => return false,
        };
        let from = word.to_le_bytes().into_iter().skip(usize::from(port - first));
        data.iter_mut().zip(from).for_each(|(byte, from)| *byte = from);
        true
    }

    /// The register at the address; ones where there is no function.
    fn register(&self) -> u32 {
        let function = self.address & !(ENABLE | 0xfc);
        if self.address & ENABLE == 0 || function != 0 {
            return u32::MAX;
        }
        let word = (self.address >> 2) as usize % WORDS;
        BRIDGE.get(word).copied().unwrap_or(0)
    }

    pub(super) fn reset(&mut self) {
        self.address = 0;
    }

    pub(super) const fn save(&self) -> PciState {
        PciState { address: self.address }
    }

    pub(super) fn restore(&mut self, state: PciState) {
        self.address = state.address & KEPT;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn register(bus: &mut PciBus, address: u32) -> u32 {
        assert!(bus.write(ADDRESS, &address.to_le_bytes()));
        let mut data = [0; 4];
        assert!(bus.read(DATA, &mut data));
        u32::from_le_bytes(data)
    }

    #[test]
    fn there_is_a_bridge_and_nothing_else() {
        let mut bus = PciBus::default();
        assert_eq!(register(&mut bus, ENABLE), 0x0d57_8086);
        assert_eq!(register(&mut bus, ENABLE | 8) >> 16, 0x0600, "a host bridge");
        assert_eq!(register(&mut bus, ENABLE | 0xfc), 0);
        for none in [8, ENABLE | 1 << 8, ENABLE | 1 << 11, ENABLE | 1 << 16] {
            assert_eq!(register(&mut bus, none), u32::MAX, "{none:#x}");
        }
    }

    #[test]
    fn the_address_reads_as_it_was_written_and_bytes_are_found() {
        let mut bus = PciBus::default();
        assert!(bus.write(ADDRESS, &0xffff_ffff_u32.to_le_bytes()));
        let mut data = [0; 4];
        assert!(bus.read(ADDRESS, &mut data));
        assert_eq!(u32::from_le_bytes(data), 0x80ff_fffc);
        assert!(bus.write(ADDRESS, &ENABLE.to_le_bytes()));
        let mut half = [0xff; 2];
        assert!(bus.read(DATA + 2, &mut half));
        assert_eq!(half, [0x57, 0x0d]);
        let mut beyond = [0xff; 4];
        assert!(bus.read(DATA_LAST, &mut beyond));
        assert_eq!(beyond, [0x0d, 0xff, 0xff, 0xff]);
        assert!(!bus.read(ADDRESS + 1, &mut [0]), "the reset register");
    }
}

//! Tables of ACPI for a machine in Bochs without firmware: its processors and interrupt controllers, and
//! no more (ACPI 6.5, "ACPI Software Programming Model").

/// The tables as they lie in memory.
#[derive(Clone, Debug)]
pub(super) struct AcpiTables {
    bytes: Vec<u8>,
    pointer: [u8; 36],
}

const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
const HEADER_BYTES: usize = 36;

impl AcpiTables {
    /// Tables of so many processors, which will lie from `base` on.
    pub(super) fn of(processors: u8, base: u64) -> Self {
        let interrupts = table(*b"APIC", 5, &interrupt_controllers(processors));
        let mut bytes = table(*b"XSDT", 1, &(base + 64).to_le_bytes());
        bytes.resize(64, 0);
        bytes.extend(interrupts);
        Self { bytes, pointer: pointer(base) }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The root pointer, of which a boot loader has a copy.
    pub(super) fn pointer(&self) -> &[u8] {
        &self.pointer
    }
}

/// A table with its header ("System Description Table Header").
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER_BYTES + body.len()).expect("a small table");
    let mut table = signature.to_vec();
    table.extend(length.to_le_bytes());
    table.extend([revision, 0]);
    table.extend(b"SUBPAGBOCHS   ");
    table.extend([1, 0, 0, 0]);
    table.extend(b"SUBP");
    table.extend([1, 0, 0, 0]);
    table.extend(body);
    table[9] = checksum(&table);
    table
}

/// What makes the sum of all bytes 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_sub(byte))
}

/// "Root System Description Pointer (RSDP) Structure".
fn pointer(table: u64) -> [u8; 36] {
    let mut pointer = [0; 36];
    pointer[..8].copy_from_slice(b"RSD PTR ");
    pointer[9..15].copy_from_slice(b"SUBPAG");
    pointer[15] = 2;
    pointer[20] = 36;
    pointer[24..32].copy_from_slice(&table.to_le_bytes());
    pointer[8] = checksum(&pointer[..20]);
    pointer[32] = checksum(&pointer);
    pointer
}

/// "Multiple APIC Description Table (MADT)": Bochs gives the processors the numbers 0, 1, ... and the
/// I/O APIC the next one, and connects the timer (ISA interrupt 0) to pin 2 of it.
fn interrupt_controllers(processors: u8) -> Vec<u8> {
    const HAS_PICS: u32 = 1;
    const ENABLED: u32 = 1;
    let mut body = [LOCAL_APIC.to_le_bytes(), HAS_PICS.to_le_bytes()].concat();
    for number in 0..processors {
        body.extend([0, 8, number, number]);
        body.extend(ENABLED.to_le_bytes());
    }
    body.extend([1, 12, processors, 0]);
    body.extend(IO_APIC.to_le_bytes());
    body.extend([0; 4]);
    // Interrupt source override: bus ISA, source 0, global interrupt 2, as the bus has it.
    body.extend([2, 10, 0, 0, 2, 0, 0, 0, 0, 0]);
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum: u8, &byte| sum.wrapping_add(byte))
    }

    #[test]
    fn the_pointer_leads_to_all_tables() {
        let base = 0x9_f000;
        let tables = AcpiTables::of(2, base);
        let pointer = tables.pointer();
        assert_eq!((sum(&pointer[..20]), sum(pointer)), (0, 0));
        assert_eq!(pointer[24..32], base.to_le_bytes());
        let bytes = tables.bytes();
        assert_eq!((&bytes[..4], bytes[4], sum(&bytes[..44])), (&b"XSDT"[..], 44, 0));
        assert_eq!(bytes[36..44], (base + 64).to_le_bytes());
        let interrupts = &bytes[64..];
        assert_eq!(&interrupts[..4], b"APIC");
        assert_eq!((usize::from(interrupts[4]), sum(interrupts)), (interrupts.len(), 0));
        assert_eq!(interrupts[44..52], [0, 8, 0, 0, 1, 0, 0, 0]);
        assert_eq!(interrupts[52..60], [0, 8, 1, 1, 1, 0, 0, 0]);
    }
}

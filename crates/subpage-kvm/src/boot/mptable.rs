//! Tables of the Intel MultiProcessor Specification 1.4: processors, I/O APIC and interrupts, for
//! guests that have no ACPI.

use super::part::{MP_TABLE, write};
use super::{Part, Placed};
use crate::memory::Ram;

/// Most processors of a guest: APIC numbers have 8 bits, one is the I/O APIC's and one is for all.
pub const MAX_PROCESSORS: u32 = 254;

const POINTER_BYTES: usize = 16;
const HEADER_BYTES: usize = 44;
const PROCESSOR_BYTES: usize = 20;
const ENTRY_BYTES: usize = 8;
const ISA_INTERRUPTS: u8 = 16;
/// Bus, I/O APIC, an entry an ISA interrupt, two local ones.
const OTHER_ENTRIES: usize = 2 + ISA_INTERRUPTS as usize + 2;

const SPECIFICATION: u8 = 4;
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
const APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;
const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;
/// Family 6; there is an FPU and an APIC.
const SIGNATURE: u32 = 0x600;
const FEATURES: u32 = 0x201;
const ISA_BUS: u8 = 0;
const ALL_LOCAL_APICS: u8 = 0xff;

/// Types of entries.
mod entry {
    pub(super) const PROCESSOR: u8 = 0;
    pub(super) const BUS: u8 = 1;
    pub(super) const IO_APIC: u8 = 2;
    pub(super) const IO_INTERRUPT: u8 = 3;
    pub(super) const LOCAL_INTERRUPT: u8 = 4;
}

/// Types of interrupts.
mod interrupt {
    pub(super) const VECTORED: u8 = 0;
    pub(super) const NMI: u8 = 1;
    pub(super) const EXTERNAL: u8 = 3;
}

/// Place of the tables for 1 to 254 processors. They may reach beyond 640 KiB, which is memory here.
pub(super) fn place(cpus: u8) -> Placed {
    let table = HEADER_BYTES + PROCESSOR_BYTES * usize::from(cpus) + ENTRY_BYTES * OTHER_ENTRIES;
    Placed::fixed(Part::MpTable, MP_TABLE, (POINTER_BYTES + table) as u64)
}

/// Writes the tables: processor i has APIC number i and the first one starts the others.
pub(super) fn write_tables(ram: &Ram, cpus: u8) {
    let table_at = MP_TABLE + POINTER_BYTES as u64;
    let at = u32::try_from(table_at).expect("low memory");
    write(ram, MP_TABLE, &pointer(at));
    write(ram, table_at, &configuration(cpus));
}

fn pointer(table: u32) -> Vec<u8> {
    let mut bytes = b"_MP_".to_vec();
    bytes.extend(table.to_le_bytes());
    // Length in units of 16 bytes, version, checksum, five bytes of features: the table is there, and
    // interrupts go through the APICs from the start.
    bytes.extend([1, SPECIFICATION, 0, 0, 0, 0, 0, 0]);
    bytes[10] = checksum(&bytes);
    bytes
}

fn configuration(cpus: u8) -> Vec<u8> {
    let io_apic = cpus;
    let mut entries = Vec::new();
    for cpu in 0..cpus {
        let flags = ENABLED | if cpu == 0 { BOOT_PROCESSOR } else { 0 };
        entries.extend([entry::PROCESSOR, cpu, APIC_VERSION, flags]);
        entries.extend(SIGNATURE.to_le_bytes());
        entries.extend(FEATURES.to_le_bytes());
        entries.extend([0; 8]);
    }
    entries.extend([entry::BUS, ISA_BUS]);
    entries.extend(b"ISA   ");
    entries.extend([entry::IO_APIC, io_apic, IO_APIC_VERSION, ENABLED]);
    entries.extend(IO_APIC.to_le_bytes());
    // KVM connects interrupt i to pin i of the I/O APIC, the timer's too. Polarity and trigger are
    // the bus's.
    for irq in 0..ISA_INTERRUPTS {
        let kind = interrupt::VECTORED;
        entries.extend([entry::IO_INTERRUPT, kind, 0, 0, ISA_BUS, irq, io_apic, irq]);
    }
    let external = interrupt::EXTERNAL;
    entries.extend([entry::LOCAL_INTERRUPT, external, 0, 0, ISA_BUS, 0, 0, 0]);
    let nmi = interrupt::NMI;
    entries.extend([entry::LOCAL_INTERRUPT, nmi, 0, 0, ISA_BUS, 0, ALL_LOCAL_APICS, 1]);

    let length = u16::try_from(HEADER_BYTES + entries.len()).expect("254 processors fit");
    let count = u16::from(cpus) + u16::try_from(OTHER_ENTRIES).expect("few");
    let mut table = b"PCMP".to_vec();
    table.extend(length.to_le_bytes());
    table.extend([SPECIFICATION, 0]);
    table.extend(b"SUBPAGE GUARD       ");
    // No table of the maker.
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(LOCAL_APIC.to_le_bytes());
    // No extended entries.
    table.extend([0; 4]);
    table.extend(entries);
    table[7] = checksum(&table);
    table
}

/// What makes the bytes' sum 0, if the checksum's own byte is 0.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_sub(byte))
}

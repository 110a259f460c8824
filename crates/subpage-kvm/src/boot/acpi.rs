//! Tables of the Advanced Configuration and Power Interface (ACPI 6.5): processors, I/O APIC, and how
//! to switch off and to reset. Some kernels look at nothing else: Debian's for clouds find one
//! processor without them.
//!
//! The guest is a PC with a PIC, a timer and an I/O APIC, so it is not told that its hardware is
//! reduced: such a kernel would use neither PIC nor timer. There is no system-management mode, so ACPI
//! is always on. There is no device behind AML: serial port and clock are where every PC has them.

use acpi_tables::aml::{self, Package};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, fadt};

use super::part::{ACPI_TABLES, write};
use super::{Part, Placed};
use crate::devices::acpi_ports;
use crate::memory::Ram;

const MAKER: [u8; 6] = *b"SUBPAG";
const TABLE: [u8; 8] = *b"GUARD   ";
const REVISION: u32 = 1;
/// Bytes of a table's header.
const HEADER_BYTES: u32 = 36;
/// Tables begin at multiples of it; the FACS has to.
const ALIGNMENT: usize = 64;

const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// There are two 8259 PICs, too.
const HAS_PICS: u32 = 1;
/// Entries of the MADT.
mod entry {
    pub(super) const LOCAL_APIC: [u8; 2] = [0, 8];
    pub(super) const IO_APIC: [u8; 2] = [1, 12];
    pub(super) const LOCAL_NMI: [u8; 2] = [4, 6];
}
const ENABLED: u32 = 1;
const ALL_PROCESSORS: u8 = 0xff;
/// The pin of a local APIC that takes NMIs.
const NMI_PIN: u8 = 1;

/// There are devices of an ISA bus, no VGA, and no bus for message-signalled interrupts. Nothing is
/// said of a keyboard, since there is none.
const BOOT_ARCHITECTURE: u16 = 1 | 1 << 2 | 1 << 3;
/// Where the clock has the century.
const CENTURY_REGISTER: u8 = 0x32;
/// What a processor's power states take that it does not have.
const NO_C2: u16 = 0xfff;
const NO_C3: u16 = 0xfff;

/// All tables as they lie from [`ACPI_TABLES`] on.
pub(super) struct AcpiTables(Vec<u8>);

impl AcpiTables {
    /// Tables of a guest with 1 to 254 processors.
    pub(super) fn of(cpus: u8) -> Self {
        // The pointer stands first, where kernels search for it.
        let mut bytes = vec![0; ALIGNMENT];
        let facs = add(&mut bytes, &FACS::new());
        let dsdt = add(&mut bytes, &dsdt());
        let fadt = add(&mut bytes, &fadt(facs, dsdt));
        let madt = add(&mut bytes, &madt(cpus));
        let mut xsdt = XSDT::new(MAKER, TABLE, REVISION);
        xsdt.add_entry(fadt.into());
        xsdt.add_entry(madt.into());
        let xsdt = add(&mut bytes, &xsdt);
        let mut pointer = Vec::new();
        Rsdp::new(MAKER, xsdt.into()).to_aml_bytes(&mut pointer);
        bytes[..pointer.len()].copy_from_slice(&pointer);
        Self(bytes)
    }

    pub(super) fn placed(&self) -> Placed {
        Placed::fixed(Part::AcpiTables, ACPI_TABLES, self.0.len() as u64)
    }

    pub(super) fn write(&self, ram: &Ram) {
        write(ram, ACPI_TABLES, &self.0);
    }
}

/// Adds a table at the next place for one, and tells its address.
fn add(bytes: &mut Vec<u8>, table: &dyn Aml) -> u32 {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    let at = ACPI_TABLES + bytes.len() as u64;
    table.to_aml_bytes(bytes);
    u32::try_from(at).expect("low memory")
}

/// What the system is like, in AML: the type of sleep that is off.
fn dsdt() -> Sdt {
    let off = acpi_ports::SLEEP_TYPE_OFF;
    let package = Package::new(vec![&off, &off, &aml::ZERO, &aml::ZERO]);
    let mut table = Sdt::new(*b"DSDT", HEADER_BYTES, 2, MAKER, TABLE, REVISION);
    aml::Name::new("_S5_".into(), &package).to_aml_bytes(&mut table);
    table.update_checksum();
    table
}

fn fadt(facs: u32, dsdt: u32) -> fadt::FADT {
    let ports = |port: u16, bytes: u8, access| {
        let space = AddressSpace::SystemIo;
        GAS::new(space, bytes * 8, 0, access, port.into())
    };
    let mut table = FADTBuilder::new(MAKER, TABLE, REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // Buttons and the clock's alarm are not among the fixed registers.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    (table.firmware_ctrl, table.x_firmware_ctrl) = (facs.into(), u64::from(facs).into());
    (table.dsdt, table.x_dsdt) = (dsdt.into(), u64::from(dsdt).into());
    table.sci_int = acpi_ports::INTERRUPT.into();
    table.pm1a_evt_blk = u32::from(acpi_ports::EVENTS).into();
    table.pm1_evt_len = 4;
    table.x_pm1a_evt_blk = ports(acpi_ports::EVENTS, 4, AccessSize::WordAccess);
    table.pm1a_cnt_blk = u32::from(acpi_ports::CONTROL).into();
    table.pm1_cnt_len = 2;
    table.x_pm1a_cnt_blk = ports(acpi_ports::CONTROL, 2, AccessSize::WordAccess);
    table.pm_tmr_blk = u32::from(acpi_ports::TIMER).into();
    table.pm_tmr_len = 4;
    table.x_pm_tmr_blk = ports(acpi_ports::TIMER, 4, AccessSize::DwordAccess);
    table.reset_reg = ports(acpi_ports::RESET, 1, AccessSize::ByteAccess);
    table.reset_value = acpi_ports::RESET_VALUE;
    (table.p_lvl2_lat, table.p_lvl3_lat) = (NO_C2.into(), NO_C3.into());
    table.century = CENTURY_REGISTER;
    table.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    table.finalize()
}

/// Processors and interrupt controllers. KVM connects ISA interrupt i to pin i of the I/O APIC, the
/// timer's too, which is how it is where the table says nothing else.
fn madt(cpus: u8) -> Sdt {
    let io_apic = cpus;
    let mut table = Sdt::new(*b"APIC", HEADER_BYTES, 5, MAKER, TABLE, REVISION);
    table.append_slice(&LOCAL_APIC.to_le_bytes());
    table.append_slice(&HAS_PICS.to_le_bytes());
    for cpu in 0..cpus {
        table.append_slice(&entry::LOCAL_APIC);
        table.append_slice(&[cpu, cpu]);
        table.append_slice(&ENABLED.to_le_bytes());
    }
    table.append_slice(&entry::IO_APIC);
    table.append_slice(&[io_apic, 0]);
    table.append_slice(&IO_APIC.to_le_bytes());
    table.append_slice(&0_u32.to_le_bytes());
    table.append_slice(&entry::LOCAL_NMI);
    table.append_slice(&[ALL_PROCESSORS, 0, 0, NMI_PIN]);
    table.update_checksum();
    table
}

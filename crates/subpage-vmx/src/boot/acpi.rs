//! What ACPI's tables tell that a guest with the machine's devices could use against the hypervisor:
//! processors that it does not run on, ports of suspend to memory, and where an IOMMU is.
//!
//! The firmware is trusted, its tables may still be damaged: nothing is read behind what a table claims,
//! and nothing is looked at for ever.

use alloc::vec::Vec;

use arrayvec::ArrayVec;

use crate::devices::{MOST_SLEEP, SleepControl};

/// Gives so many bytes of physical memory, if they can be read.
pub type Memory<'a> = &'a dyn Fn(u64, usize) -> Option<&'a [u8]>;

/// Largest table that is looked at.
const LARGEST: usize = 1 << 20;
/// Most tables, processors and IOMMUs that are looked at.
const MOST: usize = 1024;
const HEADER: usize = 36;

/// The tables, found by the root pointer.
#[allow(missing_debug_implementations)] // A function.
pub struct Tables<'a> {
    memory: Memory<'a>,
    /// Where they lie.
    addresses: Vec<u64>,
}

/// An IOMMU, as its table tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Iommu {
    /// Of its registers.
    pub base: u64,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..)?.get(..4)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..)?.get(..8)?.try_into().ok()?))
}

impl<'a> Tables<'a> {
    /// Follows a copy of the root pointer (ACPI 6.5, "Root System Description Pointer (RSDP) Structure");
    /// `None` where it leads nowhere.
    pub fn find(pointer: &[u8], memory: Memory<'a>) -> Option<Self> {
        const XSDT: usize = 24;
        const RSDT: usize = 16;
        if pointer.get(..8)? != b"RSD PTR " {
            return None;
        }
        let revision = pointer.get(15)?;
        let extended =
            (*revision >= 2).then(|| long(pointer, XSDT)).flatten().filter(|&at| at != 0);
        let (root, entry) = match extended {
            Some(address) => (table(memory, address, *b"XSDT")?, 8),
            None => (table(memory, word(pointer, RSDT)?.into(), *b"RSDT")?, 4),
        };
        let addresses =
            root[HEADER..].chunks_exact(entry).take(MOST).filter_map(|bytes| match entry {
                8 => long(bytes, 0),
                _ => word(bytes, 0).map(u64::from),
            });
        Some(Self { memory, addresses: addresses.collect() })
    }

    fn table(&self, signature: [u8; 4]) -> Option<&'a [u8]> {
        self.addresses.iter().find_map(|&address| table(self.memory, address, signature))
    }

    /// How many processors are switched on ("Multiple APIC Description Table (MADT)"); `None` without the
    /// table. No more than 1,024 are counted.
    pub fn processors(&self) -> Option<usize> {
        const ENTRIES: usize = 44;
        const ENABLED: u32 = 1;
        let mut ids = Vec::new();
        for entry in entries(self.table(*b"APIC")?, ENTRIES, 1) {
            let (id, flags) = match entry[0] {
                // Local APIC; local x2APIC.
                0 => (entry.get(3).map(|&id| u32::from(id)), word(entry, 4)),
                9 => (word(entry, 4), word(entry, 8)),
                _ => continue,
            };
            if let (Some(id), Some(flags)) = (id, flags)
                && flags & ENABLED != 0
                && !ids.contains(&id)
                && ids.len() < MOST
            {
                ids.push(id);
            }
        }
        Some(ids.len())
    }

    /// The IOMMUs (Intel VT-d, "DMA Remapping Reporting Structure"); `None` without the table.
    pub fn iommus(&self) -> Option<Vec<Iommu>> {
        const ENTRIES: usize = 48;
        const REMAPPING_UNIT: u8 = 0;
        const BASE: usize = 8;
        let units = entries(self.table(*b"DMAR")?, ENTRIES, 2)
            .filter(|entry| entry[..2] == [REMAPPING_UNIT, 0])
            .filter_map(|entry| long(entry, BASE).map(|base| Iommu { base }));
        Some(units.take(MOST).collect())
    }
}

impl Tables<'_> {
    /// The bytes by which the machine is suspended to memory ("Fixed ACPI Description Table (FADT)"); none
    /// if no table of code has the object `\_S3`.
    pub fn sleep(&self) -> ArrayVec<SleepControl, MOST_SLEEP> {
        const DSDT: usize = 40;
        const EXTENDED_DSDT: usize = 140;
        // Each as a number of 32 bits, and as an address with its space; which element of `\_S3` it takes.
        const CONTROLS: [(Option<usize>, usize, u16, usize); MOST_SLEEP] =
            [(Some(64), 172, 1, 0), (Some(68), 184, 1, 1), (None, 244, 0, 0)];
        let mut controls = ArrayVec::new();
        let Some(fixed) = self.table(*b"FACP") else { return controls };
        let code = long(fixed, EXTENDED_DSDT).filter(|&at| at != 0);
        let code = code.or_else(|| word(fixed, DSDT).map(u64::from));
        let mut types = [0; 2];
        let code = code.and_then(|address| table(self.memory, address, *b"DSDT"));
        let more = self.addresses.iter();
        let more = more.filter_map(|&address| table(self.memory, address, *b"SSDT"));
        for table in code.into_iter().chain(more) {
            suspend_types(table, &mut types);
        }
        for (short, extended, byte, element) in CONTROLS {
            let port = io_port(fixed, extended)
                .or_else(|| u16::try_from(word(fixed, short?)?).ok().filter(|&port| port != 0));
            let port = port.and_then(|port| port.checked_add(byte));
            if let Some(port) = port.filter(|_| types[element] != 0) {
                controls.push(SleepControl { port, suspend: types[element] });
            }
        }
        controls
    }
}

/// A port in a "Generic Address Structure (GAS)", if it is one.
fn io_port(table: &[u8], at: usize) -> Option<u16> {
    const IO: u8 = 1;
    let port = long(table, at.checked_add(4)?)?;
    u16::try_from(port).ok().filter(|&port| table.get(at) == Some(&IO) && port != 0)
}

/// Adds the sleep types of the objects `\_S3` in a table of code: a package of numbers, which stands there
/// as it is ("ACPI Machine Language (AML) Specification").
fn suspend_types(code: &[u8], types: &mut [u8; 2]) {
    const PACKAGE: u8 = 0x12;
    const NAME: &[u8] = b"_S3_";
    for at in
        code.windows(NAME.len()).enumerate().filter_map(|(at, name)| (name == NAME).then_some(at))
    {
        let Some((&PACKAGE, rest)) = code[at + NAME.len()..].split_first() else { continue };
        // The length takes as many bytes more as its first two bits say; then the number of elements.
        let Some(mut rest) = rest.first().and_then(|first| rest.get(usize::from(first >> 6) + 2..))
        else {
            continue;
        };
        for kinds in &mut *types {
            let Some((value, more)) = number(rest) else { break };
            *kinds |= 1 << (value & 7);
            rest = more;
        }
    }
}

/// A constant, of which the low byte is enough, and what follows.
fn number(code: &[u8]) -> Option<(u8, &[u8])> {
    const BYTE: u8 = 0x0A;
    const WORD: u8 = 0x0B;
    const DOUBLE: u8 = 0x0C;
    let bytes = match *code.first()? {
        value @ (0 | 1) => return Some((value, &code[1..])),
        BYTE => 1,
        WORD => 2,
        DOUBLE => 4,
        _ => return None,
    };
    Some((*code.get(1)?, code.get(1 + bytes..)?))
}

/// The table at an address, if it has the signature; at least a header.
fn table(memory: Memory<'_>, address: u64, signature: [u8; 4]) -> Option<&[u8]> {
    let header = memory(address, HEADER)?;
    let length = usize::try_from(word(header, 4)?).ok()?;
    if header[..4] != signature || !(HEADER..=LARGEST).contains(&length) {
        return None;
    }
    memory(address, length)
}

/// The entries of a table from a place on; each has its length behind its type, which has `kind` bytes.
fn entries(table: &[u8], from: usize, kind: usize) -> impl Iterator<Item = &[u8]> {
    let mut rest = table.get(from..).unwrap_or(&[]);
    core::iter::from_fn(move || {
        let length = match kind {
            1 => usize::from(*rest.get(1)?),
            _ => usize::from(u16::from_le_bytes([*rest.get(2)?, *rest.get(3)?])),
        };
        if length < 2 * kind {
            return None;
        }
        let (entry, more) = rest.split_at_checked(length)?;
        rest = more;
        Some(entry)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table_of(signature: [u8; 4], body: &[u8]) -> Vec<u8> {
        let mut bytes = signature.to_vec();
        bytes.extend(u32::try_from(HEADER + body.len()).expect("small").to_le_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(body);
        bytes
    }

    const APIC: usize = 0x100;
    const DMAR: usize = 0x200;
    const FACP: usize = 0x300;
    const DSDT: usize = 0x500;

    fn memory() -> Vec<u8> {
        let mut madt = [0; 8].to_vec();
        for (id, flags) in [(0, 1_u32), (2, 1), (4, 2), (6, 0)] {
            madt.extend([0, 8, 0, id]);
            madt.extend(flags.to_le_bytes());
        }
        madt.extend([1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        // Number 2 again, and one that only an x2APIC can have.
        for id in [2_u32, 0x1_0000] {
            madt.extend([9, 16, 0, 0]);
            madt.extend(id.to_le_bytes());
            madt.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        }
        let mut dmar = [0; 12].to_vec();
        for (kind, base) in [(0_u8, 0xFED9_0000_u64), (1, 0x1234), (0, 0xFED9_1000)] {
            dmar.extend([kind, 0, 16, 0, 0, 0, 0, 0]);
            dmar.extend(base.to_le_bytes());
        }
        let mut fixed = [0; 256 - HEADER];
        fixed[140 - HEADER..][..8].copy_from_slice(&(DSDT as u64).to_le_bytes());
        fixed[64 - HEADER..][..4].copy_from_slice(&0x1804_u32.to_le_bytes());
        fixed[172 - HEADER] = 1;
        fixed[176 - HEADER..][..8].copy_from_slice(&0x604_u64.to_le_bytes());
        // Name(\_S3, Package{5, 5, 0, 0}) among others.
        let code =
            b"\x08_S1_\x12\x06\x04\x0A\x01\x0A\x01\x08_S3_\x12\x08\x04\x0A\x05\x0A\x05\0\0_S3_";
        let root = [APIC as u64, DMAR as u64, FACP as u64].map(u64::to_le_bytes).concat();
        let mut bytes = table_of(*b"XSDT", &root);
        bytes.resize(APIC, 0);
        bytes.extend(table_of(*b"APIC", &madt));
        bytes.resize(DMAR, 0);
        bytes.extend(table_of(*b"DMAR", &dmar));
        bytes.resize(FACP, 0);
        bytes.extend(table_of(*b"FACP", &fixed));
        bytes.resize(DSDT, 0);
        bytes.extend(table_of(*b"DSDT", code));
        bytes
    }

    /// The tables' first address.
    const BASE: u64 = 0x7000;

    fn pointer() -> [u8; 36] {
        let mut pointer = [0; 36];
        pointer[..8].copy_from_slice(b"RSD PTR ");
        pointer[15] = 2;
        pointer[24..32].copy_from_slice(&BASE.to_le_bytes());
        pointer
    }

    type Told = (Option<usize>, Option<Vec<Iommu>>, Vec<SleepControl>);

    fn read(pointer: &[u8], bytes: &[u8]) -> Option<Told> {
        let memory = |address: u64, length: usize| {
            // Addresses in the tables are relative, so that they need not be written twice.
            let at = usize::try_from(address.checked_sub(BASE).unwrap_or(address)).ok()?;
            bytes.get(at..)?.get(..length)
        };
        let tables = Tables::find(pointer, &memory)?;
        Some((tables.processors(), tables.iommus(), tables.sleep().to_vec()))
    }

    #[test]
    fn processors_iommus_and_sleep_are_found() {
        let iommus = [Iommu { base: 0xFED9_0000 }, Iommu { base: 0xFED9_1000 }];
        let told = read(&pointer(), &memory());
        let sleep = SleepControl { port: 0x605, suspend: 1 << 5 };
        assert_eq!(told, Some((Some(3), Some(iommus.to_vec()), [sleep].to_vec())));
        assert_eq!(read(b"RSD PTR ", &memory()), None);
        assert_eq!(read(&pointer(), &memory()[..APIC]), Some((None, None, Vec::new())));
    }

    #[test]
    fn damage_never_panics() {
        let (pointer, bytes) = (pointer(), memory());
        for length in 0..bytes.len() {
            let _ = read(&pointer, &bytes[..length]);
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 7, 0x7F, 0xFF] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                let _ = read(&pointer, &damaged);
            }
        }
        for at in 0..pointer.len() {
            let mut damaged = pointer;
            damaged[at] = 0xFF;
            let _ = read(&damaged, &bytes);
        }
    }
}

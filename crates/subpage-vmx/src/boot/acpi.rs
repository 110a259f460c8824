//! What ACPI's tables tell that a guest with the machine's devices could use against the hypervisor:
//! processors that it does not run on, and whether an IOMMU translates.
//!
//! The firmware is trusted, its tables may still be damaged: nothing is read behind what a table claims,
//! and nothing is looked at for ever.

use alloc::vec::Vec;

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
    /// table. It stops at [`MOST`].
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
        let root = [APIC as u64, DMAR as u64].map(u64::to_le_bytes).concat();
        let mut bytes = table_of(*b"XSDT", &root);
        bytes.resize(APIC, 0);
        bytes.extend(table_of(*b"APIC", &madt));
        bytes.resize(DMAR, 0);
        bytes.extend(table_of(*b"DMAR", &dmar));
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

    type Told = (Option<usize>, Option<Vec<Iommu>>);

    fn read(pointer: &[u8], bytes: &[u8]) -> Option<Told> {
        let memory = |address: u64, length: usize| {
            // Addresses in the tables are relative, so that they need not be written twice.
            let at = usize::try_from(address.checked_sub(BASE).unwrap_or(address)).ok()?;
            bytes.get(at..)?.get(..length)
        };
        let tables = Tables::find(pointer, &memory)?;
        Some((tables.processors(), tables.iommus()))
    }

    #[test]
    fn processors_and_iommus_are_counted() {
        let iommus = [Iommu { base: 0xFED9_0000 }, Iommu { base: 0xFED9_1000 }];
        let told = read(&pointer(), &memory());
        assert_eq!(told, Some((Some(3), Some(iommus.to_vec()))));
        assert_eq!(read(b"RSD PTR ", &memory()), None);
        assert_eq!(read(&pointer(), &memory()[..APIC]), Some((None, None)));
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

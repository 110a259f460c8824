//! The tables of ACPI, read as an operating system reads them.

use super::*;

/// Where a pointer to the tables may be, in units of 16 bytes.
const SEARCHED: std::ops::Range<u64> = 0xe_0000..0x10_0000;

/// A guest's memory, and the tables in it.
struct Reader<'a>(&'a Scene);

impl Reader<'_> {
    fn vec(&self, at: u64, bytes: u32) -> Vec<u8> {
        let mut read = vec![0; bytes as usize];
        self.0.ram.direct().read_slice(&mut read, GuestAddress(at)).expect("memory");
        read
    }

    /// The pointer, found by its signature.
    fn pointer(&self) -> u64 {
        let mut places = SEARCHED.step_by(16);
        let at = places.find(|&at| self.0.bytes(at) == *b"RSD PTR ").expect("a pointer");
        assert_eq!(sum(&self.vec(at, 20)), 0, "the first 20 bytes");
        assert_eq!(self.0.bytes::<1>(at + 15), [2], "its revision");
        let length = u32::from_le_bytes(self.0.bytes(at + 20));
        assert_eq!((length, sum(&self.vec(at, length))), (36, 0));
        at
    }

    /// A table with a header, whose bytes add up to 0.
    fn table(&self, at: u64, signature: [u8; 4]) -> Vec<u8> {
        let length = u32::from_le_bytes(self.0.bytes(at + 4));
        let table = self.vec(at, length);
        assert_eq!(table[..4], signature);
        assert_eq!(sum(&table), 0, "{table:x?}");
        table
    }

    /// FADT and MADT, which the XSDT names.
    fn tables(&self) -> (Vec<u8>, Vec<u8>) {
        let xsdt = u64::from_le_bytes(self.0.bytes(self.pointer() + 24));
        let xsdt = self.table(xsdt, *b"XSDT");
        let entries: Vec<u64> = xsdt[36..].chunks_exact(8).map(|entry| number(entry, 0)).collect();
        let [fadt, madt] = entries[..] else { panic!("two tables: {entries:x?}") };
        (self.table(fadt, *b"FACP"), self.table(madt, *b"APIC"))
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, &byte| sum.wrapping_add(byte))
}

/// The number at an offset, of 8 bytes or of those that are left.
fn number(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    let left = &bytes[at..bytes.len().min(at + 8)];
    number[..left.len()].copy_from_slice(left);
    u64::from_le_bytes(number)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    number(bytes, at) & 0xffff_ffff
}

fn loaded(cpus: u32) -> Scene {
    let scene = Scene::zeroed(MIN_BYTES);
    scene.load_with(&small_elf(), &Request { cpus, ..request() }).expect("a guest");
    scene
}

#[test]
fn the_zero_page_tells_where_the_pointer_is() {
    let scene = loaded(1);
    assert_eq!({ scene.zero_page().acpi_rsdp_addr }, Reader(&scene).pointer());
}

#[test]
fn every_processor_is_listed_once_and_one_io_apic() {
    for cpus in [1_u32, 2, 4, MAX_PROCESSORS] {
        let scene = loaded(cpus);
        let (_, madt) = Reader(&scene).tables();
        assert_eq!((word(&madt, 36), word(&madt, 40)), (0xfee0_0000, 1));
        let mut rest = &madt[44..];
        let (mut processors, mut io_apics) = (Vec::new(), 0);
        while let [kind, length, ..] = *rest {
            let (entry, behind) = rest.split_at(length.into());
            match kind {
                0 => {
                    assert_eq!((length, word(entry, 4)), (8, 1), "enabled");
                    assert_eq!(entry[2], entry[3]);
                    processors.push(u32::from(entry[3]));
                }
                1 => {
                    assert_eq!((length, word(entry, 4), word(entry, 8)), (12, 0xfec0_0000, 0));
                    assert_eq!(u32::from(entry[2]), cpus);
                    io_apics += 1;
                }
                4 => assert_eq!((length, entry[2], entry[5]), (6, 0xff, 1)),
                other => panic!("an entry of type {other}"),
            }
            rest = behind;
        }
        assert_eq!((processors, io_apics), ((0..cpus).collect(), 1));
        assert!(rest.is_empty());
    }
}

/// 32-bit and 64-bit fields say the same, and what they name is there.
#[test]
fn the_fixed_description_names_registers_and_tables() {
    let scene = loaded(2);
    let reader = Reader(&scene);
    let (fadt, _) = reader.tables();
    assert_eq!(fadt.len(), 276);
    assert_eq!((word(&fadt, 36), word(&fadt, 40)), (number(&fadt, 132), number(&fadt, 140)));
    let facs = word(&fadt, 36);
    assert_eq!(facs % 64, 0);
    assert_eq!((scene.bytes(facs), word(&reader.vec(facs, 8), 4)), (*b"FACS", 64));
    // Address, bytes, and the generic address of each register.
    for (field, length, generic, port, bytes) in
        [(56, 88, 148, 0x600, 4), (64, 89, 172, 0x604, 2), (76, 91, 208, 0x608, 4)]
    {
        assert_eq!((word(&fadt, field), fadt[length]), (port, bytes));
        assert_eq!(fadt[generic..generic + 3], [1, bytes * 8, 0], "an I/O port");
        assert_eq!(number(&fadt, generic + 4), port);
    }
    assert_eq!(word(&fadt, 48), 0, "no way to system-management mode");
    assert_eq!((fadt[116], number(&fadt, 120), fadt[128]), (1, 0xcf9, 6), "reset");
    let (reset, reduced) = (1 << 10, 1 << 20);
    assert_eq!(word(&fadt, 112) & (reset | reduced), reset);
    let keyboard = 1 << 1;
    assert_eq!(word(&fadt, 109) & keyboard, 0);
    let dsdt = reader.table(word(&fadt, 40), *b"DSDT");
    // Name(\_S5_, Package (4) { 0, 0, 0, 0 })
    assert_eq!(dsdt[36..], *b"\x08_S5_\x12\x06\x04\0\0\0\0");
}

//! Files made to cost time or memory: each limit is reached, and said.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::super::names::NamedRange;
use super::super::path::steps;
use super::units::{MAX_HELD_BYTES, Reader};
use super::*;

/// The abbreviations of all these files: code, tag, whether it has children, attributes and their forms.
const ABBREVIATIONS: &[u8] = &[
    UNIT, 0x11, 1, 0, 0, //
    VARIABLE, 0x34, 0, 0x49, 0x10, 0x02, 0x18, 0, 0, // type anywhere, location
    STRUCT, 0x13, 1, 0x0b, 0x0b, 0, 0, // bytes
    BARE, 0x0d, 0, 0, 0, // a member of which nothing is told
    MEMBER, 0x0d, 0, 0x03, 0x0e, 0x49, 0x13, 0x38, 0x0b, 0, 0, // name, type here, where
    NAMELESS, 0x0d, 0, 0x49, 0x13, 0x38, 0x0b, 0, 0, // type here, where
    BASE, 0x1c, 0, 0x49, 0x13, 0x38, 0x0b, 0, 0, //
    ALIAS, 0x16, 0, 0x49, 0x10, 0, 0, // type anywhere
    NUMBER, 0x24, 0, 0x0b, 0x0b, 0, 0, // bytes
    0,
];
const UNIT: u8 = 1;
const VARIABLE: u8 = 2;
const STRUCT: u8 = 3;
const BARE: u8 = 4;
const MEMBER: u8 = 5;
const NAMELESS: u8 = 6;
const BASE: u8 = 7;
const ALIAS: u8 = 8;
const NUMBER: u8 = 9;

/// Bytes of a unit's header.
const HEADER: usize = 11;

const ADDRESS: u64 = 0x1000;

/// The entries of a unit.
struct Entries(Vec<u8>);

impl Entries {
    /// Those of a unit that begins with a variable at [`ADDRESS`], whose type is at `its_type`.
    fn of_variable(its_type: u32) -> Self {
        let mut bytes = vec![UNIT, VARIABLE];
        bytes.extend(its_type.to_le_bytes());
        bytes.extend([9, 3]);
        bytes.extend(ADDRESS.to_le_bytes());
        Self(bytes)
    }

    /// Offset of the next entry in its unit.
    fn next(&self) -> u32 {
        u32::try_from(HEADER + self.0.len()).expect("short")
    }

    /// A part without a name, or a base, of a structure.
    fn part(&mut self, kind: u8, its_type: u32) {
        self.0.push(kind);
        self.0.extend(its_type.to_le_bytes());
        self.0.push(0);
    }

    /// The unit, filled up with empty entries to so many bytes.
    fn unit(&self, bytes: usize) -> Vec<u8> {
        let length = bytes.max(HEADER + self.0.len());
        let mut unit = u32::try_from(length - 4).expect("short").to_le_bytes().to_vec();
        unit.extend([4, 0, 0, 0, 0, 0, 8]);
        unit.extend(&self.0);
        unit.resize(length, 0);
        unit
    }
}

/// The offset of the first type: behind the header and the 16 bytes of [`Entries::of_variable`].
const FIRST_TYPE: u32 = 27;

/// Writes an ELF file with these sections; one may be longer than its bytes, and ends in a hole.
fn write(path: &Path, sections: &[(&str, &[u8], u64)]) {
    let mut names = vec![0];
    let mut headers = vec![0; 64];
    let mut bytes = vec![0; 64];
    let mut holes = 0;
    let mut header = |name: usize, kind: u32, offset: u64, length: u64| {
        headers.extend(u32::try_from(name).expect("short").to_le_bytes());
        headers.extend(kind.to_le_bytes());
        for word in [0, 0, offset, length, 0, 1, 0] {
            headers.extend(u64::to_le_bytes(word));
        }
    };
    let file = File::create(path).expect("file");
    for (name, content, length) in sections {
        let offset = bytes.len() as u64 + holes;
        file.write_all_at(content, offset).expect("file");
        bytes.clear();
        holes = offset + length;
        header(names.len(), 1, offset, *length);
        names.extend(name.bytes().chain([0]));
    }
    let own = names.len();
    names.extend(b".shstrtab\0");
    header(own, 3, holes, names.len() as u64);
    file.write_all_at(&names, holes).expect("file");
    let table = holes + names.len() as u64;
    file.write_all_at(&headers, table).expect("file");
    let mut start = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for word in [0, 0, table] {
        start.extend(u64::to_le_bytes(word));
    }
    start.extend([0, 0, 0, 0, 64, 0, 56, 0, 0, 0, 64, 0]);
    let count = u16::try_from(sections.len() + 2).expect("few");
    start.extend(count.to_le_bytes());
    start.extend((count - 1).to_le_bytes());
    file.write_all_at(&start, 0).expect("file");
}

/// What is said of `place` in a file with these units.
fn said_of(units: &[u8], more: &[(&str, &[u8], u64)], place: &str) -> String {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("image");
    let mut sections = vec![(".debug_info", units, units.len() as u64)];
    if !more.iter().any(|(name, ..)| *name == ".debug_abbrev") {
        sections.push((".debug_abbrev", ABBREVIATIONS, ABBREVIATIONS.len() as u64));
    }
    sections.extend(more);
    write(&path, &sections);
    let mut reader = Reader::open(&path).expect("debug information");
    let found = look(&mut reader, place);
    assert!(reader.held_bytes() <= MAX_HELD_BYTES, "{} bytes are held", reader.held_bytes());
    found.map_or_else(|wrong| wrong.message, |bytes| format!("{bytes:?}"))
}

fn look(reader: &mut Reader, place: &str) -> Result<Bytes, NotAPlace> {
    let named = NamedRange { name: "it".into(), start: ADDRESS, length: 8 };
    types::find(reader, &[ADDRESS], &named, &steps(place).expect("a path"))
}

/// A structure of 8 bytes of that many members, of each of which nothing is told.
fn wide(members: usize) -> Vec<u8> {
    let mut entries = Entries::of_variable(FIRST_TYPE);
    entries.0.extend([STRUCT, 8]);
    entries.0.extend(vec![BARE; members]);
    entries.0.extend([0, 0]);
    entries.unit(0)
}

#[test]
fn a_structure_has_so_many_members() {
    let said = said_of(&wide(1 << 10), &[], ".x");
    assert!(said.contains("has no field `x`"), "{said}");
    let said = said_of(&wide((1 << 16) + 1), &[], ".x");
    assert!(said.contains("more than 65,536 members"), "{said}");
}

#[test]
fn the_names_of_members_are_so_long_together() {
    let text = vec![b'x'; 1 << 12];
    let mut entries = Entries::of_variable(FIRST_TYPE);
    entries.0.extend([STRUCT, 8]);
    for _ in 0..5000 {
        entries.0.extend([MEMBER, 0, 0, 0, 0]);
        entries.0.extend(FIRST_TYPE.to_le_bytes());
        entries.0.push(0);
    }
    entries.0.extend([0, 0]);
    let said = said_of(&entries.unit(0), &[(".debug_str", &text, 1 << 12)], ".y");
    assert!(said.contains("whose names are too long"), "{said}");
}

/// Each structure has the next one twice as a base, so that there are 2^40 of the last.
#[test]
fn bases_of_bases_do_not_multiply_without_an_end() {
    for kind in [BASE, NAMELESS] {
        let mut entries = Entries::of_variable(FIRST_TYPE);
        for _ in 0..40 {
            // Two parts of 6 bytes and the end of the structure.
            let next = entries.next() + 2 + 12 + 1;
            entries.0.extend([STRUCT, 8]);
            entries.part(kind, next);
            entries.part(kind, next);
            entries.0.push(0);
        }
        entries.0.extend([STRUCT, 8, 0, 0]);
        let said = said_of(&entries.unit(0), &[], ".x");
        assert!(said.contains("a structure of too many parts"), "{said}");
    }
}

#[test]
fn a_table_of_abbreviations_is_so_long() {
    let table = ABBREVIATIONS[..5].repeat(1 << 18);
    let more = [(".debug_abbrev", &table[..], table.len() as u64)];
    let said = said_of(&wide(1), &more, ".x");
    assert!(said.contains("a table of abbreviations that is too large"), "{said}");
}

#[test]
fn there_are_so_many_units() {
    // Units without a byte behind their length.
    let units = vec![0; 4 * 1_000_001];
    let said = said_of(&units, &[], ".x");
    assert!(said.contains("more than 1,000,000 units"), "{said}");
}

/// A hole of a file costs who made it nothing.
#[test]
fn a_unit_is_so_long() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("image");
    let length = 0x4000_0000_u32;
    let mut unit = length.to_le_bytes().to_vec();
    unit.extend([4, 0, 0, 0, 0, 0, 8, UNIT]);
    write(
        &path,
        &[
            (".debug_info", &unit, u64::from(length) + 4),
            (".debug_abbrev", ABBREVIATIONS, ABBREVIATIONS.len() as u64),
        ],
    );
    assert!(fs::metadata(&path).expect("file").len() > 1 << 30);
    let mut reader = Reader::open(&path).expect("debug information");
    let said = look(&mut reader, ".x").expect_err("too long").message;
    assert!(said.contains("is too large"), "{said}");
}

/// Sixty units of 2 MiB, one after the other, for one type.
#[test]
fn units_that_were_read_are_not_all_held() {
    const EACH: usize = 2 << 20;
    let mut units = Vec::new();
    for number in 0..60 {
        let at = |unit: usize| u32::try_from(unit * EACH).expect("short") + FIRST_TYPE;
        let mut entries = Entries::of_variable(at(number));
        if number > 0 {
            // One variable of all is at the address.
            entries.0[8] ^= 1;
        }
        if number == 59 {
            entries.0.extend([NUMBER, 8]);
        } else {
            entries.0.push(ALIAS);
            entries.0.extend(at(number + 1).to_le_bytes());
        }
        units.extend(entries.unit(EACH));
    }
    let said = said_of(&units, &[], ".x");
    assert!(said.contains("a type without a name"), "{said}");
}

#[test]
fn names_of_names_have_an_end() {
    let mut entries = Entries::of_variable(FIRST_TYPE);
    for _ in 0..65 {
        let next = entries.next() + 5;
        entries.0.push(ALIAS);
        entries.0.extend(next.to_le_bytes());
    }
    entries.0.extend([NUMBER, 8]);
    let said = said_of(&entries.unit(0), &[], ".x");
    assert!(said.contains("stands for itself"), "{said}");
}

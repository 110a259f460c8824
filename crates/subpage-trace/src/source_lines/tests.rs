//! Lines of real and of hostile debug information.

use super::*;
use crate::code_names::CodeNames;

/// The guest of `examples/kernel`, which gcc has made.
fn example() -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/kernel/guest.elf");
    std::fs::read(path).expect("the example")
}

fn names_of(image: &[u8]) -> CodeNames {
    let file = object::File::parse(image).expect("an ELF file");
    CodeNames::of_elf(&file)
}

#[test]
fn instructions_of_the_example_have_functions_and_lines() {
    let names = names_of(&example());
    // As `addr2line -f -e guest.elf` says.
    for (address, function, line) in [
        (0x20_00ed, ("out", 5), 85),
        (0x20_0182, ("setrlimit", 0x12), 105),
        (0x20_0194, ("setrlimit", 0x24), 106),
        (0x20_019b, ("setrlimit", 0x2b), 108),
    ] {
        assert_eq!(names.function(address), Some(function));
        assert_eq!(names.lines.find(address), Some(("kernel.c", line)));
    }
    for nowhere in [0, 0x20_00e7, 0x20_2000, u64::MAX] {
        assert_eq!((names.function(nowhere), names.lines.find(nowhere)), (None, None));
    }
}

/// Where the section header of `.debug_line` lies.
fn section_header(image: &[u8]) -> usize {
    let file = object::File::parse(image).expect("an ELF file");
    let index = file.section_by_name(".debug_line").expect("it has one").index().0;
    let table = u64::from_le_bytes(image[0x28..0x30].try_into().expect("8 bytes"));
    usize::try_from(table).expect("small") + 64 * index
}

/// The functions are known all the same.
#[test]
fn lines_that_are_compressed_or_elsewhere_are_left_out() {
    let (at_flags, at_offset, at_size) = (8, 0x18, 0x20);
    let compressed = 0x800_u64;
    for (field, value) in [
        (at_flags, compressed),
        (at_offset, 1 << 40),
        (at_offset, u64::MAX),
        (at_size, 1 << 40),
        (at_size, u64::MAX),
        (at_size, 0),
    ] {
        let mut image = example();
        let at = section_header(&image) + field;
        image[at..at + 8].copy_from_slice(&value.to_le_bytes());
        let names = names_of(&image);
        assert!(names.lines.is_empty(), "{field:#x} {value:#x}");
        assert!(names.function(0x20_0182).is_some());
    }
}

/// Damage of any byte is no failure, and what is told is a line all the same.
#[test]
fn every_cut_and_every_flip_of_the_example_is_survived() {
    let image = example();
    let file = object::File::parse(&*image).expect("an ELF file");
    let data = |name| file.section_by_name(name).and_then(|it| it.data().ok()).expect("there");
    let (lines, texts) = (data(".debug_line"), data(".debug_line_str"));
    let mut known = 0;
    let mut look = |lines: &[u8], texts: &[u8]| {
        let read = SourceLines::read(lines, texts, 8, MAX_ROWS, |_| true);
        known += u32::from(read.find(0x20_0182) == Some(("kernel.c", 105)));
        for (start, end) in read.sequences.iter().map(|it| (it.start, it.end)) {
            assert!(start < end);
            assert!(read.find(end - 1).is_none_or(|(_, line)| line > 0));
        }
    };
    for cut in 0..lines.len() {
        look(&lines[..cut], texts);
    }
    for cut in 0..texts.len() {
        look(lines, &texts[..cut]);
    }
    for at in 0..lines.len() {
        for flip in [1, 0x10, 0x80, 0xff] {
            let mut damaged = lines.to_vec();
            damaged[at] ^= flip;
            look(&damaged, texts);
        }
    }
    assert!(known > 0, "some bytes do not matter");
}

const OPCODES: [u8; 12] = [0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1];

/// A unit of `.debug_line`, whose files are `tables` and whose program is `program`.
fn unit(version: u16, is_long: bool, tables: &[u8], program: &[u8]) -> Vec<u8> {
    let length = |length: usize| {
        if is_long {
            (length as u64).to_le_bytes().to_vec()
        } else {
            u32::try_from(length).expect("small").to_le_bytes().to_vec()
        }
    };
    let mut fields = vec![1];
    fields.extend((version >= 4).then_some(1));
    // `default_is_stmt`, `line_base` of -5, `line_range`, `opcode_base`.
    fields.extend([1, 0xfb, 14, 13]);
    fields.extend(OPCODES);
    fields.extend(tables);
    let mut body = version.to_le_bytes().to_vec();
    if version >= 5 {
        body.extend([8, 0]);
    }
    body.extend(length(fields.len()));
    body.extend(fields);
    body.extend(program);
    let mut unit = if is_long { vec![0xff; 4] } else { Vec::new() };
    unit.extend(length(body.len()));
    unit.extend(body);
    unit
}

fn set_address(address: u64) -> Vec<u8> {
    [&[0, 9, 2][..], &address.to_le_bytes()].concat()
}

/// A row, of `line`, where the one before it was of `before`; the next instruction is 4 bytes on.
fn row(before: i8, line: i8) -> [u8; 5] {
    // DW_LNS_advance_line, DW_LNS_copy, DW_LNS_advance_pc.
    [3, (line - before).cast_unsigned() & 0x7f, 1, 2, 4]
}

const END: [u8; 3] = [0, 1, 1];

/// Directories `mm` and `/usr`; files `a.c`, `mm/b.c`, `/c.c`.
const TABLES: &[u8] = b"mm\0/usr\0\0a.c\0\0\0\0b.c\0\x01\0\0/c.c\0\x02\0\0\0";

/// The same for DWARF 5, its directory 0 and file 0 in front. Texts are in the header.
const TABLES_5: &[u8] = b"\x01\x01\x08\x03/build\0mm\0/usr\0\
    \x02\x01\x08\x02\x0b\x04a.c\0\0a.c\0\0b.c\0\x01/c.c\0\x02";

fn read(lines: &[u8]) -> SourceLines {
    SourceLines::read(lines, &[], 8, MAX_ROWS, |address| address < 0x1_0000)
}

/// Instructions at 0x1000 to 0x1010 of four lines.
fn program() -> Vec<u8> {
    let set_file = |file| [4, file];
    let rows = [
        &row(1, 7)[..],
        &set_file(2),
        &row(7, 9),
        &set_file(3),
        &row(9, 11),
        // No line has it.
        &row(11, 0),
        &END,
    ];
    [set_address(0x1000), rows.concat()].concat()
}

#[test]
fn files_have_the_directories_of_their_build() {
    for (version, is_long) in [(2, false), (3, true), (4, false), (5, false), (5, true)] {
        let tables = if version == 5 { TABLES_5 } else { TABLES };
        let lines = read(&unit(version, is_long, tables, &program()));
        let found: Vec<_> = (0xffe..0x1014).step_by(2).map(|at| lines.find(at)).collect();
        let (a, b, c) = (Some(("a.c", 7)), Some(("mm/b.c", 9)), Some(("/c.c", 11)));
        let none = None;
        assert_eq!(
            found,
            [none, a, a, b, b, c, c, none, none, none, none],
            "version {version}, {is_long}"
        );
    }
}

#[test]
fn one_unit_that_is_not_known_does_not_hide_the_next() {
    let good = unit(4, false, TABLES, &program());
    let known = |first: &[u8]| read(&[first, &good].concat()).find(0x1000).is_some();
    assert!(known(&[]));
    for version in [0, 1, 6, 0xffff] {
        assert!(known(&unit(version, false, TABLES, &program())), "{version}");
    }
    assert!(known(&unit(5, false, TABLES, &program())), "tables of another version");
    assert!(known(&0_u32.to_le_bytes()), "an empty unit");
    // What says no length, or a wrong one, has no next.
    assert!(!known(&[0xf0, 0xff, 0xff, 0xff]));
    assert!(!known(&[0xff, 0xff, 0xff, 0x7f]));
    assert!(!known(&[0xff; 12]));
}

#[test]
fn sequences_that_mean_nothing_are_left_out() {
    let rows = |address| [set_address(address), row(1, 7).to_vec(), END.to_vec()].concat();
    let good = rows(0x2000);
    for (hostile, why) in [
        (rows(0), "a function that the linker has left out"),
        (rows(u64::MAX), "the same, by another linker"),
        (rows(0x2_0000), "no code"),
        (END.to_vec(), "no rows"),
        (
            [set_address(0x1100), row(1, 7).to_vec(), rows(0x1000)].concat(),
            "addresses that go back",
        ),
        (
            [set_address(0x1000), row(1, 7).to_vec(), vec![2, 0xff], vec![0xff; 9]].concat(),
            "an advance that is no number",
        ),
        ([set_address(0x1000), vec![1, 1, 1]].concat(), "no end"),
    ] {
        let lines = read(&unit(4, false, TABLES, &[good.clone(), hostile].concat()));
        assert_eq!(lines.sequences.len(), 1, "{why}");
        assert_eq!(lines.find(0x2000), Some(("a.c", 7)), "{why}");
        assert_eq!(lines.rows.len(), 1, "{why}: none is kept");
    }
}

#[test]
fn memory_is_bounded() {
    let rows: Vec<u8> = (0..100).flat_map(|_| [row(1, 2), row(2, 1)].concat()).collect();
    let program = [&set_address(0x1000)[..], &rows, &END].concat();
    let lines = unit(4, false, TABLES, &program);
    let of = |most| SourceLines::read(&lines, &[], 8, most, |_| true);
    assert_eq!(of(200).rows.len(), 200);
    assert!(of(199).is_empty(), "half of the lines would be wrong for the rest");
    // One line takes one row, however many instructions it has.
    let rows = row(1, 1).repeat(1000);
    let program = [&set_address(0x1000)[..], &rows, &END].concat();
    assert_eq!(read(&unit(4, false, TABLES, &program)).rows.len(), 1);
    // DW_LNE_define_file is skipped.
    let define = b"\0\x06\x03d.c\0\0".repeat(1000);
    let program = [&define[..], &set_address(0x1000), &[4, 4], &row(1, 7), &END].concat();
    assert_eq!(read(&unit(4, false, TABLES, &program)).find(0x1000), None);
    // A header that is longer than any, and one that claims files without end.
    let long = [&b"x\0".repeat(usize::try_from(MAX_HEADER_BYTES).expect("small"))[..], TABLES];
    assert!(read(&unit(4, false, &long.concat(), &program)).is_empty());
    let claims = b"\x01\x01\x08\xff\xff\xff\xff\xff\xff\xff\xff\x7f/\0";
    assert!(read(&unit(5, false, claims, &program)).is_empty());
    // A path that is longer than any has no line.
    let path = [&vec![b'x'; MAX_PATH_BYTES + 1][..], b"\0\0\0\0\0"].concat();
    let program = [&set_address(0x1000)[..], &row(1, 7), &END].concat();
    assert_eq!(read(&unit(4, false, &[b"\0", &path[..]].concat(), &program)).find(0x1000), None);
    assert_eq!(
        read(&unit(4, false, &[b"\0", &path[1..]].concat(), &program)).find(0x1000).map(|it| it.1),
        Some(7)
    );
}

/// A program may name another file with each row.
#[test]
fn files_that_are_not_there_are_not_kept() {
    let mut program = set_address(0x1000);
    for number in 1..2000_u16 {
        let number = [number.to_le_bytes()[0] | 0x80, (number >> 7).to_le_bytes()[0] & 0x7f];
        program.extend([&[4][..], &number, &row(1, 2), &row(2, 1)].concat());
    }
    program.extend(END);
    let mut reading = Reading {
        texts: &[],
        is_code: |_| true,
        max_rows: MAX_ROWS,
        known: HashMap::new(),
        files: HashMap::new(),
        lines: SourceLines::default(),
        first_row: 0,
    };
    assert!(reading.unit(&unit(4, false, TABLES, &program), 8).is_ok());
    assert_eq!(reading.files.len(), 3);
    assert!(reading.lines.rows.len() > 3);
}

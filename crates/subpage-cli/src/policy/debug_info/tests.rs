//! The limits, and what only a hostile file has.

use std::fs;
use std::path::Path;

use super::super::path::steps;
use super::super::{Names, read_region_names};
use super::units::Reader;
use super::work::Work;
use super::*;

fn elf(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/debug-info").join(name)
}

/// Looks `place` up with no more than so much work.
fn find_with(path: &Path, steps_left: u64, name: &str, place: &str) -> Result<Bytes, NotAPlace> {
    let names: Names = read_region_names(path).expect("symbols");
    let named = names.find(name).expect("a symbol");
    let mut reader = Reader::open(path)?;
    reader.work = Work::of(steps_left);
    types::find(&mut reader, &[named.start], named, &steps(place).expect("a path"))
}

#[test]
fn work_has_an_end() {
    let path = elf("dwarf5.elf");
    let right = Ok(Bytes { offset: 160, length: 4 });
    assert_eq!(find_with(&path, 1 << 20, "table", "[3].next.flags"), right);
    let mut last = None;
    for left in 0..20_000 {
        let found = find_with(&path, left, "table", "[3].next.flags");
        if let Err(wrong) = &found {
            assert!(wrong.message.contains("takes too long to read"), "{left}: {wrong}");
        }
        last = Some(found);
    }
    assert_eq!(last, Some(right));
}

/// Only what is needed is read, where an index says what that is.
#[test]
fn an_index_spares_the_other_units() {
    for (name, spares) in [
        ("dwarf5.elf", false),
        ("gdb-index.elf", true),
        ("debug-names.elf", true),
        ("dwarf4.elf", true),
    ] {
        let path = elf(name);
        let names = read_region_names(&path).expect("symbols");
        let named = names.find("table").expect("a symbol");
        let mut reader = Reader::open(&path).expect("debug information");
        let units =
            index::units_of(&mut reader, "table", &[named.start]).expect("within the limits");
        assert_eq!(!units.is_empty(), spares, "{name}");
        // What a compiler has made of `twin`.
        let units = index::units_of(&mut reader, "twin.7", &[]).expect("within the limits");
        assert_eq!(!units.is_empty(), spares, "{name}");
        let units = index::units_of(&mut reader, "nothing", &[]).expect("within the limits");
        assert_eq!(units, [0; 0], "{name}");
    }
}

/// Types that stand for themselves, have themselves as a part or an element.
#[test]
fn circles_end() {
    let path = elf("dwarf5.elf");
    let good = fs::read(&path).expect("file");
    let places = ["[3].next.flags", "[0].whole", "[0].half", "[0].quarter", "[1].next.name[1][1]"];
    let directory = tempfile::tempdir().expect("directory");
    let image = directory.path().join("image");
    let reader = Reader::open(&path).expect("debug information");
    let length = usize::try_from(reader.sections.length(sections::Section::Info)).expect("small");
    let info = good
        .windows(12)
        .position(|bytes| {
            bytes[4..] == [5, 0, 1, 8, 0, 0, 0, 0]
                && bytes[..4] == u32::try_from(length - 4).expect("small").to_le_bytes()
        })
        .expect("the unit");
    // Every reference of four bytes to every other entry that has such a reference.
    let references: Vec<usize> = (12..length - 4)
        .filter(|at| {
            let word = &good[info + at..info + at + 4];
            let word = u32::from_le_bytes(word.try_into().expect("4 bytes"));
            (12..length).contains(&(word as usize)) && word > 255
        })
        .collect();
    assert!(references.len() > 20);
    for from in &references {
        for to in (12..length).step_by(29) {
            let mut bytes = good.clone();
            let to = u32::try_from(to).expect("small");
            bytes[info + from..info + from + 4].copy_from_slice(&to.to_le_bytes());
            fs::write(&image, &bytes).expect("file");
            for place in places {
                let found = find_with(&image, 1 << 20, "table", place);
                if let Err(wrong) = found {
                    assert!(!wrong.message.contains("takes too long"), "{from:#x} {to:#x} {place}");
                }
            }
        }
    }
}

#[test]
fn a_name_of_a_segment_is_the_files_own_address() {
    let segment = |start, length, physical| Segment { start, length, physical };
    let mapping = Mapping::Segments(vec![
        segment(0xffff_ffff_8100_0000, 0x1000, 0x100_0000),
        segment(0, 0x100, 0x100_0f80),
        segment(u64::MAX - 7, 8, 0x2000),
    ]);
    assert_eq!(mapping.own(0x100_0010), [0xffff_ffff_8100_0010]);
    assert_eq!(mapping.own(0x100_0f90), [0xffff_ffff_8100_0f90, 0x10]);
    assert_eq!(mapping.own(0x2007), [u64::MAX]);
    assert_eq!(mapping.own(0x2008), [0; 0]);
    let kernel = Mapping::Shifted(-0xffff_ffff_8000_0000);
    assert_eq!(kernel.own(0x100_0000), [0xffff_ffff_8100_0000]);
    assert_eq!(Mapping::Shifted(1).own(0), [0; 0]);
}

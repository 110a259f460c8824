//! Places by fields and indices, with the debug information of programs that compilers made:
//! `tests/debug-info/build.sh`.

use std::fs;
use std::path::{Path, PathBuf};

use object::{Object, ObjectSection};
use proptest::prelude::*;
use subpage::address::ByteRange;
use subpage_cli::policy::{NamedRange, Names, place_of, read_region_names};

use crate::place::{Place, status};

pub(crate) fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/debug-info").join(name)
}

fn names(path: &Path) -> Names {
    read_region_names(path).expect("symbols")
}

/// The first byte and the length of a place.
fn find(names: &Names, place: &str) -> Result<(u64, u64), String> {
    let range = place_of(place, names, "look there");
    range.map(|range| (range.first().as_u64(), ByteRange::bytes(range))).map_err(|e| e.to_string())
}

/// The start of what has a name.
fn start(names: &Names, name: &str) -> u64 {
    names.find(name).expect("a symbol").start
}

/// Places of `places.c`: the name, the first byte from its start on, and the length.
const PLACES: &[(&str, &str, u64, u64)] = &[
    ("table[3]", "table", 144, 48),
    ("table[3].next", "table", 160, 24),
    ("table[3].next.flags", "table", 160, 4),
    (" table [0x1] . next . flags ", "table", 64, 4),
    // Structures and unions without a name.
    ("table[0].whole", "table", 8, 8),
    ("table[0].half", "table", 8, 2),
    ("table[1].quarter", "table", 58, 1),
    // A pointer itself, and with an offset, a length, an end.
    ("table[0].link", "table", 40, 8),
    ("table[2].next+4", "table", 116, 20),
    ("table[2].next+4+2", "table", 116, 2),
    ("table[1]..table[3]", "table", 48, 96),
    ("table[1].next..table[1].next.flags+2", "table", 64, 2),
    // The bytes that hold a bit field: bits 0 to 2, and 3 to 15.
    ("twin.low", "twin", 4, 1),
    ("twin.high", "twin", 4, 2),
    // Arrays of arrays behind qualifiers and other names.
    ("twin.name", "twin", 6, 15),
    ("twin.name[4]", "twin", 18, 3),
    ("twin.name[4][2]", "twin", 20, 1),
    ("fixed[1]", "fixed", 72, 72),
    ("fixed[1][2].name[0][1]", "fixed", 127, 1),
    // What a compiler tells apart by a number behind the name.
    ("counter.0.flags", "counter.0", 0, 4),
    // Arrays at the end of a structure.
    ("flexible.rest", "flexible", 4, 7),
    ("flexible.rest[6]", "flexible", 10, 1),
    // Another name for the same bytes.
    ("alias[1].next.flags", "alias", 64, 4),
];

/// Every form of debug information that is read gives the same places.
#[test]
fn fields_and_elements_are_found() {
    for elf in [
        "dwarf5.elf",
        "dwarf5-types.elf",
        "dwarf4.elf",
        "dwarf2.elf",
        "gdb-index.elf",
        "debug-names.elf",
    ] {
        let names = names(&file(elf));
        for (place, name, offset, length) in PLACES {
            let wanted = (start(&names, name) + offset, *length);
            assert_eq!(find(&names, place), Ok(wanted), "{elf}: {place}");
        }
    }
}

#[test]
fn what_is_not_there_is_said_in_words() {
    let names = names(&file("dwarf5.elf"));
    for (place, part) in [
        ("table[4]", "`table` has 4 elements, and none is [4]; they are [0] to [3]"),
        (
            "table[0].nxt",
            "`struct entry`, which `table[0]` is, has no field `nxt`; the nearest known: `next`; its fields: `a`, `next`, `link`, `whole`, `half`, `quarter`",
        ),
        (
            "table.next",
            "`table` is an array of 4 elements, not a structure; name an element first: `table[0].next`",
        ),
        ("table[0].next[1]", "`table[0].next` is `struct inner`, and has not an element"),
        ("table[0].link.next", "`table[0].link` is a pointer"),
        ("pointer.count", "`pointer` is a pointer"),
        ("pointer[0]", "`pointer` is a pointer"),
        ("function.x", "is a pointer"),
        ("scalar.x", "`scalar` is `int`, and has not a field"),
        ("kind.x", "`kind` is `enum kind`, and has not a field"),
        ("twin.low.x", "`twin.low` has not a field"),
        ("twin.low[0]", "`twin.low` has not an element"),
        ("twin.name[5]", "`twin.name` has 5 elements"),
        (
            "flexible.rest[7]",
            "`flexible.rest[7]` ends at byte 12 of `flexible`, which has 11 bytes",
        ),
        ("empty.rest", "`empty.rest` has no byte"),
        ("empty.rest[0]", "ends at byte 8 of `empty`"),
        ("table[0].next+24", "beyond the end of `table[0].next`, which has 24 bytes"),
        ("_start.x", "does not describe `_start`"),
        ("table[x]", "`[x]` behind `table` is neither a field nor an index; write `table.FIELD`"),
        ("table[0", "`[0` behind `table` is neither"),
        ("table[0]x", "is neither a field nor an index"),
        ("tble[0].next", "no name `tble[0].next`; the nearest known: `table`"),
        ("zzz[0]", "no name `zzz[0]`; look there"),
        ("table[18446744073709551615]", "has 4 elements"),
        ("flexible.rest[18446744073709551615]", "does not reach so far"),
    ] {
        let wrong = find(&names, place).expect_err(place);
        assert!(wrong.contains(part), "{place}: {wrong}");
    }
    let long = format!("table{}", "[0]".repeat(65));
    assert!(find(&names, &long).is_err_and(|wrong| wrong.contains("no name")));
}

/// An array without a count ends where what it is in ends, at the latest.
#[test]
fn arrays_without_a_count_stay_in_their_structure() {
    let names = names(&file("open.elf"));
    assert_eq!(find(&names, "several[3].count"), Ok((start(&names, "several") + 12, 4)));
    assert_eq!(find(&names, "holder.inner.count"), Ok((start(&names, "holder") + 4, 4)));
    for (place, part) in [
        ("several[0].tail", "`several[0].tail` has no byte"),
        ("several[0].tail[0]", "ends behind `several[0].tail`"),
        ("several[3].tail[0]", "ends at byte 20 of `several`, which has 16 bytes"),
        ("holder.inner.tail", "has no byte"),
        ("holder.inner.tail[0]", "ends behind `holder.inner.tail`"),
        ("middle.mark", "does not say in a way that is known here"),
    ] {
        let wrong = find(&names, place).expect_err(place);
        assert!(wrong.contains(part), "{place}: {wrong}");
    }
}

/// A variable without a byte lies where another begins: what is read before makes no difference.
#[test]
fn what_lies_at_the_same_address_is_told_apart() {
    for before in [None, Some("other.b")] {
        let names = names(&file("neighbours.elf"));
        assert_eq!(start(&names, "nothing"), start(&names, "thing"));
        if let Some(before) = before {
            find(&names, before).expect(before);
        }
        assert_eq!(find(&names, "thing[0].b"), Ok((start(&names, "thing") + 4, 4)), "{before:?}");
    }
}

#[test]
fn names_of_other_languages_are_their_symbols() {
    let cpp = names(&file("cpp.elf"));
    for (place, name, offset, length) in [
        ("_ZN3app5stateE[1].third[0]", "_ZN3app5stateE", 40, 4),
        // The member of a base, and the nearer one of two.
        ("_ZN3app5stateE[1].first", "_ZN3app5stateE", 24, 8),
        ("_ZN3app5stateE[0].second", "_ZN3app5stateE", 12, 4),
        ("_ZZN3app3useEvE5local.third", "_ZZN3app3useEvE5local", 16, 8),
    ] {
        let wanted = (start(&cpp, name) + offset, length);
        assert_eq!(find(&cpp, place), Ok(wanted), "{place}");
    }
    for (place, part) in [
        ("_ZN3app5stateE[0].shared", "has no field `shared`"),
        ("_ZN3app9referenceE.first", "is a pointer"),
    ] {
        let wrong = find(&cpp, place).expect_err(place);
        assert!(wrong.contains(part), "{place}: {wrong}");
    }
    let rust = names(&file("rust.elf"));
    let table = "_ZN6places5TABLE17h5054092b681512adE";
    let size = rust.find(table).expect("a symbol").length / 4;
    let (element, bytes) = find(&rust, &format!("{table}[2]")).expect("an element");
    assert_eq!((element, bytes), (start(&rust, table) + 2 * size, size));
    let (inner, bytes) = find(&rust, &format!("{table}[2].pair.__1[1]")).expect("a field");
    assert!(bytes == 4 && (element..element + size).contains(&inner));
    assert_eq!(find(&rust, "PLAIN.flags").map(|(_, bytes)| bytes), Ok(4));
}

/// Those that say what to do.
#[test]
fn debug_information_that_does_not_tell_is_refused() {
    let place = tempfile::tempdir().expect("directory");
    let other = |name: &str, bytes: &[u8]| {
        let path = place.path().join(name);
        fs::write(&path, bytes).expect("file");
        path
    };
    let good = fs::read(file("dwarf5.elf")).expect("file");
    let renamed = |from: &[u8], to: &[u8]| {
        let mut bytes = good.clone();
        let at = bytes.windows(from.len()).position(|it| it == from).expect("it is there");
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    let mut version = good.clone();
    let info = section(&good, ".debug_info").0;
    version[info + 4] = 9;
    for (path, part) in [
        (file("compressed.elf"), "is compressed; unpack it: `objcopy --decompress-debug-sections"),
        (file("split.elf"), "lies in other files (.dwo); compile it without `-gsplit-dwarf`"),
        (
            other("stripped", &renamed(b".debug_info", b".xebug_info")),
            "has no debug information, so its fields are not known; compile it with `-g`",
        ),
        (other("version", &version), "DWARF version 9 is not known here"),
    ] {
        let names = names(&path);
        let wrong = find(&names, "table[3].next").expect_err("no answer");
        assert!(wrong.contains(part), "{}: {wrong}", path.display());
        // What needs none is found all the same.
        assert!(find(&names, "table+48+8").is_ok(), "{}", path.display());
    }
    // A list of symbols has names alone.
    let list = other("System.map", b"ffffffff80201240 D table\n");
    let wrong = find(&names(&list), "table[3].next").expect_err("no answer");
    assert!(wrong.contains("nothing tells the fields and elements of `table`"), "{wrong}");
}

/// Offset and length of a section.
fn section(elf: &[u8], name: &str) -> (usize, usize) {
    let elf = object::File::parse(elf).expect("ELF");
    let (offset, length) =
        elf.section_by_name(name).and_then(|it| it.file_range()).expect("a section");
    (usize::try_from(offset).expect("small"), usize::try_from(length).expect("small"))
}

/// Another name for the same bytes may have the type of what lies there, if it is as long.
#[test]
fn names_that_the_program_does_not_have_are_no_fields_of_others() {
    let named = |name: &str, start, length| NamedRange { name: name.to_owned(), start, length };
    let with_items = |length| {
        let twin = named("twin", 0x1020_1180, 24);
        let names = Names::new(vec![named("items", 0x1020_1240, length), twin.clone()]);
        names.with_program([twin], None, &file("dwarf5.elf")).expect("the program")
    };
    assert_eq!(find(&with_items(192), "items[1].next.flags"), Ok((0x1020_1280, 4)));
    for length in [96, 193, 0] {
        let wrong = find(&with_items(length), "items[1].next.flags").expect_err("another");
        assert!(wrong.contains("does not describe `items`"), "{length}: {wrong}");
    }
    // What every program has tells nothing.
    for name in ["completed.0", "_IO_stdin_used"] {
        let names = Names::new(vec![named(name, 0x1020_1180, 24)]);
        assert!(
            names.clone().with_program(names.iter().cloned(), None, &file("dwarf5.elf")).is_err()
        );
    }
}

/// In a rule by `symbol`, with a bias, and of the module for the hypervisor.
#[test]
fn fields_of_symbols_are_known() {
    let place = Place::new();
    let program = file("dwarf4.elf");
    let program = program.to_str().expect("text");
    let rule = |symbol: &str| {
        let text = format!(
            "version = 1\n[[rule]]\nname = \"a\"\nsymbol = \"{symbol}\"\nelf = \"{program}\"\n\
             address = \"physical\"\nbias = 0x100000\n"
        );
        place.policy("p.toml", &text);
        let output = place.run(&["policy", "check", "p.toml", "--symbols", program]);
        let told = [output.stdout.clone(), output.stderr.clone()].concat();
        (status(&output), String::from_utf8_lossy(&told).into_owned())
    };
    let (status_of, told) = rule("table[1].next.high");
    assert!(status_of == 0 && told.contains("0x301284..0x301286"), "{told}");
    let (status_of, told) = rule("table[1].next.hgh");
    assert!(
        status_of == 2 && told.contains("p.toml:4:10") && told.contains("nearest known: `high`"),
        "{told}"
    );
    place.policy("p.toml", "version = 1\n[[rule]]\nname = \"a\"\nrange = \"table[1]..table[3]\"\n");
    let compile = ["compile", "-p", "p.toml", "-o", "p.bin", "--symbols", program];
    assert_eq!(status(&place.run(&compile)), 0);
}

/// What the debug information and its indices are changed in.
const SECTIONS: [&str; 8] = [
    ".debug_info",
    ".debug_abbrev",
    ".debug_str",
    ".debug_types",
    ".debug_names",
    ".gdb_index",
    ".debug_gnu_pubnames",
    ".debug_aranges",
];

fn places_of(path: &Path) -> Vec<Result<(u64, u64), String>> {
    let names = names(path);
    let places = PLACES.iter().map(|(place, ..)| *place);
    places.map(|place| find(&names, place)).collect()
}

/// A damaged file gives places, or says why not, and never panics; what it gives lies in what is named.
#[test]
fn every_byte_of_debug_information_may_be_wrong() {
    let place = tempfile::tempdir().expect("directory");
    let path = place.path().join("image");
    for elf in ["dwarf5.elf", "dwarf4.elf", "gdb-index.elf", "debug-names.elf"] {
        let good = fs::read(file(elf)).expect("file");
        let names = names(&file(elf));
        let known = object::File::parse(&good[..]).expect("ELF");
        for name in SECTIONS {
            if known.section_by_name(name).is_none() {
                continue;
            }
            let (first, length) = section(&good, name);
            for at in (first..first + length).step_by(3) {
                let mut bytes = good.clone();
                bytes[at] ^= [0xff, 0x01, 0x80][at % 3];
                fs::write(&path, &bytes).expect("file");
                for ((_, name, ..), found) in PLACES.iter().zip(places_of(&path)) {
                    let named = names.find(name).expect("a symbol");
                    let Ok((first, length)) = found else { continue };
                    let end = named.start + named.length;
                    let within = first >= named.start && first + length <= end;
                    assert!(within, "{elf}, {at:#x}: {name} {first:#x}+{length}");
                }
            }
        }
    }
}

/// Cut at any length, the file has no answer or the right one.
#[test]
fn a_file_may_end_anywhere() {
    let place = tempfile::tempdir().expect("directory");
    let path = place.path().join("image");
    let good = fs::read(file("dwarf5.elf")).expect("file");
    let whole = places_of(&file("dwarf5.elf"));
    let (info, length) = section(&good, ".debug_info");
    // The length of its only unit is cut, not the file, whose section headers come last.
    for cut in 0..length {
        let mut bytes = good.clone();
        let left = u32::try_from(cut).expect("small");
        bytes[info..info + 4].copy_from_slice(&left.to_le_bytes());
        fs::write(&path, &bytes).expect("file");
        for (found, right) in places_of(&path).into_iter().zip(&whole) {
            assert!(found.is_err() || found == *right, "{cut}: {found:?}");
        }
    }
    for cut in (0..good.len()).step_by(64) {
        fs::write(&path, &good[..cut]).expect("file");
        if let Ok(names) = read_region_names(&path) {
            let _ = find(&names, "table[3].next");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Several bytes at once, in the sections that describe something.
    #[test]
    fn damaged_debug_information_never_panics(
        elf in prop::sample::select(&["dwarf5.elf", "dwarf5-types.elf", "dwarf2.elf", "cpp.elf"][..]),
        changes in prop::collection::vec((0_usize..2, any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let mut bytes = fs::read(file(elf)).expect("file");
        for (which, at, value) in changes {
            let (first, length) = section(&bytes, SECTIONS[which]);
            bytes[first + at.index(length)] = value;
        }
        let place = tempfile::tempdir().expect("directory");
        let path = place.path().join("image");
        fs::write(&path, &bytes).expect("file");
        let names = names(&path);
        let places = PLACES.iter().map(|(place, ..)| *place);
        for place in places.chain(["_ZN3app5stateE[1].third[0]", "_ZN3app5stateE[1].first"]) {
            let _ = find(&names, place);
        }
    }
}

/// A member hides those of the bases; one that two bases have is that of neither.
#[test]
fn a_member_of_several_bases_is_refused_by_their_names() {
    let names = names(&file("bases.elf"));
    for (place, name, offset) in [
        ("both.own", "both", 16),
        ("both.only_left", "both", 4),
        ("both.y", "both", 8),
        ("hides.x", "hides", 16),
        ("twice.b", "twice", 20),
        ("nameless.x", "nameless", 8),
        ("diamond.in_two", "diamond", 24),
    ] {
        assert_eq!(find(&names, place), Ok((start(&names, name) + offset, 4)), "{place}");
    }
    for (place, part) in [
        (
            "both.x",
            "`x` of `both` may be that of `struct left` or that of `struct right`, which both are bases of `struct both`",
        ),
        ("twice.x", "that of `struct second` or that of `struct left` in `struct first`"),
        (
            "twice.only_left",
            "that of `struct left` in `struct first` or that of `struct left` in `struct second`",
        ),
        ("diamond.in_shared", "does not say in a way that is known here"),
        ("both.z", "has no field `z`"),
    ] {
        let error = find(&names, place).expect_err(place);
        assert!(error.contains(part), "{place}: {error}");
    }
}

/// A vector takes the room that it says, also where its elements need less.
#[test]
fn a_padded_vector_is_read_by_its_own_length() {
    let names = names(&file("vectors.elf"));
    for (place, name, offset, length) in [
        ("padded[2]", "padded", 8, 4),
        ("several[1]", "several", 16, 16),
        ("several[1][2]", "several", 24, 4),
    ] {
        assert_eq!(find(&names, place), Ok((start(&names, name) + offset, length)), "{place}");
    }
    let error = find(&names, "several[0][3]").expect_err("three elements");
    assert!(error.contains("has 3 elements, and none is [3]"), "{error}");
}

/// A unit that others have in common has the language of the one whose variable is meant.
#[test]
fn an_array_of_a_partial_unit_begins_as_the_language_of_the_variable_has_it() {
    let names = names(&file("vectors.elf"));
    let counted = start(&names, "counted");
    assert_eq!(find(&names, "counted[1]"), Ok((counted, 4)));
    assert_eq!(find(&names, "counted[10]"), Ok((counted + 36, 4)));
    assert!(find(&names, "counted[0]").is_err());
    // Nothing says where it begins.
    let error = find(&names, "unknown[1]").expect_err("no language");
    assert!(error.contains("does not say in a way that is known here"), "{error}");
}

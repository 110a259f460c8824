//! Names and the guests that they fit.

use std::fs;

use subpage::address::{ByteRange, Gpa};
use subpage_kvm::boot::{ImageKind, Placed};

use super::*;
use crate::policy::PolicySource;

#[allow(dead_code, reason = "the tests of the reader use all of it")]
#[path = "../../../../../subpage-linux/tests/linux/made.rs"]
mod made;

const LIST: &str = "ffffffff80100000 T _text\nffffffff80200080 D path\n";

/// The policy of rules at these places, in two files in a directory with the files of symbols.
fn draft(directory: &Path, places: &[&str]) -> Draft {
    let source = |(file, places): (&str, &[&str])| {
        let rule = |(index, place): (usize, &&str)| {
            format!("[[rule]]\nname = \"{file} {index}\"\n{place}\n")
        };
        let rules: String = places.iter().enumerate().map(rule).collect();
        let rules = if rules.is_empty() { "rule = []".to_owned() } else { rules };
        PolicySource::from_text(&directory.join(file), format!("version = 1\n{rules}"))
    };
    let (one, two) = places.split_at(places.len() / 2);
    Draft::of([("one.toml", one), ("two.toml", two)].into_iter().map(source).collect())
}

/// The example guest, with its `_start` called `_text`, and there, at its own address or another.
fn image(text: Option<u64>) -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/kernel/guest.elf");
    let mut image = fs::read(path).expect("the example");
    let mut replace = |old: &[u8], new: &[u8]| {
        let at = image.windows(old.len()).rposition(|bytes| bytes == old).expect("it is there");
        image[at..at + new.len()].copy_from_slice(new);
    };
    // Also the end of the name `__bss_start`.
    replace(b"_start\0", b"_text\0\0");
    if let Some(text) = text {
        // The symbol's value and length.
        let old = [0x20_02c1_u64.to_le_bytes(), 0x5b_u64.to_le_bytes()].concat();
        replace(&old, &text.to_le_bytes());
    }
    image
}

fn starts(draft: &mut Draft, asked: &MachineArguments) -> Vec<i128> {
    let names = GuestNames { list: Names::default(), otherwise: "" };
    kernel_starts(&names, draft, asked).into_iter().map(|found| found.start).collect()
}

#[test]
fn rules_say_where_their_kernel_begins() {
    let directory = tempfile::tempdir().expect("directory");
    let directory = directory.path();
    fs::write(directory.join("System.map"), LIST).expect("list");
    fs::write(directory.join("guest.elf"), image(None)).expect("image");
    fs::write(directory.join("vmlinux"), image(Some(0xffff_ffff_8030_0000))).expect("image");
    let map = "symbol = \"path\"\nmap = \"System.map\"\n";
    let biased = &format!("{map}bias = 0x400000");
    let by_hand = &format!("{map}address = \"virtual\"\nbias = \"-0xffffffff80000000\"");
    // It says itself where its segments lie.
    let physical = "symbol = \"modprobe_path\"\nelf = \"guest.elf\"\naddress = \"physical\"";
    let kernel = "symbol = \"_text\"\nelf = \"vmlinux\"\naddress = \"kernel\"";
    let asked = MachineArguments::default();
    let of = |places: &[&str]| starts(&mut draft(directory, places), &asked);
    assert_eq!(of(&["range = \"1..2\"", map]), [0x10_0000]);
    assert_eq!(of(&[map, map, map, biased]), [0x10_0000, 0x50_0000]);
    assert_eq!(of(&[by_hand, physical]), [0; 0]);
    assert_eq!(of(&[physical, kernel]), [0x30_0000]);
    // The list of the option comes first.
    let names = GuestNames {
        list: read_region_names(&directory.join("System.map")).expect("a list"),
        otherwise: "",
    };
    let asked =
        MachineArguments { symbols: Some("System.map".into()), ..MachineArguments::default() };
    let found = kernel_starts(&names, &mut draft(directory, &[kernel]), &asked);
    let found: Vec<_> = found.into_iter().map(|found| found.start).collect();
    assert_eq!(found, [0x10_0000, 0x30_0000]);
}

/// What the look for the kernel's start has read, the rules of all files find without the file.
#[test]
fn a_file_of_symbols_is_read_once() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("System.map");
    fs::write(&path, LIST).expect("list");
    let map = "symbol = \"path\"\nmap = \"System.map\"\nlength = 8";
    let mut draft = draft(directory.path(), &[map, map]);
    assert_eq!(starts(&mut draft, &MachineArguments::default()), [0x10_0000]);
    fs::remove_file(path).expect("it was there");
    let policy = draft.resolve_or(&Names::default(), "").expect("read before");
    assert_eq!(policy.rules.len(), 2);
}

#[test]
fn a_kernel_that_lies_elsewhere_is_refused() {
    let placed = |part, start| Placed {
        part,
        range: ByteRange::new(Gpa::new(start), 4096).expect("a range"),
    };
    let boot = Boot {
        image: ImageKind { format: Format::Elf64, kernel: None, own_loader: None },
        entry: 0x10_0000,
        boot_parameters: 0,
        stack: 0,
        page_tables: 0,
        parts: vec![
            placed(Part::Stack, 0x8000),
            placed(Part::Segment(1), 0x20_0000),
            placed(Part::Segment(0), 0x10_0000),
        ],
    };
    let start = |start| KernelStart { path: "System.map".into(), start };
    assert!(check_place(&[], &boot).is_ok());
    assert!(check_place(&[start(0x10_0000)], &boot).is_ok());
    for wrong in [0x8000, 0x20_0000, -0x10_0000] {
        assert!(check_place(&[start(0x10_0000), start(wrong)], &boot).is_err(), "{wrong:#x}");
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/debug-info").join(name)
}

/// By the numbers of the builds, where both files have one, else by symbols.
#[test]
fn symbols_of_another_build_are_refused() {
    let directory = tempfile::tempdir().expect("directory");
    let check = |guest: &Path, symbols: Option<&Path>, places: &[&str]| {
        let asked = MachineArguments {
            symbols: symbols.map(Path::to_owned),
            ..MachineArguments::default()
        };
        let mut draft = draft(directory.path(), places);
        let names = of_guest(guest, &draft, &asked).expect("names");
        let files = of_other_files(&names, &mut draft, &asked);
        check_build(&files, guest).map_err(|failure| failure.event().expect("bad input").message)
    };
    let guest = fixture("dwarf5.elf");
    // The same program with other debug information, and another program.
    assert_eq!(check(&guest, Some(&fixture("dwarf4.elf")), &[]), Ok(()));
    let wrong = check(&guest, Some(&fixture("cpp.elf")), &[]).expect_err("another program");
    assert!(
        wrong.contains("cpp.elf are of another build") && wrong.contains(" lies at 0x20"),
        "{wrong}"
    );
    let rule = |file: &Path, space: &str| {
        format!("symbol = \"_start\"\nelf = \"{}\"\naddress = \"{space}\"\n", file.display())
    };
    let cpp = rule(&fixture("cpp.elf"), "physical");
    assert!(check(&guest, None, &[&rule(&guest, "physical"), &cpp]).is_err());
    // A program's own addresses are of no guest.
    assert_eq!(check(&guest, None, &[&rule(&fixture("cpp.elf"), "virtual")]), Ok(()));
    // The same symbols of two builds.
    let (one, two) = (fixture("build-1.elf"), fixture("build-2.elf"));
    assert_eq!(check(&one, Some(&one), &[]), Ok(()));
    let wrong = check(&one, Some(&two), &[]).expect_err("another build");
    assert!(wrong.contains("the build IDs differ"), "{wrong}");
    // One of them has no number, and there is nothing else to compare.
    assert_eq!(check(&one, Some(&fixture("dwarf5.elf")), &[]), Ok(()));
}

/// One symbol is enough, wherever the kernel begins.
#[test]
fn a_list_of_another_build_is_refused_by_any_symbol() {
    let directory = tempfile::tempdir().expect("directory");
    let kernel = directory.path().join("vmlinux");
    fs::write(&kernel, image(Some(0xffff_ffff_8030_0000))).expect("image");
    let asked = |list: &str| {
        let path = directory.path().join("System.map");
        fs::write(&path, list).expect("list");
        MachineArguments { symbols: Some(path), ..MachineArguments::default() }
    };
    let check = |asked: &MachineArguments| {
        let mut draft = draft(directory.path(), &[]);
        let names = of_guest(&kernel, &draft, asked).expect("names");
        check_build(&of_other_files(&names, &mut draft, asked), &kernel)
    };
    let right = "ffffffff80300000 T _text\nffffffff80200080 D elsewhere\n";
    assert!(check(&asked(right)).is_ok());
    assert!(check(&asked("ffffffff80300040 T _text\n")).is_err());
    // Nothing in common: nothing says that it is of this guest.
    let failure = check(&asked("ffffffff80300000 D elsewhere\n")).expect_err("a stranger");
    let wrong = failure.event().expect("bad input").message;
    assert!(wrong.contains("the guest has none of them"), "{wrong}");
}

/// A bzImage has the names of its kernel in it.
#[test]
fn a_list_of_another_kernel_than_the_image_is_refused() {
    let directory = tempfile::tempdir().expect("directory");
    let kernel = directory.path().join("vmlinuz");
    let image = made::vmlinux(&made::symbols(true), made::DEBIAN_6_1);
    fs::write(&kernel, made::bzimage(&image)).expect("image");
    let check = |list: &str| {
        let path = directory.path().join("System.map");
        fs::write(&path, list).expect("list");
        let asked = MachineArguments { symbols: Some(path), ..MachineArguments::default() };
        let mut draft = draft(directory.path(), &[]);
        let names = of_guest(&kernel, &draft, &asked).expect("names");
        let checked = check_build(&of_other_files(&names, &mut draft, &asked), &kernel);
        checked.map_err(|failure| failure.event().expect("bad input").message)
    };
    let right = "ffffffff81000000 T _text\nffffffff82000100 D modprobe_path\n";
    assert_eq!(check(right), Ok(()));
    let wrong = check(&right.replace("82000100", "82000140")).expect_err("another build");
    assert!(wrong.contains("`modprobe_path` lies at 0x2000140 there"), "{wrong}");
    // Its own names need no list.
    let asked = MachineArguments::default();
    let rule = "symbol = \"modprobe_path\"\n";
    let draft = draft(directory.path(), &[rule]);
    let names = of_guest(&kernel, &draft, &asked).expect("names");
    let policy = draft.resolve_or(&names.list, names.otherwise).expect("a policy");
    let range = ByteRange::new(Gpa::new(0x200_0100), 0x100).expect("a range");
    assert_eq!(policy.rules[0].rule.range, range);
}

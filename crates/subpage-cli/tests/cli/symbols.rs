//! Symbols of ELF files, of this program and of made-up ones.

use std::fs;
use std::path::Path;

use object::write::{Object, Symbol, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
};
use subpage_cli::policy::{AddressSpace, Draft, Names, PolicySource, SymbolFormat, read_symbols};

use crate::plain;

/// An object file with two data symbols, one of them without a length, and one name used twice.
fn elf() -> Vec<u8> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let data = object.add_section(Vec::new(), b".data".to_vec(), SectionKind::Data);
    object.append_section_data(data, &[0; 0x400], 4096);
    for (name, value, size, scope) in [
        ("modprobe_path", 0x100, 256, SymbolScope::Linkage),
        ("label", 0x200, 0, SymbolScope::Linkage),
        ("twin", 0x300, 8, SymbolScope::Compilation),
        ("twin", 0x340, 8, SymbolScope::Compilation),
    ] {
        object.add_symbol(Symbol {
            name: name.as_bytes().to_vec(),
            value,
            size,
            kind: SymbolKind::Data,
            scope,
            weak: false,
            section: SymbolSection::Section(data),
            flags: SymbolFlags::None,
        });
    }
    object.write().expect("an ELF file")
}

/// The rules that a policy about `file` gives, or its mistakes.
fn resolve(directory: &Path, rule: &str) -> Result<(u64, u64), String> {
    let text = format!("version = 1\n[[rule]]\nname = \"x\"\nelf = \"image\"\n{rule}\n");
    let source = PolicySource::from_text(&directory.join("policy.toml"), text);
    match Draft::parse(source).resolve(&Names::default()) {
        Ok(policy) => {
            let range = policy.rules[0].rule.range;
            Ok((range.first().as_u64(), range.bytes()))
        }
        Err(mistakes) => Err(plain(&mistakes.render())),
    }
}

#[test]
fn a_symbol_gives_its_bytes() {
    let directory = tempfile::tempdir().expect("directory");
    fs::write(directory.path().join("image"), elf()).expect("file");
    let resolve = |rule: &str| resolve(directory.path(), rule);
    assert_eq!(resolve("symbol = \"modprobe_path\""), Ok((0x100, 256)));
    let part = "symbol = \"modprobe_path\"\noffset = 0x80\nlength = 16";
    assert_eq!(resolve(part), Ok((0x180, 16)));
    assert_eq!(resolve("symbol = \"label\"\nlength = 7"), Ok((0x200, 7)));
    let biased = "symbol = \"modprobe_path\"\nbias = 0x10000";
    assert_eq!(resolve(biased), Ok((0x1_0100, 256)));
    for (rule, message) in [
        ("symbol = \"label\"", "does not say how long `label` is"),
        ("symbol = \"twin\"", "2 symbols are called `twin`"),
        ("symbol = \"modprobepath\"", "the nearest known: `modprobe_path`"),
        ("symbol = \"modprobe_path\"\nbias = \"-0x101\"", "lies at -0x1, outside the 48 bits"),
        ("symbol = \"modprobe_path\"\nbias = \"0xffffffff80000000\"", "outside the 48 bits"),
        ("symbol = \"modprobe_path\"\nlength = 257", "beyond the end of `modprobe_path`"),
        // An object file has no load segments, so nothing has a physical address.
        ("symbol = \"modprobe_path\"\naddress = \"physical\"", "there is no symbol"),
    ] {
        let shown = resolve(rule).expect_err(rule);
        assert!(shown.contains(message), "{rule}: {shown}");
    }
}

#[test]
fn the_symbols_of_this_program_are_read() {
    let program = Path::new(env!("CARGO_BIN_EXE_subpage"));
    let of_file = read_symbols(program, SymbolFormat::Elf, AddressSpace::Virtual).expect("symbols");
    let in_memory =
        read_symbols(program, SymbolFormat::Elf, AddressSpace::Physical).expect("symbols");
    let main = of_file.find("main").expect("every program has one");
    // Linkers give a program's segments physical addresses equal to the virtual ones.
    assert_eq!(in_memory.find("main").expect("in a segment"), main);
    let directory = tempfile::tempdir().expect("directory");
    let of_directory = read_symbols(directory.path(), SymbolFormat::Elf, AddressSpace::Virtual);
    assert!(of_directory.is_err(), "a directory");
}

/// A damaged file gives names or an error, never a panic and never more memory than its length.
#[test]
fn damaged_files_never_panic() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("image");
    let good = elf();
    let read = |bytes: &[u8]| {
        fs::write(&path, bytes).expect("file");
        for space in [AddressSpace::Virtual, AddressSpace::Physical, AddressSpace::Kernel] {
            let _ = read_symbols(&path, SymbolFormat::Elf, space);
        }
    };
    for length in (0..good.len()).step_by(7) {
        read(&good[..length]);
    }
    for at in 0..good.len() {
        for value in [0x00, 0x7f, 0xff] {
            let mut bytes = good.clone();
            bytes[at] = value;
            // Only the places that describe something: the data section is zeros.
            if bytes[at] != good[at] && !(64..=64 + 0x400).contains(&at) {
                read(&bytes);
            }
        }
    }
}

/// Symbols may share the bytes of a name, which makes a short file of much text.
#[test]
fn names_are_bounded_also_where_symbols_share_one() {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let data = object.add_section(Vec::new(), b".data".to_vec(), SectionKind::Data);
    object.append_section_data(data, &[0; 0x400], 4096);
    let name = vec![b'x'; 4000];
    for value in 0..68_000 {
        object.add_symbol(Symbol {
            name: name.clone(),
            value,
            size: 1,
            kind: SymbolKind::Data,
            scope: SymbolScope::Linkage,
            weak: false,
            section: SymbolSection::Section(data),
            flags: SymbolFlags::None,
        });
    }
    let image = object.write().expect("an ELF file");
    assert!(image.len() < 4 << 20);
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path().join("image");
    fs::write(&path, image).expect("file");
    let error =
        read_symbols(&path, SymbolFormat::Elf, AddressSpace::Virtual).expect_err("too long");
    assert!(error.to_string().contains("more than 256 MiB of names"), "{error}");
}

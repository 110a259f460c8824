//! Tables of symbols in every form.

use subpage_linux::{
    Kallsyms, KallsymsError, KernelImage, LinkAddress, Placement, RuntimeAddress, names,
};

use crate::made::{
    Addresses, DATA, DEBIAN_6_1, Form, HEADER_BYTES, RODATA, TEXT, Wanted, by_name, symbols,
    tables, vmlinux, wanted,
};

fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    for addresses in [
        Addresses::Whole,
        Addresses::FromBase,
        Addresses::FromBaseOrAbsolute,
        Addresses::FromItself,
    ] {
        for is_before in [true, false] {
            for order in [true, false] {
                for (marker_bytes, alignment) in [(4, 8), (8, 8), (4, 4)] {
                    forms.push(Form { addresses, is_before, order, marker_bytes, alignment });
                }
            }
        }
    }
    forms
}

fn per_cpu_at_0(form: Form) -> bool {
    matches!(form.addresses, Addresses::Whole | Addresses::FromBaseOrAbsolute)
}

fn read(symbols: &[Wanted], form: Form) -> Result<Kallsyms, KallsymsError> {
    let image = KernelImage::from_bytes(&vmlinux(symbols, form)).expect("a kernel");
    Kallsyms::read(&image)
}

/// The table for hypervisors knows what the image knows, byte by byte.
#[test]
fn names_for_hypervisors_are_those_of_the_image() {
    let kallsyms = read(&symbols(true), DEBIAN_6_1).expect("symbols");
    let written = names::write(&kallsyms, None, 5).expect("not too long");
    let names = names::KernelNames::read(&written).expect("what was written");
    assert!(names.are_of(5) && names.tasks().is_none());
    let mut found = 0;
    for address in (TEXT - 8..TEXT + 0x9_0000).chain(DATA - 8..DATA + 0x10_0000).step_by(8) {
        let known = kallsyms.function_at(LinkAddress::new(address));
        let known = known.map(|(symbol, offset)| (symbol.name, offset));
        assert_eq!(names.function_at(RuntimeAddress::new(address)), known, "{address:#x}");
        found += usize::from(known.is_some());
    }
    assert!(found > 600 * 8, "{found}");
}

#[test]
fn every_form_gives_every_symbol() {
    for form in forms() {
        let symbols = symbols(per_cpu_at_0(form));
        let kallsyms = read(&symbols, form).unwrap_or_else(|error| panic!("{form:?}: {error}"));
        assert_eq!(kallsyms.count(), symbols.len(), "{form:?}");
        for (found, wanted) in kallsyms.iter().zip(&symbols) {
            assert_eq!((found.name, found.kind), (&wanted.name[..], wanted.kind), "{form:?}");
            assert_eq!(found.address.as_u64(), wanted.address, "{form:?}: {}", wanted.name);
        }
        for (name, wanted) in by_name(&symbols) {
            let found: Vec<_> =
                kallsyms.named(name).map(|symbol| symbol.address.as_u64()).collect();
            let wanted: Vec<_> = wanted.iter().map(|symbol| symbol.address).collect();
            assert_eq!(found, wanted, "{form:?}: {name}");
        }
    }
}

#[test]
fn lengths_reach_to_the_next_symbol_and_places_are_told_apart() {
    for per_cpu_at_0 in [true, false] {
        let addresses =
            if per_cpu_at_0 { Addresses::FromBaseOrAbsolute } else { Addresses::FromBase };
        let form = Form { addresses, is_before: per_cpu_at_0, ..DEBIAN_6_1 };
        let kallsyms = read(&symbols(per_cpu_at_0), form).expect("a table");
        let find = |name| kallsyms.find(name).expect(name);
        assert_eq!(find("modprobe_path").length, Some(0x100));
        assert_eq!(find("modprobe_path").placement, Placement::Image);
        // The next symbol is too far away to say anything.
        assert_eq!(find("linux_banner").length, None);
        assert_eq!(find("_end").length, None);
        assert_eq!(find("start_it").placement, Placement::Init);
        assert_eq!(find("current_task").placement, Placement::PerProcessor);
        assert_eq!(kallsyms.find("twice"), None);
        assert_eq!(kallsyms.named("twice").len(), 2);
        assert_eq!(kallsyms.named("nothing").len(), 0);
        assert!(kallsyms.has_data());
    }
}

#[test]
fn an_address_belongs_to_the_first_symbol_at_or_before_it() {
    let kallsyms = read(&symbols(true), DEBIAN_6_1).expect("a table");
    let at = |address| {
        let (symbol, offset) = kallsyms.at(LinkAddress::new(address))?;
        Some((symbol.name, offset))
    };
    assert_eq!(at(TEXT), Some(("_text", 0)));
    assert_eq!(at(TEXT + 0x1000 + 64 * 5 + 63), Some(("function_5.5", 63)));
    assert_eq!(at(DATA + 0x1ff), Some(("modprobe_path", 0xff)));
    assert_eq!(at(DATA + 0x9_0000), None);
    assert_eq!(at(TEXT - 1), None);
    assert_eq!(at(u64::MAX), None);
    // Per-processor offsets are no addresses.
    assert_eq!(at(0x44), None);
}

#[test]
fn a_table_of_another_kernel_is_refused() {
    // Everything lies 2 MiB further on than in the image.
    let mut moved = symbols(true);
    for symbol in moved.iter_mut().filter(|symbol| symbol.address >= TEXT) {
        symbol.address += 0x20_0000;
    }
    assert_eq!(read(&moved, DEBIAN_6_1).map(|_| ()), Err(KallsymsError::Addresses));
    // Only the banner lies elsewhere.
    let mut moved = symbols(true);
    let banner = moved.iter_mut().find(|symbol| symbol.name == "linux_banner");
    banner.expect("there is one").address += 8;
    assert_eq!(read(&moved, DEBIAN_6_1).map(|_| ()), Err(KallsymsError::Addresses));
}

#[test]
fn addresses_that_do_not_ascend_are_refused() {
    let mut wrong = symbols(true);
    let count = wrong.len();
    wrong.swap(count - 1, count - 2);
    assert_eq!(read(&wrong, DEBIAN_6_1).map(|_| ()), Err(KallsymsError::Addresses));
}

#[test]
fn names_of_other_characters_are_refused() {
    for name in ["a b", "tab\t", "null\u{7f}", &"x".repeat(600)] {
        let mut wrong = symbols(true);
        wrong.push(wanted(DATA + 0xa_0000, 'D', name));
        assert!(read(&wrong, DEBIAN_6_1).is_err(), "{name:?}");
    }
}

#[test]
fn a_kernel_without_a_table_says_so() {
    let mut image = vmlinux(&symbols(true), DEBIAN_6_1);
    let digits = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\0";
    let at = image.windows(digits.len()).position(|window| window == digits);
    image[at.expect("a table")] = b'x';
    let image = KernelImage::from_bytes(&image).expect("a kernel");
    let error = Kallsyms::read(&image).map(|_| ()).expect_err("no table");
    assert_eq!(error, KallsymsError::NoTokens);
    assert!(error.to_string().contains("CONFIG_KALLSYMS"), "{error}");
}

#[test]
fn several_tables_are_refused_and_do_not_take_long() {
    let symbols = symbols(true);
    let table = tables(&symbols, DEBIAN_6_1, 0);
    let copies = |count| {
        let mut image = vmlinux(&symbols, DEBIAN_6_1);
        for copy in 1..=count {
            let at = HEADER_BYTES + RODATA + copy * 0x1_0000;
            image[at..at + table.len()].copy_from_slice(&table);
        }
        let image = KernelImage::from_bytes(&image).expect("a kernel");
        Kallsyms::read(&image).map(|_| ())
    };
    assert_eq!(copies(0), Ok(()));
    assert_eq!(copies(1), Err(KallsymsError::Twice));
    // Each is broken, so that none of them ends the search.
    let mut image = vmlinux(&symbols, DEBIAN_6_1);
    let mut broken = table;
    broken[..8].fill(0xff);
    for copy in 0..12 {
        let at = HEADER_BYTES + RODATA + copy * 0x1_0000;
        image[at..at + broken.len()].copy_from_slice(&broken);
    }
    let image = KernelImage::from_bytes(&image).expect("a kernel");
    assert_eq!(Kallsyms::read(&image).map(|_| ()), Err(KallsymsError::TooMuchWork));
}

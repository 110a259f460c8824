//! Multiboot kernels: which are known, where they go, and what they are told.

use kvm_bindings::kvm_sregs;
use proptest::prelude::*;

use super::*;

/// Bits of the header's flags.
const PAGES: u32 = 1;
const VIDEO: u32 = 1 << 2;
const ADDRESSES: u32 = 1 << 16;

/// A header, and the words behind it.
fn header(flags: u32, more: &[u32]) -> Vec<u8> {
    let magic = 0x1bad_b002_u32;
    let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
    let words = [magic, flags, checksum];
    words.iter().chain(more).flat_map(|word| word.to_le_bytes()).collect()
}

/// An ELF32 file for the 80386 with these segments, their bytes one behind another.
fn elf32(entry: u32, segments: &[Segment]) -> Vec<u8> {
    let low = |number: u64| u32::try_from(number).expect("32 bits");
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2_u16, 3].iter().flat_map(|half| half.to_le_bytes()));
    file.extend([1, entry, 52, 0, 0].iter().flat_map(|word| word.to_le_bytes()));
    let count = u16::try_from(segments.len()).expect("few");
    file.extend([52, 32, count, 40, 0, 0].iter().flat_map(|half: &u16| half.to_le_bytes()));
    let mut offset = low((52 + 32 * segments.len()) as u64);
    for segment in segments {
        let Elf64_Phdr { p_type, p_vaddr, p_paddr, p_filesz, p_memsz, .. } = segment.header;
        let words = [p_type, offset, low(p_vaddr), low(p_paddr), low(p_filesz), low(p_memsz), 7, 4];
        file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        offset += low(segment.bytes.len() as u64);
    }
    file.extend(segments.iter().flat_map(|segment| &segment.bytes));
    file
}

/// Code with a header before it, linked to 3 GiB above its place.
fn segments(flags: u32) -> [Segment; 1] {
    let bytes = [header(flags, &[]), vec![0xf4]].concat();
    [segment(0xc010_0000, 0x10_0000, &bytes, 0x100)]
}

fn refused(image: &[u8]) -> String {
    let scene = Scene::used();
    let error = scene.load(image).expect_err("not a guest");
    scene.check_untouched(&[]);
    error.to_string()
}

#[test]
fn both_classes_of_elf_are_entered_in_protected_mode() {
    for (image, entry) in [
        (elf32(0xc010_000c, &segments(PAGES)), 0x10_000c),
        (elf32(0x10_000c, &segments(0)), 0x10_000c),
        (elf(0xc010_000c, &segments(PAGES)), 0x10_000c),
    ] {
        let scene = Scene::used();
        let boot = scene.load(&image).expect("a guest");
        assert_eq!(sniff(&scene.file("file", &image)).expect("readable"), Some(Format::Multiboot));
        assert_eq!((boot.image.format, boot.entry), (Format::Multiboot, entry));
        assert_eq!(part(&boot, Part::Segment(0)), range(0x10_0000, 0x100));
        assert_eq!(scene.bytes(0x10_000c), [0xf4]);
        assert_eq!(scene.bytes::<0xf3>(0x10_000d), [0; 0xf3]);
        scene.check_untouched(&boot.parts);
        let kinds: Vec<_> = boot.parts.iter().map(|placed| placed.part).collect();
        let told = [
            Part::MultibootInformation,
            Part::CommandLine,
            Part::MpTable,
            Part::AcpiTables,
            Part::Segment(0),
        ];
        assert_eq!(kinds, told);

        let registers = boot.registers();
        assert_eq!((registers.rax, registers.rbx), (0x2bad_b002, 0x7000));
        assert_eq!((registers.rip, registers.rflags, registers.rsp), (entry, 2, 0));
        let special = boot.special_registers(kvm_sregs::default());
        assert_eq!((special.cr0 & (1 << 31 | 1), special.efer, special.cr4), (1, 0, 0));
        let cs = special.cs;
        assert_eq!((cs.base, cs.limit, cs.db, cs.l, cs.type_), (0, u32::MAX, 1, 0, 11));
        for data in [special.ds, special.es, special.fs, special.gs, special.ss] {
            assert_eq!((data.base, data.limit, data.db, data.type_), (0, u32::MAX, 1, 3));
        }
        assert_eq!((special.gdt.limit, special.idt.limit), (0, 0));
    }
}

#[test]
fn a_kernel_is_told_memory_command_line_and_initrd() {
    let scene = Scene::zeroed(4 << 30);
    let initrd = scene.file("initrd", &[0x3c; 0x1800]);
    let request = Request { initrd: Some(&initrd), ..request() };
    let boot = scene.load_with(&elf32(0x10_000c, &segments(PAGES)), &request).expect("a guest");
    let word = |at: u64| u32::from_le_bytes(scene.bytes(at));
    let told = word(0x7000);
    assert_eq!(told & 0b1111_1111, 0b100_1101, "memory, command line, modules, map; no symbols");
    assert_eq!(told & 0xffff_ff00, 1 << 9, "the loader's name; no boot device, nothing later");
    // From 1 MiB to 3 GiB.
    assert_eq!((word(0x7004), word(0x7008)), (639, 3 * (1 << 20) - 1024));
    assert_eq!(scene.bytes(word(0x7010).into()), *b"console=ttyS0\0");
    let place = part(&boot, Part::Initrd);
    assert_eq!(word(0x7014), 1);
    let module = u64::from(word(0x7018));
    let [first, end] = [0, 4].map(|offset| u64::from(word(module + offset)));
    assert_eq!((first, end), (place.first().as_u64(), place.first().as_u64() + 0x1800));
    assert_eq!(first % 4096, 0);
    assert_eq!(scene.bytes(first), [0x3c; 0x1800]);
    let (length, map) = (u64::from(word(0x702c)), u64::from(word(0x7030)));
    let entries: Vec<_> = (0..length / 24)
        .map(|entry| map + 24 * entry)
        .map(|at| (word(at), scene.word(at + 4), scene.word(at + 12), word(at + 20)))
        .collect();
    let expected = [
        (20, 0, 0x9_fc00, 1),
        (20, 0x9_fc00, 0x6_0400, 2),
        (20, 0x10_0000, 0xbff0_0000, 1),
        (20, 1 << 32, 1 << 30, 1),
    ];
    assert_eq!(entries, expected);
    assert_eq!(length % 24, 0);
    assert_eq!(scene.bytes(word(0x7040).into()), *b"subpage\0");

    let without = Scene::used();
    without.load(&elf32(0x10_000c, &segments(PAGES))).expect("a guest");
    assert_eq!(u32::from_le_bytes(without.bytes(0x7014)), 0, "no module");
}

#[test]
fn a_header_with_addresses_says_where_its_file_goes() {
    let body = |load_end, bss_end| {
        // 8 bytes before the header are loaded, 4 before those are not.
        let addresses = [0x10_0008, 0x10_0000, load_end, bss_end, 0x10_0028];
        [vec![0xee; 12], header(ADDRESSES, &addresses), vec![0xf4; 5]].concat()
    };
    for (image, bytes, total) in [
        (body(0, 0), 45, 45),
        (body(0x10_002a, 0), 42, 42),
        (body(0x10_002a, 0x10_0400), 42, 0x400),
        (body(0, 0x10_0400), 45, 0x400),
    ] {
        let scene = Scene::used();
        let boot = scene.load(&image).expect("a guest");
        assert_eq!((boot.image.format, boot.entry), (Format::Multiboot, 0x10_0028));
        assert_eq!(part(&boot, Part::MultibootImage), range(0x10_0000, total));
        let mut expected = image[4..4 + bytes].to_vec();
        expected.resize(usize::try_from(total).expect("small"), 0);
        let mut loaded = vec![0; expected.len()];
        scene.ram.direct().read_slice(&mut loaded, GuestAddress(0x10_0000)).expect("memory");
        assert_eq!(loaded, expected);
        scene.check_untouched(&boot.parts);
    }
    // It says itself where it goes.
    let scene = Scene::used();
    let at = Request { load_address: Some(0x10_0000), ..request() };
    let error = scene.load_with(&body(0, 0), &at).expect_err("an address too many");
    assert!(matches!(error, BootError::LoadAddress { format: Format::Multiboot, .. }), "{error}");
    for (addresses, told) in [
        // The header before the place where loading begins, and bytes before the file.
        ([0x10_0000, 0x10_0008, 0, 0, 0x10_0000], "header 0x100000 at 0xc"),
        ([0x10_0010, 0x10_0000, 0, 0, 0x10_0000], "do not fit its file"),
        // An end before the beginning, and behind the file.
        ([0x10_0008, 0x10_0000, 0xf_ffff, 0, 0x10_0000], "load 0x100000 to 0xfffff"),
        ([0x10_0008, 0x10_0000, 0x10_1000, 0, 0x10_0000], "do not fit its file"),
        // An entry in front of what is loaded, and behind it.
        ([0x10_0008, 0x10_0000, 0, 0, 0], "entry 0x0 is not in what it loads, 0x100000 to"),
        ([0x10_0008, 0x10_0000, 0x10_0028, 0, 0x10_0028], "entry 0x100028 is not in what"),
    ] {
        let image = [vec![0xee; 12], header(ADDRESSES, &addresses), vec![0xf4; 5]].concat();
        let error = refused(&image);
        assert!(error.contains(told), "{error}");
    }
    assert!(
        refused(&[vec![0; 12], header(ADDRESSES, &[1, 2])].concat()).contains("cut off inside")
    );
}

/// Symbols are where the ELF headers say, the kernel where the Multiboot header says.
#[test]
fn addresses_that_contradict_elf_are_refused() {
    let image = |place: u32, physical| {
        let header = header(ADDRESSES, &[place, place, 0, 0, place + 32]);
        elf32(0x10_0020, &[segment(0xc010_0000, physical, &[header, vec![0xf4]].concat(), 0x100)])
    };
    assert!(Scene::used().load(&image(0x10_0000, 0x10_0000)).is_ok());
    let error = refused(&image(0x30_0000, 0x10_0000));
    assert!(
        error.contains("0x54 of the file at 0x300000, its ELF headers put it at 0x100000"),
        "{error}"
    );
}

#[test]
fn a_header_is_one_where_the_specification_looks() {
    let image = |before: usize| {
        let code = [vec![0xcc; before], header(0, &[])].concat();
        elf32(0x10_0000, &[segment(0x10_0000, 0x10_0000, &code, 0x4000)])
    };
    // The headers of the ELF file have 84 bytes.
    for (before, known) in
        [(0, true), (1, false), (4, true), (8192 - 84 - 12, true), (8192 - 84 - 8, false)]
    {
        let scene = Scene::used();
        let loaded = scene.load(&image(before));
        assert_eq!(loaded.is_ok(), known, "{before}");
        let Err(error) = loaded else { continue };
        assert!(error.to_string().contains("32-bit one without a Multiboot header"), "{error}");
        assert!(error.to_string().contains("in its first 8 KiB, or a bzImage"), "{error}");
    }
    // A checksum that does not fit.
    let mut wrong = image(0);
    wrong[84 + 8] ^= 1;
    assert!(refused(&wrong).contains("without a Multiboot header"));
    // No ELF file, and no addresses: nothing says where it goes.
    assert!(refused(&header(PAGES, &[])).contains("give its load address"));
}

#[test]
fn what_a_kernel_asks_for_and_cannot_have_is_told() {
    let ask = |flags| refused(&elf32(0x10_000c, &segments(flags)));
    assert!(ask(PAGES | VIDEO).contains("flags 0x5, and bit 2 asks for a video mode"));
    assert!(ask(1 << 15).contains("flags 0x8000, and what bits 3 to 15 ask for is not known here"));
    // Bits of the upper half may be left unknown.
    assert!(Scene::used().load(&elf32(0x10_000c, &segments(1 << 31))).is_ok());
    let high = 1 << 32;
    let mut above = segments(PAGES);
    above[0].header.p_paddr = high;
    let error = refused(&elf(high + 12, &above));
    assert!(error.contains("entry 0x10000000c is not below 4 GiB"), "{error}");
    let mut low = segments(PAGES).to_vec();
    low.push(segment(high, high, b"data", 4));
    let error = refused(&elf(0x10_000c, &low));
    assert!(error.contains("end 0x100000004 is not below 4 GiB"), "{error}");
}

/// Its entry is 32-bit code, unless the header names another for Multiboot2.
#[test]
fn a_multiboot2_kernel_is_told_what_would_be_accepted() {
    let second = |tags: &[(u16, &[u8])]| {
        let mut bytes = Vec::new();
        for (kind, content) in tags {
            let length = u32::try_from(8 + content.len()).expect("small");
            bytes.extend([kind.to_le_bytes(), [0; 2]].concat());
            bytes.extend(length.to_le_bytes());
            bytes.extend(*content);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        let length = 16 + u32::try_from(bytes.len()).expect("small");
        let magic = 0xe852_50d6_u32;
        let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(length);
        let words = [magic, 0, length, checksum];
        let header: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        // The headers of the ELF file have 120 bytes.
        elf(0x10_0000, &[segment(0x10_0000, 0x10_0000, &[header, bytes].concat(), 0x100)])
    };
    let others: [&[(u16, &[u8])]; 4] =
        [&[], &[(0, b"")], &[(1, b"\x06\0\0\0"), (0, b"")], &[(5, &[0; 12]), (0, b"")]];
    for tags in others {
        let error = refused(&second(tags));
        assert!(error.contains("Multiboot2 header, and its entry is 32-bit code"), "{error}");
        assert!(error.contains("of version 1 (0x1badb002), or a 64-bit entry"), "{error}");
    }
    let own: [(u16, &[u8]); 3] = [(1, b"\x06\0\0\0"), (3, b"\0\0\x10\0"), (0, b"")];
    let boot = Scene::used().load(&second(&own)).expect("its 64-bit entry is the file's");
    assert_eq!(boot.image.format, Format::Elf64);
}

#[test]
fn every_beginning_of_a_kernel_is_refused() {
    let scene = Scene::used();
    for image in [elf32(0x10_000c, &segments(PAGES)), elf(0x10_000c, &segments(PAGES))] {
        for bytes in 0..image.len() {
            scene.load(&image[..bytes]).expect_err("cut off");
            scene.check_untouched(&[]);
        }
    }
}

proptest! {
    #[test]
    fn changed_bytes_load_or_are_refused(
        wide in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let scene = Scene::used();
        let segments = segments(PAGES);
        let mut image = if wide { elf(0x10_000c, &segments) } else { elf32(0x10_000c, &segments) };
        for (at, value) in changes {
            let at = at.index(image.len());
            image[at] = value;
        }
        match scene.load(&image) {
            Ok(boot) => scene.check_untouched(&boot.parts),
            Err(_) => scene.check_untouched(&[]),
        }
    }

    #[test]
    fn any_addresses_load_or_are_refused(words in prop::collection::vec(
        prop_oneof![any::<u32>(), 0xf_ff00_u32..0x10_0100, 0_u32..0x40], 5), before in 0_usize..16,
    ) {
        let scene = Scene::used();
        let image = [vec![0; 4 * before], header(ADDRESSES, &words), vec![1; 9]].concat();
        match scene.load(&image) {
            Ok(boot) => scene.check_untouched(&boot.parts),
            Err(_) => scene.check_untouched(&[]),
        }
    }
}

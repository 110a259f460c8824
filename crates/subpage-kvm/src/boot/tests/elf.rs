//! ELF images: where they go, and which are refused.

use linux_loader::elf::{ET_DYN, PT_INTERP, PT_NOTE};

use super::*;

fn refused(image: &[u8]) -> ElfError {
    let scene = Scene::used();
    let error = scene.load(image).expect_err("not a guest");
    scene.check_untouched(&[]);
    let BootError::Elf { error, .. } = error else { panic!("{error}") };
    error
}

#[test]
fn segments_go_to_their_physical_addresses_with_zeros_behind() {
    let scene = Scene::used();
    let boot = scene.load(&small_elf()).expect("a guest");
    assert_eq!((boot.image.format, boot.entry), (Format::Elf64, 0x10_0001));
    assert_eq!(scene.bytes(0x10_0000), *b"\xfa\xf4\xeb\xfc");
    assert_eq!(scene.bytes(0x10_1000), *b"data");
    assert_eq!(scene.bytes::<0x11f>(0x10_1004), [0; 0x11f]);
    assert_eq!(part(&boot, Part::Segment(1)), range(0x10_1000, 0x123));
    scene.check_untouched(&boot.parts);
}

#[test]
fn a_second_load_makes_the_same_memory() {
    let scene = Scene::used();
    let first = scene.load(&small_elf()).expect("a guest");
    for placed in &first.parts {
        // The guest has used its memory.
        let used = vec![0x77; usize::try_from(placed.range.bytes()).expect("small")];
        let at = GuestAddress(placed.range.first().as_u64());
        scene.ram.direct().write_slice(&used, at).expect("memory");
    }
    let again = scene.load(&small_elf()).expect("the same guest");
    assert_eq!(again, first);
    assert_eq!(scene.bytes(0x10_0000), *b"\xfa\xf4\xeb\xfc");
    assert_eq!(scene.bytes::<0x11f>(0x10_1004), [0; 0x11f]);
    assert_eq!({ scene.zero_page().hdr.header }, 0x5372_6448);
}

#[test]
fn an_entry_at_a_virtual_address_is_translated() {
    let high = 0xffff_ffff_8000_0000;
    let kernel = segment(high + 0x1000, 0x10_1000, &[0x90; 16], 0x2000);
    let per_cpu = segment(0, 0x10_4000, &[1; 8], 8);
    let scene = Scene::used();
    let segments = [per_cpu, kernel];
    let boot = scene.load(&elf(high + 0x1004, &segments)).expect("a guest");
    assert_eq!(boot.entry, 0x10_1004);
    let boot = scene.load(&elf(0x10_1004, &segments)).expect("a guest");
    assert_eq!(boot.entry, 0x10_1004);
    for entry in [high, high + 0x3000, 0x10_3000, 8, u64::MAX] {
        assert_eq!(refused(&elf(entry, &segments)), ElfError::Entry { entry });
    }
}

#[test]
fn other_headers_than_load_segments_are_skipped() {
    let mut note = segment(0, 0, b"not a note", 1 << 60);
    note.header.p_type = PT_NOTE;
    let empty = segment(0, 0x7000, b"", 0);
    let code = segment(0x10_0000, 0x10_0000, b"\xf4", 1);
    let scene = Scene::used();
    let boot = scene.load(&elf(0x10_0000, &[note, empty, code])).expect("a guest");
    assert_eq!(part(&boot, Part::Segment(2)), range(0x10_0000, 1));
}

#[test]
fn other_kinds_of_elf_files_are_refused() {
    let segments = [segment(0x10_0000, 0x10_0000, b"\xf4", 1)];
    let change = |change: fn(&mut Elf64_Ehdr)| {
        let mut header = elf_header(0x10_0000, 1);
        change(&mut header);
        refused(&elf_of(&header, &segments))
    };
    assert_eq!(change(|header| header.e_ident[4] = 1), ElfError::Machine);
    let i386 = |header: &mut Elf64_Ehdr| (header.e_ident[4], header.e_machine) = (1, 3);
    assert_eq!(change(i386), ElfError::Class32);
    assert_eq!(change(|header| header.e_ident[5] = 2), ElfError::Machine);
    assert_eq!(change(|header| header.e_machine = 183), ElfError::Machine);
    assert_eq!(change(|header| header.e_type = ET_DYN), ElfError::Type { kind: 3 });
    assert_eq!(change(|header| header.e_phnum = 0), ElfError::NothingToLoad);
    let headers = ElfError::Headers { count: 1, bytes: 32, known: 56 };
    assert_eq!(change(|header| header.e_phentsize = 32), headers);
    let headers = ElfError::Headers { count: 0xffff, bytes: 56, known: 56 };
    assert_eq!(change(|header| header.e_phnum = 0xffff), headers);
    let offset = u64::MAX - 8;
    let cut_off = ElfError::HeadersCutOff { count: 1, offset };
    assert_eq!(change(|header| header.e_phoff = u64::MAX - 8), cut_off);
    assert_eq!(
        change(|header| header.e_phnum = 0xfffe),
        ElfError::HeadersCutOff { count: 0xfffe, offset: 64 }
    );
}

#[test]
fn a_program_that_wants_a_dynamic_linker_is_refused() {
    let mut interpreter = segment(0, 0, b"/lib/ld.so", 10);
    interpreter.header.p_type = PT_INTERP;
    let code = segment(0x10_0000, 0x10_0000, b"\xf4", 1);
    assert_eq!(refused(&elf(0x10_0000, &[code, interpreter])), ElfError::Interpreter);
}

#[test]
fn damaged_segments_are_named() {
    let change = |change: fn(&mut Elf64_Phdr)| {
        let mut code = segment(0x10_0000, 0x10_0000, &[0xf4; 8], 8);
        change(&mut code.header);
        refused(&elf(0x10_0000, &[segment(0x10_1000, 0x10_1000, b"d", 1), code]))
    };
    let index = 1;
    assert_eq!(
        change(|header| header.p_memsz = 7),
        ElfError::SegmentSizes { index, file_bytes: 8, bytes: 7 }
    );
    assert_eq!(
        change(|header| (header.p_filesz, header.p_memsz) = (9, 9)),
        ElfError::SegmentCutOff { index, offset: 177, bytes: 9 }
    );
    assert_eq!(
        change(|header| (header.p_filesz, header.p_memsz) = (u64::MAX, u64::MAX)),
        ElfError::SegmentCutOff { index, offset: 177, bytes: u64::MAX }
    );
    assert_eq!(
        change(|header| header.p_memsz = u64::MAX),
        ElfError::SegmentBeyond { index, address: 0x10_0000, bytes: u64::MAX }
    );
    assert_eq!(
        change(|header| header.p_paddr = u64::MAX - 3),
        ElfError::SegmentBeyond { index, address: u64::MAX - 3, bytes: 8 }
    );
}

#[test]
fn a_file_without_load_segments_is_refused() {
    let mut note = segment(0, 0, b"note", 4);
    note.header.p_type = PT_NOTE;
    assert_eq!(refused(&elf(0, &[note])), ElfError::NothingToLoad);
}

#[test]
fn parts_over_each_other_are_both_named() {
    let refused = |segments: &[Segment], text: &str| {
        let scene = Scene::used();
        let error = scene.load(&elf(0x10_0000, segments)).expect_err("no room");
        assert!(error.to_string().starts_with(text), "{error}");
        assert!(matches!(error, BootError::Overlap { .. }));
        scene.check_untouched(&[]);
    };
    let code = segment(0x10_0000, 0x10_0000, &[0xf4; 16], 16);
    let over = segment(0x10_000f, 0x10_000f, b"", 1);
    refused(
        &[over, code.clone()],
        "segment 1 of the image (0x100000..0x100010) overlaps segment 0 of the image \
         (0x10000f..0x100010)",
    );
    let boot = |first, bytes, other: &str| {
        let text = other
            .replace('@', &format!("segment 1 of the image ({first:#x}..{:#x})", first + bytes));
        refused(&[code.clone(), segment(first, first, b"", bytes)], &text);
    };
    boot(0x4ff, 2, "@ overlaps the GDT and TSS (0x500..0x668)");
    boot(0x7fff, 1, "the zero page (0x7000..0x8000) overlaps @");
    boot(0x8000, 1, "the boot stack (0x8000..0x9000) overlaps @");
    boot(0xefff, 1, "the page tables (0x9000..0xf000) overlaps @");
    boot(0x2_000d, 1, "the command line (0x20000..0x2000e) overlaps @");
    boot(0x9_0000, 0x1_0000, "@ overlaps the MP table (0x9fc00..");
}

#[test]
fn low_memory_beside_the_parts_may_be_used() {
    let scene = Scene::used();
    let low = segment(0xf000, 0xf000, &[0x90; 16], 0x11000);
    let boot = scene.load(&elf(0xf000, &[low])).expect("a guest");
    scene.check_untouched(&boot.parts);
}

#[test]
fn a_guest_larger_than_memory_is_told_what_there_is() {
    let scene = Scene::used();
    let large = segment(0x10_0000, 0x10_0000, b"\xf4", 0x10_0001);
    let error = scene.load(&elf(0x10_0000, &[large])).expect_err("too large");
    assert_eq!(
        error.to_string(),
        "segment 0 of the image (0x100000..0x200001) does not lie in the guest's memory of \
         2 MiB (0x0..0x200000): the guest would need 3 MiB; give the guest more memory or link it \
         elsewhere"
    );
    scene.check_untouched(&[]);

    let scene = Scene::zeroed(4 << 30);
    let devices = segment(0xc000_0000, 0xc000_0000, b"\xf4", 1);
    let error = scene.load(&elf(0xc000_0000, &[devices])).expect_err("no memory");
    assert!(
        error.to_string().contains("(0x0..0xc0000000 and 0x100000000..0x140000000)"),
        "{error}"
    );
    // However little memory the guest has, no memory ever comes there.
    let error =
        Scene::used().load(&elf(0xfee0_0000, &[segment(0xfee0_0000, 0xfee0_0000, b"\xf4", 1)]));
    let error = error.expect_err("devices").to_string();
    assert!(error.contains("devices lie from 3 to 4 GiB"), "{error}");
    assert!(error.ends_with("; link it elsewhere"), "{error}");
}

#[test]
fn a_guest_above_4_gib_is_loaded() {
    let scene = Scene::zeroed(4 << 30);
    let at = 0x1_3fff_f000;
    let boot = scene.load(&elf(at, &[segment(at, at, b"\xf4", 0x1000)])).expect("a guest");
    assert_eq!((boot.entry, scene.bytes(at)), (at, *b"\xf4"));
}

/// It would die at its first system call, or before. The C library's tag may stand behind other notes,
/// whose parts are aligned to 4 or to 8 bytes.
#[test]
fn a_program_for_linux_is_no_guest() {
    let code = segment(0x10_0000, 0x10_0000, &[0xf4; 16], 16);
    let add = |bytes: &mut Vec<u8>, align: usize, kind: u32, name: &[u8], content: &[u32]| {
        for length in [name.len(), 4 * content.len()] {
            bytes.extend(u32::try_from(length).expect("small").to_le_bytes());
        }
        bytes.extend(kind.to_le_bytes());
        bytes.extend(name);
        bytes.resize(bytes.len().next_multiple_of(align), 0xff);
        bytes.extend(content.iter().flat_map(|word| word.to_le_bytes()));
        bytes.resize(bytes.len().next_multiple_of(align), 0xff);
    };
    let with = |bytes: &[u8], align: usize| {
        let mut note = segment(0, 0, bytes, 0);
        (note.header.p_type, note.header.p_align) = (PT_NOTE, align as u64);
        elf(0x10_0000, &[code.clone(), note])
    };
    for align in [4, 8] {
        // Parts of which each length leaves another rest.
        let others: [(u32, &[u8], &[u32]); 4] =
            [(5, b"GNU\0", &[9; 4]), (3, b"GNU\0", &[9; 5]), (1, b"Other\0", &[0]), (1, b"", &[])];
        for behind in 0..=others.len() {
            let note = |kind: u32, system: u32, name: &[u8; 4]| {
                let mut bytes = Vec::new();
                for (kind, name, content) in &others[..behind] {
                    add(&mut bytes, align, *kind, name, content);
                }
                add(&mut bytes, align, kind, name, &[system, 3, 2, 0]);
                with(&bytes, align)
            };
            let context = format!("behind {behind}, aligned to {align}");
            assert_eq!(refused(&note(1, 0, b"GNU\0")), ElfError::ForLinux, "{context}");
            assert_eq!(refused(&note(4, 9, b"Go\0\0")), ElfError::ForLinux, "{context}");
            for other in [
                note(4, 0, b"GNU\0"),
                note(1, 1, b"GNU\0"),
                note(2, 0, b"GNU\0"),
                note(1, 0, b"Xen\0"),
            ] {
                let loaded = Scene::used().load(&other);
                assert!(loaded.is_ok(), "{context}");
            }
        }
        // Lengths that reach beyond the file, or to its end.
        for (name, content) in [(u32::MAX, 0), (0, u32::MAX), (u32::MAX, u32::MAX), (5, 0)] {
            let mut bytes: Vec<u8> =
                [name, content, 1].iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes.extend(b"GNU\0\0\0\0");
            Scene::used().load(&with(&bytes, align)).expect("a guest");
        }
    }
}

/// A static program without a tag, as musl's: its symbols name the C library's start.
#[test]
fn a_program_with_the_c_librarys_start_is_no_guest() {
    const SYMBOLS: u32 = 2;
    const STRINGS: u32 = 3;
    let code = segment(0x10_0000, 0x10_0000, &[0xf4; 16], 16);
    // The section headers, behind them the strings.
    let with = |kind: u32, link: u32, strings: &[u8], count: u16| {
        let mut header = elf_header(0x10_0000, 1);
        (header.e_shoff, header.e_shentsize, header.e_shnum) = (0x100, 64, count);
        let mut file = elf_of(&header, std::slice::from_ref(&code));
        file.resize(0x100, 0);
        let section = |kind: u32, link: u32, offset: u64, bytes: u64| {
            let mut section = vec![0; 64];
            section[4..8].copy_from_slice(&kind.to_le_bytes());
            section[24..32].copy_from_slice(&offset.to_le_bytes());
            section[32..40].copy_from_slice(&bytes.to_le_bytes());
            section[40..44].copy_from_slice(&link.to_le_bytes());
            section
        };
        file.extend(section(0, 0, 0, 0));
        file.extend(section(kind, link, 0x100, 64));
        file.extend(section(STRINGS, 0, 0x100 + 3 * 64, strings.len() as u64));
        file.extend(strings);
        file
    };
    let start = b"\0main\0__libc_start_main\0exit\0";
    assert_eq!(refused(&with(SYMBOLS, 2, start, 3)), ElfError::ForLinux);
    let other = b"\0my__libc_start_main\0__libc_start_main_2\0__libc_start_main";
    for image in [
        with(SYMBOLS, 2, other, 3),
        with(SYMBOLS, 9, start, 3),
        with(SYMBOLS, u32::MAX, start, 0xffff),
        with(SYMBOLS, 2, start, 2),
        with(STRINGS, 2, start, 3),
        with(SYMBOLS, 2, start, 3)[..0x100 + 3 * 64 + 10].to_vec(),
    ] {
        Scene::used().load(&image).expect("a guest");
    }
}

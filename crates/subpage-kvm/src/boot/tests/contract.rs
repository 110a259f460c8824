//! What every guest finds: processor state, page tables, zero page, MP table.

use kvm_bindings::{kvm_segment, kvm_sregs};

use super::*;

/// What a linear address is translated to, through the tables in memory.
fn translate(scene: &Scene, boot: &Boot, linear: u64) -> Option<u64> {
    let mut table = boot.page_tables;
    for shift in [39, 30] {
        let entry = scene.word(table + (linear >> shift & 0x1ff) * 8);
        if entry & 3 != 3 {
            return None;
        }
        table = entry & 0x000f_ffff_ffff_f000;
    }
    let entry = scene.word(table + (linear >> 21 & 0x1ff) * 8);
    let large = 1 << 7 | 3;
    (entry & large == large).then_some((entry & 0x000f_ffff_ffe0_0000) | (linear & 0x1f_ffff))
}

/// First byte, end, type.
fn memory_map(scene: &Scene) -> Vec<(u64, u64, u32)> {
    let page = scene.zero_page();
    let table = page.e820_table;
    let entries = table.iter().take(page.e820_entries.into());
    entries.map(|entry| (entry.addr, entry.addr + entry.size, entry.r#type)).collect()
}

#[test]
fn registers_are_those_of_the_contract() {
    let scene = Scene::used();
    let boot = scene.load(&small_elf()).expect("a guest");
    let registers = boot.registers();
    let expected = (0x10_0001, 0x7000, 0x8ff0, 2);
    assert_eq!((registers.rip, registers.rsi, registers.rsp, registers.rflags), expected);
    assert_eq!((registers.rax, registers.rdi, registers.rbp), (0, 0, 0));
    let from = kvm_sregs { apic_base: 0xfee0_0900, cr8: 3, ..kvm_sregs::default() };
    let special = boot.special_registers(from);
    assert_eq!(special.cr0 & (1 << 31 | 1 << 30 | 1 << 29 | 1 << 2 | 1), 1 << 31 | 1);
    assert_eq!((special.cr3, special.cr4 & (1 << 5 | 1 << 9)), (0x9000, 1 << 5 | 1 << 9));
    assert_eq!((special.efer, special.apic_base, special.cr8), (0x500, 0xfee0_0900, 0));
    assert_eq!((special.idt.limit, special.ldt.unusable), (0, 1));
}

#[test]
fn segments_are_what_the_gdt_in_memory_says() {
    let scene = Scene::used();
    let boot = scene.load(&small_elf()).expect("a guest");
    let special = boot.special_registers(kvm_sregs::default());
    let gdt = special.gdt;
    assert_eq!((gdt.base, gdt.limit), (0x500, 47));
    let loaded = |selector: u16| {
        assert!(selector + 7 <= gdt.limit);
        let entry = scene.word(gdt.base + u64::from(selector));
        let bit = |at: u32| u8::from(entry >> at & 1 == 1);
        let granular = bit(55) == 1;
        let limit = u32::try_from(entry & 0xffff | entry >> 32 & 0xf_0000).expect("20 bits");
        kvm_segment {
            base: entry >> 16 & 0xff_ffff | entry >> 32 & 0xff00_0000,
            limit: if granular { limit << 12 | 0xfff } else { limit },
            selector,
            type_: u8::try_from(entry >> 40 & 0xf).expect("4 bits"),
            present: bit(47),
            dpl: u8::try_from(entry >> 45 & 3).expect("2 bits"),
            db: bit(54),
            s: bit(44),
            l: bit(53),
            g: bit(55),
            avl: bit(52),
            ..kvm_segment::default()
        }
    };
    assert_eq!(special.cs, loaded(0x10));
    for data in [special.ds, special.es, special.fs, special.gs, special.ss] {
        assert_eq!(data, loaded(0x18));
    }
    assert_eq!((special.cs.l, special.cs.db, special.cs.limit), (1, 0, u32::MAX));
    // Busy, 64 bits, and the upper half of its base is 0.
    assert_eq!(special.tr, loaded(0x20));
    assert_eq!((special.tr.type_, special.tr.s, special.tr.limit), (11, 0, 103));
    assert_eq!(scene.word(gdt.base + 0x28), 0);
    let task: [u8; 104] = scene.bytes(special.tr.base);
    assert!(task[..102].iter().all(|&byte| byte == 0));
    assert_eq!(task[102..], [104, 0]);
}

#[test]
fn memory_is_mapped_to_itself() {
    let scene = Scene::used();
    let boot = scene.load(&small_elf()).expect("a guest");
    for linear in [0, 0x7fff, 0x10_0001, 0xfee0_0000, 0xffff_ffff] {
        assert_eq!(translate(&scene, &boot, linear), Some(linear));
    }
    assert_eq!(translate(&scene, &boot, 1 << 32), None);
    assert_eq!(translate(&scene, &boot, 1 << 39), None);
    assert_eq!(part(&boot, Part::PageTables), range(0x9000, 0x6000));
}

#[test]
fn page_tables_grow_with_memory() {
    // The last size whose directories lie before the command line, and the next one.
    for (bytes, place) in [
        (20_u64 << 30, range(0x9000, 0x1_7000)),
        ((20 << 30) + 4096, range(0xc000_0000 - 22 * 4096, 22 * 4096)),
        (255 << 30, range(0xc000_0000 - 256 * 4096, 256 * 4096)),
    ] {
        let scene = Scene::zeroed(bytes);
        let initrd = scene.file("initrd", b"initrd");
        let request = Request { initrd: Some(&initrd), ..request() };
        let boot = scene.load_with(&small_elf(), &request).expect("a guest");
        let end = bytes + (1 << 30);
        for linear in [0, 0xffff_ffff, 1 << 32, end - 1] {
            assert_eq!(translate(&scene, &boot, linear), Some(linear), "{bytes:#x}");
        }
        assert_eq!(translate(&scene, &boot, end.next_multiple_of(1 << 30)), None);
        let mut tables = boot.parts.iter().filter(|placed| placed.part == Part::PageTables);
        assert_eq!(tables.next_back().expect("tables").range, place);
        let low_end = place.first().as_u64();
        let mut expected = vec![(0, 0x9_fc00, 1), (0x9_fc00, 0x10_0000, 2)];
        if low_end == 0x9000 {
            expected.push((0x10_0000, 0xc000_0000, 1));
        } else {
            expected.extend([(0x10_0000, low_end, 1), (low_end, 0xc000_0000, 2)]);
        }
        expected.push((1 << 32, end, 1));
        assert_eq!(memory_map(&scene), expected);
        // What Linux takes ends at 2 GiB.
        assert_eq!(part(&boot, Part::Initrd).first().as_u64(), 0x7fff_f000);
    }
}

#[test]
fn the_initrd_stays_clear_of_the_page_directories() {
    let scene = Scene::zeroed(32 << 30);
    let initrd = scene.file("initrd", b"initrd");
    let header = setup_header { initrd_addr_max: u32::MAX, ..setup() };
    let request = Request { initrd: Some(&initrd), ..request() };
    let boot = scene.load_with(&bzimage(&header), &request).expect("a kernel");
    let tables = 0xc000_0000 - 33 * 4096;
    assert_eq!(part(&boot, Part::Initrd).first().as_u64(), tables - 4096);
}

#[test]
fn a_small_guest_is_told_its_memory() {
    let scene = Scene::used();
    scene.load(&small_elf()).expect("a guest");
    let expected = [(0, 0x9_fc00, 1), (0x9_fc00, 0x10_0000, 2), (0x10_0000, MIN_BYTES, 1)];
    assert_eq!(memory_map(&scene), expected);
    let header = scene.zero_page().hdr;
    assert_eq!(({ header.header }, header.version, header.boot_flag), (0x5372_6448, 0x20f, 0xaa55));
    assert_eq!(({ header.cmd_line_ptr }, { header.ramdisk_size }), (0x2_0000, 0));
    assert_eq!(scene.bytes(0x2_0000), *b"console=ttyS0\0");
}

#[test]
fn an_empty_command_line_is_a_nul() {
    let scene = Scene::used();
    scene.load_with(&small_elf(), &Request { command_line: "", ..request() }).expect("a guest");
    assert_eq!(scene.bytes(0x2_0000), [0, BEFORE]);
}

#[test]
fn the_mp_table_lists_processors_and_interrupts() {
    for cpus in [1_u8, 2, 41, 254] {
        let scene = Scene::used();
        let boot = scene.load_with(&small_elf(), &Request { cpus: cpus.into(), ..request() });
        let place = part(&boot.expect("a guest"), Part::MpTable);
        let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte));
        let pointer: [u8; 16] = scene.bytes(0x9_fc00);
        assert_eq!((&pointer[..4], pointer[8], pointer[9]), (&b"_MP_"[..], 1, 4));
        assert_eq!(sum(&pointer), 0);
        let table_at = u32::from_le_bytes(pointer[4..8].try_into().expect("four bytes"));
        assert_eq!(u64::from(table_at), place.first().as_u64() + 16);
        let mut table = vec![0; usize::try_from(place.bytes() - 16).expect("small")];
        let at = GuestAddress(table_at.into());
        scene.ram.direct().read_slice(&mut table, at).expect("memory");
        assert_eq!((&table[..4], table[6]), (&b"PCMP"[..], 4));
        assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
        assert_eq!(sum(&table), 0);
        assert_eq!(table[36..40], 0xfee0_0000_u32.to_le_bytes());

        let mut entries = Vec::new();
        let mut rest = &table[44..];
        while let Some(&kind) = rest.first() {
            let (entry, others) = rest.split_at(if kind == 0 { 20 } else { 8 });
            entries.push(entry);
            rest = others;
        }
        assert_eq!(usize::from(u16::from_le_bytes([table[34], table[35]])), entries.len());
        let of = |kind: u8| entries.iter().filter(move |entry| entry[0] == kind);
        let processors: Vec<_> = of(0).map(|entry| (entry[1], entry[3])).collect();
        let expected: Vec<_> = (0..cpus).map(|cpu| (cpu, if cpu == 0 { 3 } else { 1 })).collect();
        assert_eq!(processors, expected);
        assert_eq!(of(1).collect::<Vec<_>>(), [b"\x01\x00ISA   "]);
        let io_apic = [2, cpus, 0x11, 1, 0x00, 0x00, 0xc0, 0xfe];
        assert_eq!(of(2).collect::<Vec<_>>(), [&io_apic]);
        let interrupts: Vec<_> = of(3).map(|entry| entry[1..].to_vec()).collect();
        let expected: Vec<_> = (0..16).map(|irq| vec![0, 0, 0, 0, irq, cpus, irq]).collect();
        assert_eq!(interrupts, expected);
        assert_eq!(of(4).count(), 2);
    }
}

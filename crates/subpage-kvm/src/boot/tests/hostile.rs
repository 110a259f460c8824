//! Damaged files: each loads or is refused, and nothing is written next to the parts.

use proptest::prelude::*;

use super::*;

/// Loads it over used memory.
fn try_load(scene: &Scene, image: &[u8]) -> Result<Boot, BootError> {
    scene.refill();
    let initrd = scene.file("initrd", &[0x3c; 0x1800]);
    let loaded = scene.load_with(image, &Request { initrd: Some(&initrd), ..request() });
    match &loaded {
        Ok(boot) => {
            scene.check_untouched(&boot.parts);
            for pair in boot.parts.windows(2) {
                assert!(pair[0].range.last() < pair[1].range.first(), "{pair:x?}");
            }
        }
        Err(error) => {
            assert!(!matches!(error, BootError::Read { .. }), "{error}");
            scene.check_untouched(&[]);
        }
    }
    loaded
}

#[test]
fn every_beginning_of_an_elf_file_is_refused() {
    let (scene, image) = (Scene::used(), small_elf());
    for bytes in 0..image.len() {
        let error = try_load(&scene, &image[..bytes]).expect_err("cut off");
        let expected = match bytes {
            0 => matches!(error, BootError::Empty { .. }),
            1..4 => matches!(error, BootError::UnknownFormat { .. }),
            4..64 => matches!(error, BootError::Elf { error: ElfError::HeaderCutOff { .. }, .. }),
            64..176 => {
                matches!(error, BootError::Elf { error: ElfError::HeadersCutOff { .. }, .. })
            }
            _ => matches!(error, BootError::Elf { error: ElfError::SegmentCutOff { .. }, .. }),
        };
        assert!(expected, "{bytes} bytes: {error}");
    }
    try_load(&scene, &image).expect("whole");
}

#[test]
fn every_beginning_of_a_bzimage_is_refused() {
    let (scene, image) = (Scene::used(), bzimage(&setup()));
    // The header counts units of 16 bytes, rounded up: it does not tell a cut in the last one.
    for bytes in 0..image.len() - 15 {
        let error = try_load(&scene, &image[..bytes]).expect_err("cut off");
        let expected = match bytes {
            0 => matches!(error, BootError::Empty { .. }),
            1..0x206 => matches!(error, BootError::UnknownFormat { .. }),
            0x206..0x268 => {
                matches!(error, BootError::BzImage { error: BzImageError::Header { .. }, .. })
            }
            _ => matches!(error, BootError::BzImage { error: BzImageError::CutOff { .. }, .. }),
        };
        assert!(expected, "{bytes} bytes: {error}");
    }
    try_load(&scene, &image).expect("whole");
}

#[test]
fn as_many_segments_as_a_file_can_have_are_loaded() {
    let scene = Scene::used();
    let segments: Vec<_> = (0..0xfffe).map(|at| segment(0, 0x10_0000 + at * 8, b"s", 8)).collect();
    let boot = try_load(&scene, &elf(0x10_0000, &segments)).expect("a guest");
    assert_eq!(part(&boot, Part::Segment(0xfffd)), range(0x10_0000 + 0xfffd * 8, 8));
}

/// Numbers at which arithmetic goes wrong.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0_u32..64, -2_i64..=2).prop_map(|(bit, by)| (1_u64 << bit).wrapping_add_signed(by)),
        0_u64..0x200,
        0x0f_f000_u64..0x20_1000,
    ]
}

fn any_segment() -> impl Strategy<Value = Segment> {
    let fields = (number(), number(), number(), number(), number());
    let lies = (any::<bool>(), any::<bool>(), 0_u32..5);
    (fields, lies, prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(fields, lies, bytes)| {
        let (virtual_address, physical, offset, file_bytes, memory) = fields;
        let (lie_in_file, lie_in_memory, kind) = lies;
        let true_memory = bytes.len() as u64 + memory % 0x1000;
        let memory = if lie_in_memory { memory } else { true_memory };
        let mut segment = segment(virtual_address, physical, &bytes, memory);
        // Half of them are load segments.
        segment.header.p_type = if kind > 2 { PT_LOAD } else { kind };
        if lie_in_file {
            (segment.header.p_offset, segment.header.p_filesz) = (offset, file_bytes);
        }
        segment
    })
}

proptest! {
    #[test]
    fn changed_bytes_load_or_are_refused(
        kernel in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let scene = Scene::used();
        let mut image = if kernel { bzimage(&setup()) } else { small_elf() };
        // Of a kernel only the header: the rest is not looked at.
        let (from, to) = if kernel { (0x1f1, 0x270) } else { (0, image.len()) };
        for (at, value) in changes {
            image[from + at.index(to - from)] = value;
        }
        let _ = try_load(&scene, &image);
    }

    #[test]
    fn any_program_headers_load_or_are_refused(
        segments in prop::collection::vec(any_segment(), 0..5),
        entry in number(),
        table in prop_oneof![9 => Just(64), 1 => number()],
    ) {
        let scene = Scene::used();
        let header = Elf64_Ehdr { e_phoff: table, ..elf_header(entry, segments.len()) };
        let _ = try_load(&scene, &elf_of(&header, &segments));
    }

    #[test]
    fn any_setup_header_loads_or_is_refused(
        sectors in 0_u8..4,
        end in 0x60_u8..0x90,
        size in prop_oneof![0_u32..0x40, any::<u32>()],
        numbers in (number(), number(), number(), number()),
        relocatable in 0_u8..2,
    ) {
        let low = |number: u64| u32::try_from(number & 0xffff_ffff).expect("masked");
        let (preferred, alignment, memory, initrd_last) = numbers;
        let header = setup_header {
            setup_sects: sectors,
            jump: u16::from_le_bytes([0xeb, end]),
            syssize: size,
            pref_address: preferred,
            kernel_alignment: low(alignment),
            init_size: low(memory),
            initrd_addr_max: low(initrd_last),
            relocatable_kernel: relocatable,
            ..setup()
        };
        let _ = try_load(&Scene::used(), &bzimage(&header));
    }
}

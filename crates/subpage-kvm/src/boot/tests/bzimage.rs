//! bzImages: where the kernel and its initrd go, what it is told, and which are refused.

use super::*;

fn refused(header: &setup_header) -> BzImageError {
    let scene = Scene::used();
    let error = scene.load(&bzimage(header)).expect_err("not a guest");
    scene.check_untouched(&[]);
    let BootError::BzImage { error, .. } = error else { panic!("{error}") };
    error
}

#[test]
fn the_kernel_goes_to_its_preferred_address() {
    let scene = Scene::used();
    let boot = scene.load(&bzimage(&setup())).expect("a kernel");
    assert_eq!((boot.image.format, boot.entry), (Format::LinuxBzImage, 0x10_0200));
    assert_eq!(scene.bytes(0x10_0000), [0, 1, 2, 3]);
    assert_eq!(scene.bytes(0x10_02fe), [0xfe, 0xff, BEFORE]);
    assert_eq!(part(&boot, Part::Kernel), range(0x10_0000, 0x8_0000));
    scene.check_untouched(&boot.parts);
}

#[test]
fn a_kernel_without_preference_goes_to_1_mib_or_its_alignment() {
    let scene = Scene::zeroed(64 << 20);
    let header = setup_header { pref_address: 0, ..setup() };
    let boot = scene.load(&bzimage(&header)).expect("a kernel");
    assert_eq!(boot.entry, 0x20_0200);
    let fixed = setup_header { relocatable_kernel: 0, ..header };
    let boot = scene.load(&bzimage(&fixed)).expect("a kernel");
    assert_eq!(boot.entry, 0x10_0200);
}

#[test]
fn the_setup_header_is_handed_on_and_completed() {
    let scene = Scene::used();
    let header = setup_header { setup_data: 0x1234, kernel_info_offset: 0x77, ..setup() };
    scene.load(&bzimage(&header)).expect("a kernel");
    let page = scene.zero_page();
    let expected = setup_header {
        type_of_loader: 0xff,
        vid_mode: 0xffff,
        cmd_line_ptr: 0x2_0000,
        setup_data: 0,
        code32_start: 0x10_0000,
        // The jump ends the header at 0x268.
        kernel_info_offset: 0,
        ..header
    };
    assert_eq!({ page.hdr }, expected);
    assert_eq!(page._pad7, [0; 36]);
    assert_eq!(scene.bytes(0x2_0000), *b"console=ttyS0\0");
}

#[test]
fn a_header_longer_than_known_is_handed_on() {
    let scene = Scene::used();
    let mut image = bzimage(&setup_header { jump: 0x8eeb, ..setup() });
    image[0x28f] = 0x5a;
    scene.load(&image).expect("a kernel");
    assert_eq!(scene.zero_page()._pad7[35], 0x5a);
    image[0x201] = 0x8f;
    assert!(matches!(
        scene.load(&image),
        Err(BootError::BzImage { error: BzImageError::Header { end: 0x291, .. }, .. })
    ));
}

#[test]
fn kernels_that_cannot_start_are_refused() {
    let header = setup_header { version: 0x020b, ..setup() };
    assert_eq!(refused(&header), BzImageError::Version { version: 0x020b });
    let header = setup_header { xloadflags: 2, ..setup() };
    assert_eq!(refused(&header), BzImageError::No64BitEntry);
    let header = setup_header { loadflags: 0, ..setup() };
    assert_eq!(refused(&header), BzImageError::No64BitEntry);
    let header = setup_header { jump: 0x61eb, ..setup() };
    assert_eq!(refused(&header), BzImageError::Header { end: 0x263, bytes: 0x700 });
    let header = setup_header { syssize: 0x31, ..setup() };
    assert_eq!(refused(&header), BzImageError::CutOff { needed: 0x701, bytes: 0x700 });
    let header = setup_header { syssize: u32::MAX, ..setup() };
    let needed = 0x400 + u64::from(u32::MAX) * 16 - 15;
    assert_eq!(refused(&header), BzImageError::CutOff { needed, bytes: 0x700 });
    // Zero sectors mean four, and a kernel has to reach its entry.
    let header = setup_header { setup_sects: 0, syssize: 0, ..setup() };
    assert_eq!(refused(&header), BzImageError::CutOff { needed: 0xa00 + 0x201, bytes: 0x700 });
    let header = setup_header { pref_address: u64::MAX, ..setup() };
    assert_eq!(refused(&header), BzImageError::Beyond { address: u64::MAX, bytes: 0x8_0000 });
}

#[test]
fn a_kernel_needs_its_memory_and_not_that_of_others() {
    let scene = Scene::used();
    let large = setup_header { init_size: 0x10_0001, ..setup() };
    assert!(matches!(scene.load(&bzimage(&large)), Err(BootError::NotMemory { .. })));
    let low = setup_header { pref_address: 0x7000, ..setup() };
    assert!(matches!(scene.load(&bzimage(&low)), Err(BootError::Overlap { .. })));
    scene.check_untouched(&[]);
}

#[test]
fn the_initrd_lies_as_high_as_the_kernel_takes_it() {
    let load = |bytes: u64, header: &setup_header| {
        let scene = Scene::zeroed(8 << 20);
        let initrd = scene.file("initrd", &vec![0x3c; usize::try_from(bytes).expect("small")]);
        let boot =
            scene.load_with(&bzimage(header), &Request { initrd: Some(&initrd), ..request() })?;
        let placed = part(&boot, Part::Initrd);
        let page = scene.zero_page();
        assert_eq!(u64::from(page.hdr.ramdisk_image), placed.first().as_u64());
        assert_eq!(u64::from(page.hdr.ramdisk_size), bytes);
        assert_eq!(scene.bytes(placed.last().as_u64()), [0x3c]);
        assert_eq!(scene.bytes(placed.first().as_u64()), [0x3c]);
        Ok::<u64, BootError>(placed.first().as_u64())
    };
    assert_eq!(load(0x1001, &setup()).expect("room"), 0x7f_e000);
    let low = setup_header { initrd_addr_max: 0x3f_ffff, ..setup() };
    assert_eq!(load(0x1000, &low).expect("room"), 0x3f_f000);
    // Under the limit there is only the room below the kernel.
    let high = setup_header { pref_address: 0x20_0000, initrd_addr_max: 0x20_0fff, ..setup() };
    assert_eq!(load(0x1000, &high).expect("room"), 0x1f_f000);
    let full = load(0x20_0000, &high).expect_err("no room");
    assert!(
        full.to_string().contains("of 2 MiB finds no room between 0x100000 and 0x201000"),
        "{full}"
    );
}

#[test]
fn the_command_line_is_as_long_as_the_kernel_takes_it() {
    let scene = Scene::used();
    let long = "x".repeat(256);
    let load = |text: &str, header: &setup_header| {
        scene.load_with(&bzimage(header), &Request { command_line: text, ..request() })
    };
    load(&long[1..], &setup()).expect("255 bytes");
    assert_eq!(scene.bytes(0x2_00fe), *b"x\0");
    let error = load(&long, &setup()).expect_err("256 bytes");
    assert!(matches!(error, BootError::CommandLineTooLong { bytes: 256, most: 255 }));
    let greedy = setup_header { cmdline_size: u32::MAX, ..setup() };
    let most = "x".repeat(0xffff);
    load(&most, &greedy).expect("all the room");
    let error = load(&format!("{most}x"), &greedy).expect_err("no room");
    assert!(matches!(error, BootError::CommandLineTooLong { bytes: 0x1_0000, most: 0xffff }));
}

/// The header counts units of 16 bytes, rounded up.
#[test]
fn a_kernel_may_end_within_its_last_16_bytes() {
    let mut image = bzimage(&setup());
    image.truncate(0x6f1);
    Scene::used().load(&image).expect("a kernel");
    image.truncate(0x6f0);
    assert!(matches!(
        Scene::used().load(&image),
        Err(BootError::BzImage { error: BzImageError::CutOff { needed: 0x6f1, bytes: 0x6f0 }, .. })
    ));
}

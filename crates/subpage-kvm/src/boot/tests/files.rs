//! Flat binaries, and files that are no guests.

use nix::sys::stat::Mode;

use super::*;
use crate::boot::source::Source;

#[test]
fn a_flat_binary_goes_where_it_is_told() {
    let scene = Scene::used();
    let initrd = scene.file("initrd", b"modules");
    let (load_address, initrd) = (Some(0x1f_fffe), Some(&*initrd));
    let request = Request { initrd, load_address, ..request() };
    let boot = scene.load_with(b"\xfa\xf4", &request);
    let boot = boot.expect("a guest");
    assert_eq!((boot.image.format, boot.entry), (Format::Flat, 0x1f_fffe));
    assert_eq!(scene.bytes(0x1f_fffe), *b"\xfa\xf4");
    assert_eq!(part(&boot, Part::Initrd), range(0x1f_f000, 7));
    assert_eq!(scene.bytes(0x1f_f000), *b"modules");
    scene.check_untouched(&boot.parts);
}

#[test]
fn a_flat_binary_outside_of_memory_is_refused() {
    let scene = Scene::used();
    let at = |address| {
        scene.load_with(b"\xfa\xf4", &Request { load_address: Some(address), ..request() })
    };
    assert!(matches!(at(0x1f_ffff), Err(BootError::NotMemory { .. })));
    assert!(matches!(at(0x7fff), Err(BootError::Overlap { .. })));
    for address in [u64::MAX, (1 << 48) - 1, 1 << 48] {
        assert!(matches!(at(address), Err(BootError::LoadBeyond { bytes: 2, .. })));
    }
    scene.check_untouched(&[]);
}

#[test]
fn a_load_address_is_for_flat_binaries_and_they_need_one() {
    let scene = Scene::used();
    assert!(matches!(scene.load(b"\xfa\xf4"), Err(BootError::UnknownFormat { .. })));
    for (image, format) in [(small_elf(), Format::Elf64), (bzimage(&setup()), Format::LinuxBzImage)]
    {
        let error =
            scene.load_with(&image, &Request { load_address: Some(0x10_0000), ..request() });
        let error = error.expect_err("it says itself");
        assert!(matches!(error, BootError::LoadAddress { format: of, .. } if of == format));
    }
}

#[test]
fn what_is_no_file_of_bytes_is_refused() {
    let scene = Scene::used();
    let load = |image: &Path| {
        let request = Request { image, load_address: Some(0x10_0000), ..request() };
        load(&scene.ram, &request).expect_err("no guest")
    };
    let directory = scene.directory.path();
    assert!(matches!(load(directory), BootError::Directory { .. }));
    assert!(matches!(load(&directory.join("none")), BootError::Open { .. }));
    assert!(matches!(load(&scene.file("empty", b"")), BootError::Empty { .. }));
    let pipe = directory.join("pipe");
    nix::unistd::mkfifo(&pipe, Mode::S_IRUSR).expect("a pipe");
    assert!(matches!(load(&pipe), BootError::NotRegular { .. }));
    assert!(matches!(load(Path::new("/dev/zero")), BootError::NotRegular { .. }));
    for initrd in [directory.to_owned(), scene.file("none", b""), pipe] {
        let error = scene.load_with(&small_elf(), &Request { initrd: Some(&initrd), ..request() });
        let error = error.expect_err("no initrd").to_string();
        assert!(error.contains(&*initrd.to_string_lossy()), "{error}");
    }
    scene.check_untouched(&[]);
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_an_error() {
    let scene = Scene::used();
    let path = scene.file("guest", &[1; 0x3000]);
    let source = Source::open(&path).expect("a file");
    scene.file("guest", &[1; 0x1000]);
    let copied = source.copy(0x800, 0x1000, &scene.ram, Gpa::new(0x10_0000));
    let error = copied.expect_err("half of it");
    assert_eq!(
        error.to_string(),
        format!("cannot read 4096 bytes at 0x800 of `{}`", path.display())
    );
    assert!(matches!(error, BootError::Read { offset: 0x800, bytes: 0x1000, .. }));
    assert!(matches!(source.read(0x1000, &mut [0]), Err(BootError::Read { .. })));
    scene.check_untouched(&[Placed { part: Part::Flat, range: range(0x10_0000, 0x1000) }]);
}

#[test]
fn processors_and_command_lines_are_checked() {
    let scene = Scene::used();
    for cpus in [0, 255, 257, u32::MAX] {
        let error = scene.load_with(&small_elf(), &Request { cpus, ..request() });
        assert!(matches!(error, Err(BootError::Processors { cpus: of }) if of == cpus));
    }
    let error = scene.load_with(&small_elf(), &Request { command_line: "a\0b", ..request() });
    assert!(matches!(error, Err(BootError::CommandLineNul { at: 1 })));
    let most = "x".repeat(2047);
    scene.load_with(&small_elf(), &Request { command_line: &most, ..request() }).expect("room");
    let more = "x".repeat(2048);
    let error = scene.load_with(&small_elf(), &Request { command_line: &more, ..request() });
    assert!(matches!(error, Err(BootError::CommandLineTooLong { bytes: 2048, most: 2047 })));
}

#[test]
fn formats_are_known_by_their_first_bytes() {
    let scene = Scene::zeroed(MIN_BYTES);
    let is = |bytes: &[u8]| sniff(&scene.file("file", bytes)).expect("readable");
    let elf = small_elf();
    assert_eq!(is(&elf), Some(Format::Elf64));
    assert_eq!(is(&elf[..20]), Some(Format::Elf64));
    assert_eq!(is(&elf[..18]), None);
    let kernel = bzimage(&setup());
    assert_eq!(is(&kernel), Some(Format::LinuxBzImage));
    assert_eq!(is(&kernel[..0x206]), Some(Format::LinuxBzImage));
    assert_eq!(is(&kernel[..0x205]), None);
    for (at, value) in [(4, 1), (5, 2), (18, 3), (0, 0)] {
        let mut other = elf.clone();
        other[at] = value;
        assert_eq!(is(&other), None, "byte {at}");
    }
    assert_eq!(is(b""), None);
    assert_eq!(is(b"a trace"), None);
    assert_eq!(sniff(Path::new("/dev/null")).expect("openable"), None);
    assert!(matches!(sniff(scene.directory.path()), Err(BootError::Directory { .. })));
    assert!(matches!(sniff(&scene.directory.path().join("none")), Err(BootError::Open { .. })));
}

//! The kernel in a bzImage: unpacked, moved and entered.

use super::*;

const LINKED: u64 = 0xffff_ffff_8100_0000;
const PHYSICAL: u64 = 0x100_0000;
/// Offsets in its segment.
const ENTRY: u64 = 0x10;
const WIDE: u64 = 0x100;
const NARROW: u64 = 0x108;
const PLAIN: u64 = 0x110;

/// A kernel with one word of each kind, both pointing to its entry, and one that only looks so.
fn kernel() -> Vec<u8> {
    let mut bytes = vec![0x90; 0x200];
    bytes[0x20..0x20 + 40].copy_from_slice(b"Linux version 6.1.0-test (me@home) #1 x\n");
    let pointer = (LINKED + ENTRY).to_le_bytes();
    for at in [WIDE, PLAIN] {
        let at = usize::try_from(at).expect("small");
        bytes[at..at + 8].copy_from_slice(&pointer);
    }
    let at = usize::try_from(NARROW).expect("small");
    bytes[at..at + 4].copy_from_slice(&pointer[..4]);
    let mut file = elf(PHYSICAL + ENTRY, &[segment(LINKED, PHYSICAL, &bytes, 0x3000)]);
    for word in [0, LINKED + WIDE, 0, 0, LINKED + NARROW] {
        file.extend_from_slice(&word.to_le_bytes()[..4]);
    }
    file
}

/// A bzImage whose payload is this.
fn packed(payload: &[u8]) -> Vec<u8> {
    const BEHIND: u32 = 0x240;
    let payload_length = u32::try_from(payload.len()).expect("small");
    let header = setup_header {
        payload_offset: BEHIND,
        payload_length,
        syssize: (BEHIND + payload_length).div_ceil(16),
        ..setup()
    };
    let mut file = bzimage(&header);
    file.truncate(0x400);
    file.resize(0x400 + BEHIND as usize, 0xcc);
    file.extend_from_slice(payload);
    file
}

fn started(image: &[u8], request: &Request<'_>) -> (Scene, Boot) {
    let scene = Scene::zeroed(64 << 20);
    let boot = scene.load_with(image, request).expect("a kernel");
    (scene, boot)
}

fn is_told_to_be_random(scene: &Scene) -> bool {
    scene.zero_page().hdr.loadflags & 2 != 0
}

#[test]
fn it_is_entered_at_once_where_it_was_linked_for() {
    let request = Request { command_line: "x nokaslr y", ..request() };
    let (scene, boot) = started(&packed(&kernel()), &request);
    assert_eq!((boot.image.format, boot.entry), (Format::LinuxBzImage, PHYSICAL + ENTRY));
    assert_eq!(boot.image.kernel, Some(KernelPlace { slide: 0 }));
    assert_eq!(part(&boot, Part::Segment(0)), range(PHYSICAL, 0x3000));
    assert_eq!(scene.word(PHYSICAL + WIDE), LINKED + ENTRY);
    assert_eq!(scene.bytes(PHYSICAL + 0x20), *b"Linux version");
    assert_eq!(boot.registers().rsi, 0x7000);
    assert!(!is_told_to_be_random(&scene));
}

#[test]
fn its_words_are_moved_and_it_stays_in_place() {
    let request = Request { slide: Some(0x60_0000), ..request() };
    let (scene, boot) = started(&packed(&kernel()), &request);
    assert_eq!(
        (boot.entry, boot.image.kernel),
        (PHYSICAL + ENTRY, Some(KernelPlace { slide: 0x60_0000 }))
    );
    assert_eq!(scene.word(PHYSICAL + WIDE), LINKED + ENTRY + 0x60_0000);
    assert_eq!(scene.bytes(PHYSICAL + NARROW), 0x8160_0010_u32.to_le_bytes());
    assert_eq!(scene.word(PHYSICAL + PLAIN), LINKED + ENTRY);
    assert!(is_told_to_be_random(&scene));
}

#[test]
fn it_is_moved_at_random_unless_that_is_not_wanted() {
    let (scene, boot) = started(&packed(&kernel()), &request());
    let slide = boot.image.kernel.expect("a kernel").slide;
    assert_eq!(scene.word(PHYSICAL + WIDE), LINKED + ENTRY + slide);
    assert!(is_told_to_be_random(&scene));
    let longer = Request { command_line: "nokaslrx", ..request() };
    assert!(is_told_to_be_random(&started(&packed(&kernel()), &longer).0));
}

#[test]
fn one_that_cannot_move_stays() {
    let mut image = kernel();
    image.truncate(image.len() - 20);
    let (scene, boot) = started(&packed(&image), &request());
    assert_eq!(boot.image.kernel, Some(KernelPlace { slide: 0 }));
    assert!(!is_told_to_be_random(&scene));
}

#[test]
fn what_cannot_be_unpacked_starts_by_its_own_loader() {
    let mut damaged = kernel();
    let last = damaged.len() - 1;
    // A word that the kernel does not have.
    damaged[last - 1] = 0x55;
    for payload in [b"\x89LZO\0\r\n\x1a\n----".to_vec(), b"????????".to_vec(), damaged] {
        let request = Request { slide: Some(1 << 21), ..request() };
        let (_, boot) = started(&packed(&payload), &request);
        assert_eq!((boot.entry, boot.image.kernel), (0x10_0200, None));
        assert!(boot.image.own_loader.is_some());
    }
    let (_, boot) = started(&bzimage(&setup()), &request());
    assert_eq!((boot.image.kernel, boot.image.own_loader), (None, None), "it says of no kernel");
}

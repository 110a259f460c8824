//! The kernel in a bzImage, unpacked here and entered at once.
//!
//! A bzImage begins with a loader: it chooses where the kernel is to run, unpacks it there, has its words
//! that hold addresses hold the right ones, and jumps to it. All of that is done here instead, and the
//! guest begins at the kernel's own entry. So rules are in force when the kernel proper is entered and no
//! loader writes where it will be, and where it runs is known, not found out.
//!
//! Linear addresses are chosen at random as the loader chooses them (`find_random_virt_addr` in
//! arch/x86/boot/compressed/kaslr.c), and the kernel is told so, as it randomizes more then. The physical
//! place stays where the kernel was linked for, so that addresses in policies hold: the map of all
//! memory, by which a kernel could use them, lies at an address of the kernel's own random choice.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};

use linux_loader::loader::bootparam::setup_header;
use subpage::address::{ByteRange, Gpa};
use subpage_linux::{KernelImage, Slide};

use super::load::{Image, ImageKind, KernelPlace, Piece, Request};
use super::parameters::Setup;
use super::source::Source;
use super::{BootError, Format, Part, Placed};

/// Linear addresses that a kernel's image may take (`KERNEL_IMAGE_SIZE` with CONFIG_RANDOMIZE_BASE).
const IMAGE_ROOM: u64 = 1 << 30;
/// What a kernel's place is a multiple of at least: its page tables map it by large pages.
const LARGE_PAGE: u64 = 1 << 21;
/// Longest file; the reader takes no longer one either.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// What becomes of the kernel in a bzImage.
pub(super) enum Unpacked {
    /// It is entered at once.
    Kernel(Box<Image>),
    /// Its own loader runs first, for this reason.
    Not(String),
    /// The file says of none.
    None,
}

/// The kernel in a bzImage, whose header is known to be right.
pub(super) fn plan(
    source: &Source,
    header: &setup_header,
    setup: Setup,
    request: &Request<'_>,
) -> Result<Unpacked, BootError> {
    if header.payload_length == 0 {
        return Ok(Unpacked::None);
    }
    if source.bytes() > MAX_FILE_BYTES {
        return Ok(Unpacked::Not("the bzImage has more than 256 MiB".to_owned()));
    }
    let mut file = vec![0; usize::try_from(source.bytes()).expect("64 bits")];
    source.read(0, &mut file)?;
    let kernel = match KernelImage::from_bytes(&file) {
        Ok(kernel) => kernel,
        Err(error) => return Ok(Unpacked::Not(error.to_string())),
    };
    drop(file);
    Ok(image(source, kernel, header, setup, request).map_or_else(Unpacked::Not, Unpacked::Kernel))
}

/// The kernel as a guest, or why it is none.
fn image(
    source: &Source,
    kernel: KernelImage,
    header: &setup_header,
    mut setup: Setup,
    request: &Request<'_>,
) -> Result<Box<Image>, String> {
    let entry = kernel.entry();
    let first = kernel.segments().iter().map(|segment| segment.physical).min().unwrap_or(0);
    let moves = kernel.can_move()
        && !request.command_line.split_ascii_whitespace().any(|word| word == "nokaslr");
    let alignment = u64::from(header.kernel_alignment).max(LARGE_PAGE);
    let slide = match request.slide {
        Some(slide) => slide,
        None if moves => random_slide(first, header.init_size.into(), alignment),
        None => 0,
    };
    let kernel = if slide == 0 {
        kernel
    } else {
        kernel.moved(Slide::new(slide)).map_err(|error| error.to_string())?
    };
    setup.is_moved = moves;
    let mut contents = Vec::new();
    let mut pieces = Vec::new();
    for (index, segment) in (0..).zip(kernel.segments()) {
        let (address, bytes) = (segment.physical, segment.length);
        if bytes == 0 {
            continue;
        }
        let range = Gpa::try_new(address).and_then(|first| ByteRange::new(first, bytes));
        let range =
            range.map_err(|_| format!("its segment at {address:#x} lies beyond 48 bits"))?;
        let (offset, file_bytes) = (contents.len() as u64, segment.bytes.len() as u64);
        contents.extend_from_slice(&segment.bytes);
        let placed = Placed { part: Part::Segment(index), range };
        pieces.push(Piece { placed, offset, file_bytes, zeros: bytes - file_bytes });
    }
    let holds = |piece: &Piece| {
        let offset = entry.checked_sub(piece.placed.range.first().as_u64());
        offset.is_some_and(|offset| offset < piece.file_bytes)
    };
    if !pieces.iter().any(holds) {
        return Err(format!("its entry {entry:#x} is in none of its segments"));
    }
    Ok(Box::new(Image {
        kind: ImageKind {
            format: Format::LinuxBzImage,
            kernel: Some(KernelPlace { slide }),
            own_loader: None,
        },
        source: Source::unpacked(source.path(), contents),
        entry,
        pieces,
        setup,
    }))
}

/// A distance that leaves the image in its room: a multiple of the alignment, each as likely as another.
fn random_slide(first: u64, bytes: u64, alignment: u64) -> u64 {
    let room = IMAGE_ROOM.saturating_sub(first).saturating_sub(bytes);
    let slots = room / alignment + 1;
    // Its keys are the operating system's random bytes.
    let random = RandomState::new().build_hasher().finish();
    let slot = (u128::from(random) * u128::from(slots)) >> 64;
    u64::try_from(slot).expect("less than there are slots") * alignment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slides_are_aligned_differ_and_stay_in_the_room() {
        let (first, bytes) = (16 << 20, 64 << 20);
        let slides: Vec<u64> = (0..64).map(|_| random_slide(first, bytes, LARGE_PAGE)).collect();
        for slide in &slides {
            assert_eq!(slide % LARGE_PAGE, 0);
            assert!(first + bytes + slide <= IMAGE_ROOM, "{slide:#x}");
        }
        // One of 473 each: all alike would be 1 in 10^168.
        assert!(slides.iter().any(|slide| *slide != slides[0]));
        assert_eq!(random_slide(first, IMAGE_ROOM, LARGE_PAGE), 0);
    }
}

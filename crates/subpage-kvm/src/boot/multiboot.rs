//! Multiboot kernels (Multiboot Specification 0.6.96, the header's magic 0x1BADB002): 32-bit protected
//! mode, and an information structure in place of the zero page.

use subpage::address::{ByteRange, Gpa};
use thiserror::Error;

use super::elf_headers::ElfHeaders;
use super::load::{Image, Piece};
use super::parameters::{Setup, memory_map};
use super::part::{COMMAND_LINE, HIGH_MEMORY, MP_TABLE, ZERO_PAGE, write};
use super::source::Source;
use super::{BootError, Format, Part, Placed, elf};
use crate::memory::Ram;

/// Bytes of a file in which the header has to lie, at a multiple of 4.
const SEARCHED: u64 = 8192;
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// Bytes of a header with addresses; others have 12.
const LONG_HEADER_BYTES: usize = 32;

/// The same of Multiboot2: at a multiple of 8.
const SEARCHED_2: u64 = 32768;
const HEADER_MAGIC_2: u32 = 0xe852_50d6;

/// What the kernel finds in EAX.
pub(super) const LOADER_MAGIC: u32 = 0x2bad_b002;

/// Bits of the header's flags: modules on pages, which they are in any case, and sizes of memory, which
/// are told in any case. Other bits of the lower half ask for what is not here.
const MET: u32 = 0b11;
const REQUIRED: u32 = 0xffff;
const VIDEO_MODE: u32 = 1 << 2;
/// The header says where the file goes.
const ADDRESSES: u32 = 1 << 16;

/// Before which every address of the kernel has to lie.
const FOUR_GIB: u64 = 1 << 32;

/// The information structure, and behind it what it points to.
const INFORMATION: u64 = ZERO_PAGE;
const MODULE_AT: u64 = INFORMATION + 0x80;
const NAME_AT: u64 = INFORMATION + 0xa0;
const MAP_AT: u64 = INFORMATION + 0x100;
const INFORMATION_BYTES: u64 = 0x1000;
const NAME: &[u8] = b"subpage\0";

/// What the structure tells: sizes of memory, command line, modules, memory map, the loader's name.
const TOLD: u32 = 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
const KIBIBYTE: u64 = 1024;

/// Why a Multiboot kernel cannot be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MultibootError {
    /// It asks for something that is not here.
    #[error(
        "the Multiboot header has flags {flags:#x}, and {}",
        if flags & VIDEO_MODE == 0 {
            "what bits 3 to 15 ask for is not known here"
        } else {
            "bit 2 asks for a video mode: there is no screen here, the console is the serial port"
        }
    )]
    Asks {
        /// The flags.
        flags: u32,
    },
    /// The header says that it has addresses, and ends before them.
    #[error("the file is cut off inside its Multiboot header at {offset:#x}")]
    CutOff {
        /// Where the header begins in the file.
        offset: u64,
    },
    /// The addresses in the header contradict each other or the file.
    #[error(
        "the addresses in the Multiboot header do not fit its file: header {header:#x} at {offset:#x}, \
         load {load:#x} to {load_end:#x}, bss to {bss_end:#x}"
    )]
    Addresses {
        /// Where the header begins in the file.
        offset: u64,
        /// `header_addr`.
        header: u32,
        /// `load_addr`.
        load: u32,
        /// `load_end_addr`.
        load_end: u32,
        /// `bss_end_addr`.
        bss_end: u32,
    },
    /// The entry lies outside of what is loaded.
    #[error(
        "the Multiboot header's entry {entry:#x} is not in what it loads, {first:#x} to {end:#x}"
    )]
    Entry {
        /// `entry_addr`.
        entry: u32,
        /// Where the first byte goes.
        first: u64,
        /// The end of what is loaded.
        end: u64,
    },
    /// The file's ELF headers have another place for it, so that its symbols are wrong.
    #[error(
        "the Multiboot header puts the byte at {offset:#x} of the file at {by_header:#x}, its ELF headers \
         put it at {by_elf:#x}, where its symbols are: strip the file, or leave bit 16 out of the flags"
    )]
    TwoPlaces {
        /// Where the byte is in the file.
        offset: u64,
        /// Where it goes.
        by_header: u64,
        /// Where it would go.
        by_elf: u64,
    },
    /// It is entered in 32-bit mode, which does not get there.
    #[error(
        "the Multiboot kernel's {what} {address:#x} is not below 4 GiB, where 32-bit code ends"
    )]
    Above4Gib {
        /// What lies there.
        what: &'static str,
        /// Its address.
        address: u64,
    },
}

/// A header that was found in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MultibootHeader {
    /// Where it begins in the file.
    offset: u64,
    flags: u32,
}

impl MultibootHeader {
    /// The header of a file, if it has one.
    pub(super) fn find(source: &Source) -> Result<Option<Self>, BootError> {
        let found = find(source, SEARCHED, 4, |words| match *words {
            [HEADER_MAGIC, flags, checksum, ..] => {
                HEADER_MAGIC.wrapping_add(flags).wrapping_add(checksum) == 0
            }
            _ => false,
        })?;
        Ok(found.map(|(offset, words)| Self { offset, flags: words[1] }))
    }

    /// Whether it says where the file goes, so that the file need not be ELF.
    pub(super) const fn has_addresses(self) -> bool {
        self.flags & ADDRESSES != 0
    }
}

/// Whether a file has a header of Multiboot2, and its entry is the one that this protocol enters: 32-bit
/// code. A header with an entry of its own (tag 3) leaves the file's to others.
pub(super) fn is_second(source: &Source) -> Result<bool, BootError> {
    let found = find(source, SEARCHED_2, 8, |words| match *words {
        [HEADER_MAGIC_2, architecture, bytes, checksum, ..] => {
            [architecture, bytes, checksum].into_iter().fold(HEADER_MAGIC_2, u32::wrapping_add) == 0
        }
        _ => false,
    })?;
    let Some((offset, words)) = found else { return Ok(false) };
    let end = offset + u64::from(words[2]).min(SEARCHED_2);
    let mut at = offset + 16;
    while at + 8 <= end && source.has(at, 8) {
        let mut tag = [0; 8];
        source.read(at, &mut tag)?;
        match (u16::from_le_bytes([tag[0], tag[1]]), word(&tag, 4)) {
            (3, _) => return Ok(false),
            (0, _) => break,
            (_, bytes) => at = (at + u64::from(bytes.max(8))).next_multiple_of(8),
        }
    }
    Ok(true)
}

/// The first four words at a multiple of `align` within the first bytes of a file that are `wanted`, and
/// where. Behind the end of the file are zeros.
fn find(
    source: &Source,
    within: u64,
    align: usize,
    wanted: impl Fn(&[u32; 4]) -> bool,
) -> Result<Option<(u64, [u32; 4])>, BootError> {
    let bytes = usize::try_from(source.bytes().min(within)).expect("some KiB");
    // The shorter header has three words.
    let mut head = vec![0; bytes + 4];
    source.read(0, &mut head[..bytes])?;
    let words = |at: usize| [0, 4, 8, 12].map(|more| word(&head, at + more));
    let mut places = (0..).step_by(align).take_while(|at| at + 16 <= head.len());
    Ok(places.find(|at| wanted(&words(*at))).map(|at| (at as u64, words(at))))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// What a file with a header says; nothing is written.
pub(super) fn plan(
    source: Source,
    header: MultibootHeader,
    is_elf: bool,
) -> Result<Image, BootError> {
    let wrong = |error| BootError::Multiboot { path: source.path(), error };
    let flags = header.flags;
    if flags & REQUIRED & !MET != 0 {
        return Err(wrong(MultibootError::Asks { flags }));
    }
    let (entry, pieces) = if header.has_addresses() {
        let (entry, pieces) = by_addresses(&source, header)?;
        if is_elf {
            same_place(&source, &pieces)?;
        }
        (entry, pieces)
    } else {
        debug_assert!(is_elf, "nothing else says where it goes");
        let headers = ElfHeaders::read(&source, true)?;
        let wrong = |error| BootError::Elf { path: source.path(), error };
        let pieces = elf::segments(&source, &headers).map_err(wrong)?;
        (elf::entry(&headers).map_err(wrong)?, pieces)
    };
    let high = |what, address| wrong(MultibootError::Above4Gib { what, address });
    if entry >= FOUR_GIB {
        return Err(high("entry", entry));
    }
    if let Some(piece) = pieces.iter().find(|piece| piece.placed.end() > FOUR_GIB) {
        return Err(high("end", piece.placed.end()));
    }
    let setup = Setup::without_header();
    Ok(Image::plain(Format::Multiboot, source, entry, pieces, setup))
}

/// Entry and place of a file whose header has the addresses.
fn by_addresses(source: &Source, found: MultibootHeader) -> Result<(u64, Vec<Piece>), BootError> {
    let wrong = |error| BootError::Multiboot { path: source.path(), error };
    let offset = found.offset;
    if !source.has(offset, LONG_HEADER_BYTES as u64) {
        return Err(wrong(MultibootError::CutOff { offset }));
    }
    let mut bytes = [0; LONG_HEADER_BYTES];
    source.read(offset, &mut bytes)?;
    let [header, load, load_end, bss_end, entry] = [12, 16, 20, 24, 28].map(|at| word(&bytes, at));
    let piece = || {
        let first = offset.checked_sub(header.checked_sub(load)?.into())?;
        let file_bytes = match load_end {
            // To the end of the file.
            0 => source.bytes() - first,
            end => end.checked_sub(load)?.into(),
        };
        let end = u64::from(load) + file_bytes;
        let bytes = match bss_end {
            // There is none.
            0 => file_bytes,
            bss_end => u64::from(bss_end).max(end) - u64::from(load),
        };
        let range = ByteRange::new(Gpa::try_new(load.into()).ok()?, bytes).ok()?;
        let zeros = bytes - file_bytes;
        let placed = Placed { part: Part::MultibootImage, range };
        source.has(first, file_bytes).then_some(Piece { placed, offset: first, file_bytes, zeros })
    };
    let piece = piece().ok_or_else(|| {
        wrong(MultibootError::Addresses { offset, header, load, load_end, bss_end })
    })?;
    let (first, end) = (piece.placed.range.first().as_u64(), piece.placed.end());
    if !(first..end).contains(&entry.into()) {
        return Err(wrong(MultibootError::Entry { entry, first, end }));
    }
    Ok((entry.into(), vec![piece]))
}

/// Refuses a file whose ELF headers have another place for what its Multiboot header loads: names of
/// symbols would stand for other bytes.
fn same_place(source: &Source, pieces: &[Piece]) -> Result<(), BootError> {
    // A file without segments that can be read has no symbols that could be used.
    let Ok(segments) =
        ElfHeaders::read(source, true).map(|headers| elf::segments(source, &headers))
    else {
        return Ok(());
    };
    let first = |piece: &Piece| piece.placed.range.first().as_u64();
    for (segment, piece) in
        segments.iter().flatten().flat_map(|it| pieces.iter().map(move |p| (it, p)))
    {
        let offset = segment.offset.max(piece.offset);
        let end = (segment.offset + segment.file_bytes).min(piece.offset + piece.file_bytes);
        let by_header = first(piece).wrapping_add(offset - piece.offset);
        let by_elf = first(segment).wrapping_add(offset - segment.offset);
        if offset < end && by_header != by_elf {
            let error = MultibootError::TwoPlaces { offset, by_header, by_elf };
            return Err(BootError::Multiboot { path: source.path(), error });
        }
    }
    Ok(())
}

/// Where the information goes.
pub(super) fn information() -> Placed {
    Placed::fixed(Part::MultibootInformation, INFORMATION, INFORMATION_BYTES)
}

/// Writes the information structure. The initrd is a module without a name.
pub(super) fn write_information(ram: &Ram, initrd: Option<ByteRange>) {
    let low = |number: u64| u32::try_from(number).expect("below 4 GiB");
    let mut page = vec![0; usize::try_from(INFORMATION_BYTES).expect("a page")];
    let mut put = |at: u64, bytes: &[u8]| {
        let at = usize::try_from(at - INFORMATION).expect("in the page");
        page[at..at + bytes.len()].copy_from_slice(bytes);
    };
    let words =
        |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let mut map = Vec::new();
    for (first, end, kind) in memory_map(ram, None) {
        // The size of what follows in the entry.
        map.extend(20_u32.to_le_bytes());
        map.extend(first.to_le_bytes());
        map.extend((end - first).to_le_bytes());
        map.extend(kind.to_le_bytes());
    }
    let low_end = ByteRange::of_pages(ram.regions()[0].pages).last().as_u64() + 1;
    let upper = (low_end - HIGH_MEMORY) / KIBIBYTE;
    let memory = [low(MP_TABLE / KIBIBYTE), low(upper)];
    let modules = [u32::from(initrd.is_some()), low(MODULE_AT)];
    put(INFORMATION, &words(&[TOLD, memory[0], memory[1], 0, low(COMMAND_LINE)]));
    put(INFORMATION + 20, &words(&modules));
    put(INFORMATION + 44, &words(&[low(map.len() as u64), low(MAP_AT)]));
    put(INFORMATION + 64, &words(&[low(NAME_AT)]));
    if let Some(initrd) = initrd {
        let first = initrd.first().as_u64();
        put(MODULE_AT, &words(&[low(first), low(first + initrd.bytes()), 0, 0]));
    }
    put(NAME_AT, NAME);
    put(MAP_AT, &map);
    write(ram, INFORMATION, &page);
}

//! Static ELF images: where their segments go, and where they begin.

use linux_loader::elf::{Elf64_Phdr, PT_INTERP, PT_LOAD};
use subpage::address::{ByteRange, Gpa};
use thiserror::Error;

use super::elf_headers::ElfHeaders;
use super::load::{Image, Piece};
use super::parameters::Setup;
use super::source::Source;
use super::{BootError, Format, Part, Placed, linux_program, multiboot};

/// Why an ELF file cannot be a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ElfError {
    /// The file ends inside its header.
    #[error("the ELF file is cut off: {bytes} bytes are less than its header of 64")]
    HeaderCutOff {
        /// Bytes of the file.
        bytes: u64,
    },
    /// Not for x86-64.
    #[error("the ELF file is not a 64-bit little-endian one for x86-64; build the guest for that")]
    Machine,
    /// For the 80386, and no Multiboot kernel.
    #[error(
        "the ELF file is a 32-bit one without a Multiboot header; a guest is a static ELF64 file for \
         x86-64, an ELF file with a Multiboot header (version 1) in its first 8 KiB, or a bzImage"
    )]
    Class32,
    /// It is entered in 32-bit mode by a protocol that is not known here.
    #[error(
        "the ELF file has a Multiboot2 header, and its entry is 32-bit code for it; a guest has a \
         Multiboot header of version 1 (0x1badb002), or a 64-bit entry and no such header"
    )]
    Multiboot2,
    /// Relocatable, shared or a core dump.
    #[error(
        "the ELF file has type {kind}, not 2 (executable at fixed addresses); link the guest with \
         -static -no-pie -nostdlib"
    )]
    Type {
        /// `e_type`.
        kind: u16,
    },
    /// It wants a dynamic linker.
    #[error(
        "the ELF file needs a dynamic linker, as programs for Linux do, whose writes `subpage record` \
         records; link a guest with -static -no-pie -nostdlib"
    )]
    Interpreter,
    /// Program headers of another size, or more than their number can say.
    #[error(
        "the ELF file has {count} program headers of {bytes} bytes; 1 to 65534 of {known} are read"
    )]
    Headers {
        /// `e_phnum`.
        count: u16,
        /// `e_phentsize`.
        bytes: u16,
        /// What that has to be.
        known: u64,
    },
    /// It is built to run under Linux.
    #[error(
        "this is a program for Linux, which needs a kernel under it: `subpage record` records its \
         writes for `subpage guard`; a guest of its own is linked without the C library \
         (-static -no-pie -nostdlib)"
    )]
    ForLinux,
    /// The program headers are not in the file.
    #[error(
        "the ELF file is cut off: its {count} program headers at {offset:#x} are beyond its end"
    )]
    HeadersCutOff {
        /// `e_phnum`.
        count: u16,
        /// `e_phoff`.
        offset: u64,
    },
    /// Nothing is to be loaded.
    #[error("the ELF file has no load segment; is it an object or a debug file?")]
    NothingToLoad,
    /// A segment's bytes are not in the file.
    #[error("segment {index}: {bytes} bytes at {offset:#x} are beyond the end of the ELF file")]
    SegmentCutOff {
        /// Index of the program header.
        index: u16,
        /// `p_offset`.
        offset: u64,
        /// `p_filesz`.
        bytes: u64,
    },
    /// A segment has more bytes in the file than in memory.
    #[error("segment {index} has {file_bytes} bytes in the ELF file but {bytes} in memory")]
    SegmentSizes {
        /// Index of the program header.
        index: u16,
        /// `p_filesz`.
        file_bytes: u64,
        /// `p_memsz`.
        bytes: u64,
    },
    /// A segment's physical address is none, or wraps.
    #[error("segment {index}: {bytes} bytes at physical address {address:#x} are beyond 48 bits")]
    SegmentBeyond {
        /// Index of the program header.
        index: u16,
        /// `p_paddr`.
        address: u64,
        /// `p_memsz`.
        bytes: u64,
    },
    /// The entry is in no segment.
    #[error("the ELF file's entry {entry:#x} is in no load segment")]
    Entry {
        /// `e_entry`.
        entry: u64,
    },
}

/// What the ELF file says; nothing is written.
pub(super) fn plan(source: Source) -> Result<Image, BootError> {
    let headers = ElfHeaders::read(&source, false)?;
    let wrong = |error| BootError::Elf { path: source.path(), error };
    if linux_program::is_one(&source, &headers)? {
        return Err(wrong(ElfError::ForLinux));
    }
    if multiboot::is_second(&source)? {
        return Err(wrong(ElfError::Multiboot2));
    }
    let pieces = segments(&source, &headers).map_err(wrong)?;
    let entry = entry(&headers).map_err(wrong)?;
    let setup = Setup::without_header();
    Ok(Image::plain(Format::Elf64, source, entry, pieces, setup))
}

/// Where the load segments go.
pub(super) fn segments(source: &Source, headers: &ElfHeaders) -> Result<Vec<Piece>, ElfError> {
    let mut pieces = Vec::new();
    for (index, header) in (0..).zip(&headers.segments) {
        if header.p_type == PT_INTERP {
            return Err(ElfError::Interpreter);
        }
        let (offset, file_bytes) = (header.p_offset, header.p_filesz);
        let (address, bytes) = (header.p_paddr, header.p_memsz);
        if header.p_type != PT_LOAD || (file_bytes, bytes) == (0, 0) {
            continue;
        }
        if file_bytes > bytes {
            return Err(ElfError::SegmentSizes { index, file_bytes, bytes });
        }
        if !source.has(offset, file_bytes) {
            return Err(ElfError::SegmentCutOff { index, offset, bytes: file_bytes });
        }
        let range = Gpa::try_new(address).and_then(|first| ByteRange::new(first, bytes));
        let range = range.map_err(|_| ElfError::SegmentBeyond { index, address, bytes })?;
        let placed = Placed { part: Part::Segment(index), range };
        pieces.push(Piece { placed, offset, file_bytes, zeros: bytes - file_bytes });
    }
    if pieces.is_empty() { Err(ElfError::NothingToLoad) } else { Ok(pieces) }
}

/// The physical address of the entry. Kernels say it physically, other programs by the address that
/// they are linked to.
pub(super) fn entry(headers: &ElfHeaders) -> Result<u64, ElfError> {
    let (entry, table) = (headers.file.e_entry, &headers.segments);
    let inside = |first: u64, header: &Elf64_Phdr| {
        let offset = entry.checked_sub(first)?;
        (header.p_type == PT_LOAD && offset < header.p_memsz).then_some(offset)
    };
    if table.iter().any(|header| inside(header.p_paddr, header).is_some()) {
        return Ok(entry);
    }
    let physical = |header: &Elf64_Phdr| Some(header.p_paddr + inside(header.p_vaddr, header)?);
    table.iter().find_map(physical).ok_or(ElfError::Entry { entry })
}

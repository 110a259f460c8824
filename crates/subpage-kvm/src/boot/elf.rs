//! Static ELF64 images: where their segments go, and where they begin.

use linux_loader::elf::{
    EI_CLASS, EI_DATA, ELFCLASS64, ELFDATA2LSB, EM_X86_64, ET_EXEC, Elf64_Ehdr, Elf64_Phdr,
    PT_INTERP, PT_LOAD, PT_NOTE,
};
use subpage::address::{ByteRange, Gpa};
use thiserror::Error;
use vm_memory::ByteValued as _;

use super::load::{Image, Piece};
use super::parameters::Setup;
use super::source::Source;
use super::{BootError, Format, Part, Placed};

/// Bytes of a program header.
const HEADER_BYTES: u64 = size_of::<Elf64_Phdr>() as u64;
/// A number of program headers that means: look elsewhere for it.
const TOO_MANY_HEADERS: u16 = 0xffff;

/// Bytes of a note segment that are looked at; the tag stands at its beginning.
const MAX_NOTE_BYTES: usize = 4096;

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
    #[error("the ELF file has {count} program headers of {bytes} bytes; 1 to 65534 of 56 are read")]
    Headers {
        /// `e_phnum`.
        count: u16,
        /// `e_phentsize`.
        bytes: u16,
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
    match parse(&source)? {
        Ok((entry, pieces)) => Ok(Image {
            format: Format::Elf64,
            source,
            entry,
            pieces,
            setup: Setup::without_header(),
        }),
        Err(error) => Err(BootError::Elf { path: source.path(), error }),
    }
}

type Parsed = (u64, Vec<Piece>);

fn parse(source: &Source) -> Result<Result<Parsed, ElfError>, BootError> {
    if !source.has(0, size_of::<Elf64_Ehdr>() as u64) {
        return Ok(Err(ElfError::HeaderCutOff { bytes: source.bytes() }));
    }
    let mut header = Elf64_Ehdr::default();
    source.read(0, header.as_mut_slice())?;
    if let Err(error) = check(&header) {
        return Ok(Err(error));
    }
    let (count, offset) = (header.e_phnum, header.e_phoff);
    let table_bytes = u64::from(count) * HEADER_BYTES;
    if !source.has(offset, table_bytes) {
        return Ok(Err(ElfError::HeadersCutOff { count, offset }));
    }
    let mut table = vec![Elf64_Phdr::default(); usize::from(count)];
    let mut at = offset;
    for header in &mut table {
        source.read(at, header.as_mut_slice())?;
        at += HEADER_BYTES;
    }
    for header in &table {
        if header.p_type == PT_NOTE && is_for_linux(source, header)? {
            return Ok(Err(ElfError::ForLinux));
        }
    }
    Ok(segments(source, &table).and_then(|pieces| {
        let entry = entry(header.e_entry, &table)?;
        Ok((entry, pieces))
    }))
}

/// Whether a note segment holds the tag by which the C library's start files mark programs for Linux:
/// name `GNU`, type 1 (NT_GNU_ABI_TAG), operating system 0. Linux Standard Base, "ABI note tag".
fn is_for_linux(source: &Source, header: &Elf64_Phdr) -> Result<bool, BootError> {
    let length = usize::try_from(header.p_filesz).unwrap_or(usize::MAX).min(MAX_NOTE_BYTES);
    if !source.has(header.p_offset, length as u64) {
        return Ok(false);
    }
    let mut notes = vec![0; length];
    source.read(header.p_offset, &mut notes)?;
    let align = if header.p_align == 8 { 8 } else { 4 };
    // What follows a note's header of 12 bytes is aligned from the beginning of the note.
    let at = |end: usize| Some(end.checked_add(12)?.checked_next_multiple_of(align)? - 12);
    let mut rest = &notes[..];
    while let Some((head, content)) = rest.split_first_chunk::<12>() {
        let word = |at: usize| {
            u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize
        };
        let (name, kind) = (content.get(..word(0)), word(8));
        let Some(first) = at(word(0)) else { break };
        let Some(description) = content.get(first..) else { break };
        if name == Some(b"GNU\0") && kind == 1 && description.starts_with(&[0; 4]) {
            return Ok(true);
        }
        let next = first.checked_add(word(4)).and_then(at);
        let Some(next) = next.and_then(|next| content.get(next..)) else { break };
        rest = next;
    }
    Ok(false)
}

fn check(header: &Elf64_Ehdr) -> Result<(), ElfError> {
    let ident = header.e_ident;
    if ident[EI_CLASS] != ELFCLASS64
        || ident[EI_DATA] != ELFDATA2LSB
        || header.e_machine != EM_X86_64
    {
        return Err(ElfError::Machine);
    }
    if header.e_type != ET_EXEC {
        return Err(ElfError::Type { kind: header.e_type });
    }
    let (count, bytes) = (header.e_phnum, header.e_phentsize);
    if count == 0 {
        return Err(ElfError::NothingToLoad);
    }
    if count == TOO_MANY_HEADERS || u64::from(bytes) != HEADER_BYTES {
        return Err(ElfError::Headers { count, bytes });
    }
    Ok(())
}

fn segments(source: &Source, table: &[Elf64_Phdr]) -> Result<Vec<Piece>, ElfError> {
    let mut pieces = Vec::new();
    for (index, header) in (0..).zip(table) {
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
fn entry(entry: u64, table: &[Elf64_Phdr]) -> Result<u64, ElfError> {
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

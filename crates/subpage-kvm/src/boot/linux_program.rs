//! Programs for Linux, which are no guests: they need a kernel under them.
//!
//! Certain signs only. A static program whose symbols are stripped and whose C library leaves no tag has
//! none.

use linux_loader::elf::{Elf64_Phdr, PT_NOTE, SHT_SYMTAB};

use super::BootError;
use super::elf_headers::ElfHeaders;
use super::source::Source;

/// Bytes of a note segment that are looked at; the tag stands at its beginning.
const MAX_NOTE_BYTES: usize = 4096;

/// What every C library's start file calls, between the ends of its neighbours in a string table.
const START: &[u8] = b"\0__libc_start_main\0";

/// Longest string table that is looked through; a kernel's may be longer.
const MAX_STRING_BYTES: u64 = 16 << 20;

/// Bytes of `Elf64_Shdr`.
const SECTION_BYTES: usize = 64;

/// Whether a 64-bit ELF file is such a program.
pub(super) fn is_one(source: &Source, headers: &ElfHeaders) -> Result<bool, BootError> {
    for header in headers.segments.iter().filter(|header| header.p_type == PT_NOTE) {
        if has_tag(source, header)? {
            return Ok(true);
        }
    }
    has_start(source, headers)
}

/// Whether a note segment holds the tag by which the C library's start files mark programs for Linux:
/// name `GNU`, type 1 (NT_GNU_ABI_TAG), operating system 0 (Linux Standard Base, "ABI note tag"); or
/// the build ID that Go gives its programs: name `Go`, type 4.
fn has_tag(source: &Source, header: &Elf64_Phdr) -> Result<bool, BootError> {
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
        match (name, kind) {
            (Some(b"GNU\0"), 1) if description.starts_with(&[0; 4]) => return Ok(true),
            (Some(b"Go\0\0"), 4) => return Ok(true),
            _ => {}
        }
        let next = first.checked_add(word(4)).and_then(at);
        let Some(next) = next.and_then(|next| content.get(next..)) else { break };
        rest = next;
    }
    Ok(false)
}

/// Whether a symbol table of the file names the C library's start. A damaged table names nothing.
fn has_start(source: &Source, headers: &ElfHeaders) -> Result<bool, BootError> {
    let file = &headers.file;
    let section = |index: u32| -> Result<Option<[u8; SECTION_BYTES]>, BootError> {
        let mut bytes = [0; SECTION_BYTES];
        let at = u64::from(index) * SECTION_BYTES as u64;
        let at = file.e_shoff.checked_add(at).filter(|at| source.has(*at, SECTION_BYTES as u64));
        let Some(at) = at.filter(|_| index < file.e_shnum.into()) else { return Ok(None) };
        source.read(at, &mut bytes)?;
        Ok(Some(bytes))
    };
    if usize::from(file.e_shentsize) != SECTION_BYTES {
        return Ok(false);
    }
    for index in 0..file.e_shnum.into() {
        let Some(table) = section(index)? else { break };
        if word(&table, 4) != SHT_SYMTAB {
            continue;
        }
        let Some(strings) = section(word(&table, 40))? else { continue };
        if holds(source, long(&strings, 24), long(&strings, 32), START)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether `bytes` of the file from `offset` hold `wanted`.
fn holds(source: &Source, offset: u64, bytes: u64, wanted: &[u8]) -> Result<bool, BootError> {
    if bytes > MAX_STRING_BYTES || !source.has(offset, bytes) {
        return Ok(false);
    }
    let mut text = vec![0; usize::try_from(bytes).expect("a few MiB")];
    source.read(offset, &mut text)?;
    let mut rest = &text[..];
    // From one NUL to the next.
    while let Some(at) = rest.iter().position(|byte| *byte == wanted[0]) {
        rest = &rest[at..];
        if rest.starts_with(wanted) {
            return Ok(true);
        }
        rest = &rest[1..];
    }
    Ok(false)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

//! The ELF file of a kernel: what is loaded, and the sections.

use object::elf::{
    EM_X86_64, ET_DYN, ET_EXEC, FileHeader64, NT_GNU_BUILD_ID, PF_W, PF_X, PT_LOAD, PT_NOTE,
};
use object::endian::LittleEndian;
use object::read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _};

use super::{ImageError, MAX_UNPACKED_BYTES};
use crate::address::LinkAddress;

type Header = FileHeader64<LittleEndian>;

/// Most segments and sections; a kernel has 5 and about 80.
const MAX_SEGMENTS: usize = 64;
/// Most entries of the list of segments, notes and others included.
const MAX_HEADERS: u32 = 1024;
const MAX_SECTIONS: u32 = 4096;
const MAX_SECTION_NAME_BYTES: usize = 256;
const MAX_BUILD_ID_BYTES: usize = 64;
/// Longest notes that are searched.
const MAX_NOTE_BYTES: u64 = 1 << 20;

/// A part of the kernel that is loaded.
#[derive(Debug)]
pub struct Segment {
    /// Its first byte. Kernels before 6.15 have a segment of per-processor data that begins at 0.
    pub address: LinkAddress,
    /// Where the file says that it is loaded.
    pub physical: u64,
    /// Bytes in memory.
    pub length: u64,
    /// Its first bytes; the others begin as zeros.
    pub bytes: Vec<u8>,
    /// It may be executed.
    pub is_code: bool,
    /// It may be written.
    pub is_writable: bool,
}

impl Segment {
    /// Whether an address lies in it.
    pub const fn contains(&self, address: LinkAddress) -> bool {
        match address.checked_since(self.address) {
            Some(offset) => offset < self.length,
            None => false,
        }
    }
}

/// A named part of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// As the file gives it.
    pub name: String,
    /// Its first byte; 0 for one that is not loaded.
    pub address: LinkAddress,
    /// In bytes.
    pub length: u64,
}

#[derive(Debug)]
pub(super) struct Contents {
    pub(super) entry: u64,
    pub(super) segments: Vec<Segment>,
    pub(super) sections: Vec<Section>,
    pub(super) build_id: Option<Vec<u8>>,
}

#[allow(clippy::needless_pass_by_value, reason = "reads best with `map_err`")]
fn damaged(reason: impl ToString) -> ImageError {
    ImageError::Elf { reason: reason.to_string() }
}

fn header<'d>(data: impl object::ReadRef<'d>) -> Result<&'d Header, ImageError> {
    if data.read_bytes_at(0, 4) != Ok(b"\x7fELF") {
        return Err(ImageError::Neither);
    }
    let e = LittleEndian;
    let header = Header::parse(data).map_err(|_| ImageError::OtherMachine)?;
    let is_program = matches!(header.e_type(e), ET_EXEC | ET_DYN);
    if !header.is_little_endian() || header.e_machine(e) != EM_X86_64 || !is_program {
        return Err(ImageError::OtherMachine);
    }
    Ok(header)
}

/// Refuses a file whose list of segments alone is large, before it is read.
fn bounded<'d>(header: &Header, data: impl object::ReadRef<'d>) -> Result<(), ImageError> {
    if header.phnum(LittleEndian, data).map_err(damaged)? > MAX_HEADERS {
        return Err(damaged("it has too many segments"));
    }
    Ok(())
}

/// Where the ELF file in `data` ends, at most the length of `data`.
pub(super) fn end(data: &[u8]) -> Result<usize, ImageError> {
    let e = LittleEndian;
    let header = header(data)?;
    bounded(header, data)?;
    if header.shnum(e, data).map_err(damaged)? > MAX_SECTIONS {
        return Err(damaged("it has too many sections"));
    }
    let of_segments = header
        .program_headers(e, data)
        .map_err(damaged)?
        .iter()
        .map(|segment| segment.p_offset(e).saturating_add(segment.p_filesz(e)));
    let table = u64::from(header.e_shnum(e)) * u64::from(header.e_shentsize(e));
    let of_sections = header
        .section_headers(e, data)
        .map_err(damaged)?
        .iter()
        .filter_map(|section| section.file_range(e))
        .map(|(offset, length)| offset.saturating_add(length));
    let end = of_segments.chain(of_sections).max().unwrap_or(0);
    let end = end.max(header.e_shoff(e).saturating_add(table));
    Ok(usize::try_from(end).map_or(data.len(), |end| end.min(data.len())))
}

pub(super) fn read<'d>(data: impl object::ReadRef<'d>) -> Result<Contents, ImageError> {
    let e = LittleEndian;
    let header = header(data)?;
    bounded(header, data)?;
    let headers = header.program_headers(e, data).map_err(damaged)?;
    let mut segments = Vec::new();
    let mut build_id = None;
    // For all of them together.
    let mut notes_left = MAX_NOTE_BYTES;
    let mut total = 0_u64;
    for program in headers {
        match program.p_type(e) {
            PT_LOAD => {
                // Asked before anything is read: a file may claim as much as it has.
                total = total.saturating_add(program.p_filesz(e));
                if total > MAX_UNPACKED_BYTES as u64 || segments.len() == MAX_SEGMENTS {
                    return Err(damaged("its segments are too large or too many"));
                }
                let bytes = program.data(e, data).map_err(|()| damaged("a segment is cut off"))?;
                let (address, length) = (program.p_vaddr(e), program.p_memsz(e));
                if length < bytes.len() as u64 || address.checked_add(length).is_none() {
                    return Err(damaged("a segment is longer in the file than in memory"));
                }
                segments.push(Segment {
                    address: LinkAddress::new(address),
                    physical: program.p_paddr(e),
                    length,
                    bytes: bytes.to_vec(),
                    is_code: program.p_flags(e).contains(PF_X),
                    is_writable: program.p_flags(e).contains(PF_W),
                });
            }
            PT_NOTE if build_id.is_none() && program.p_filesz(e) <= notes_left => {
                notes_left -= program.p_filesz(e);
                let mut notes = program.notes(e, data).ok().flatten();
                while let Some(Ok(Some(note))) =
                    notes.as_mut().map(object::read::elf::NoteIterator::next)
                {
                    let id = note.desc();
                    if note.n_type(e) == NT_GNU_BUILD_ID
                        && note.name() == b"GNU"
                        && (1..=MAX_BUILD_ID_BYTES).contains(&id.len())
                    {
                        build_id = Some(id.to_vec());
                        break;
                    }
                }
            }
            _ => {}
        }
    }
    if segments.is_empty() {
        return Err(damaged("it has no segment to load"));
    }
    let sections = sections(header, data).unwrap_or_default();
    Ok(Contents { entry: header.e_entry(e), segments, sections, build_id })
}

/// The sections, none if the list of them is damaged: it is not needed to start a kernel.
fn sections<'d>(header: &Header, data: impl object::ReadRef<'d>) -> Option<Vec<Section>> {
    let e = LittleEndian;
    if header.shnum(e, data).ok()? > MAX_SECTIONS {
        return None;
    }
    let table = header.sections(e, data).ok()?;
    let section = |section| {
        let name = table.section_name(e, section).ok()?;
        let name = std::str::from_utf8(name).ok().filter(|n| n.len() <= MAX_SECTION_NAME_BYTES)?;
        Some(Section {
            name: name.to_owned(),
            address: LinkAddress::new(section.sh_addr(e)),
            length: section.sh_size(e),
        })
    };
    table.iter().map(section).collect()
}

//! The headers of ELF files of both classes, in the form of the 64-bit one.

use linux_loader::elf::{
    EI_CLASS, EI_DATA, ELFCLASS32, ELFCLASS64, ELFDATA2LSB, EM_386, EM_X86_64, ET_EXEC, Elf64_Ehdr,
    Elf64_Phdr,
};
use vm_memory::ByteValued as _;

use super::source::Source;
use super::{BootError, ElfError};

/// Bytes of a file header and of a program header.
const SIZES_64: (usize, usize) = (size_of::<Elf64_Ehdr>(), size_of::<Elf64_Phdr>());
const SIZES_32: (usize, usize) = (52, 32);

/// A number of program headers that means: look elsewhere for it.
const TOO_MANY_HEADERS: u16 = 0xffff;

/// An executable for x86 whose headers are all in the file.
pub(super) struct ElfHeaders {
    /// Of a 32-bit file, the same fields.
    pub(super) file: Elf64_Ehdr,
    /// The program headers, at least one.
    pub(super) segments: Vec<Elf64_Phdr>,
}

impl ElfHeaders {
    /// Reads them; `class_32`: 32-bit files for the 80386 are read, too.
    pub(super) fn read(source: &Source, class_32: bool) -> Result<Self, BootError> {
        let wrong = |error| BootError::Elf { path: source.path(), error };
        let mut ident = [0; 20];
        if !source.has(0, ident.len() as u64) {
            return Err(wrong(ElfError::HeaderCutOff { bytes: source.bytes() }));
        }
        source.read(0, &mut ident)?;
        let machine = u16::from_le_bytes([ident[18], ident[19]]);
        let is_32 = ident[EI_CLASS] == ELFCLASS32;
        let (file_bytes, header_bytes) = match (ident[EI_CLASS], machine, ident[EI_DATA]) {
            (ELFCLASS64, EM_X86_64, ELFDATA2LSB) => SIZES_64,
            (ELFCLASS32, EM_386, ELFDATA2LSB) if class_32 => SIZES_32,
            (ELFCLASS32, EM_386, ELFDATA2LSB) => return Err(wrong(ElfError::Class32)),
            _ => return Err(wrong(ElfError::Machine)),
        };
        let header_bytes = header_bytes as u64;
        if !source.has(0, file_bytes as u64) {
            return Err(wrong(ElfError::HeaderCutOff { bytes: source.bytes() }));
        }
        let file = if is_32 {
            let mut bytes = [0; SIZES_32.0];
            source.read(0, &mut bytes)?;
            file_header_32(&bytes)
        } else {
            let mut header = Elf64_Ehdr::default();
            source.read(0, header.as_mut_slice())?;
            header
        };
        check(&file, header_bytes).map_err(wrong)?;
        let (count, offset) = (file.e_phnum, file.e_phoff);
        if !source.has(offset, u64::from(count) * header_bytes) {
            return Err(wrong(ElfError::HeadersCutOff { count, offset }));
        }
        let mut segments = vec![Elf64_Phdr::default(); usize::from(count)];
        let mut at = offset;
        for header in &mut segments {
            if is_32 {
                let mut bytes = [0; SIZES_32.1];
                source.read(at, &mut bytes)?;
                *header = program_header_32(&bytes);
            } else {
                source.read(at, header.as_mut_slice())?;
            }
            at += header_bytes;
        }
        Ok(Self { file, segments })
    }
}

fn check(header: &Elf64_Ehdr, header_bytes: u64) -> Result<(), ElfError> {
    if header.e_type != ET_EXEC {
        return Err(ElfError::Type { kind: header.e_type });
    }
    let (count, bytes) = (header.e_phnum, header.e_phentsize);
    if count == 0 {
        return Err(ElfError::NothingToLoad);
    }
    if count == TOO_MANY_HEADERS || u64::from(bytes) != header_bytes {
        return Err(ElfError::Headers { count, bytes, known: header_bytes });
    }
    Ok(())
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// `Elf32_Ehdr`, whose fields have the order of the wider one.
fn file_header_32(bytes: &[u8; SIZES_32.0]) -> Elf64_Ehdr {
    let mut header = Elf64_Ehdr {
        e_type: half(bytes, 16),
        e_machine: half(bytes, 18),
        e_version: word(bytes, 20),
        e_entry: word(bytes, 24).into(),
        e_phoff: word(bytes, 28).into(),
        e_shoff: word(bytes, 32).into(),
        e_flags: word(bytes, 36),
        e_ehsize: half(bytes, 40),
        e_phentsize: half(bytes, 42),
        e_phnum: half(bytes, 44),
        e_shentsize: half(bytes, 46),
        e_shnum: half(bytes, 48),
        e_shstrndx: half(bytes, 50),
        ..Elf64_Ehdr::default()
    };
    header.e_ident.copy_from_slice(&bytes[..16]);
    header
}

/// `Elf32_Phdr`, whose flags stand elsewhere.
fn program_header_32(bytes: &[u8; SIZES_32.1]) -> Elf64_Phdr {
    Elf64_Phdr {
        p_type: word(bytes, 0),
        p_offset: word(bytes, 4).into(),
        p_vaddr: word(bytes, 8).into(),
        p_paddr: word(bytes, 12).into(),
        p_filesz: word(bytes, 16).into(),
        p_memsz: word(bytes, 20).into(),
        p_flags: word(bytes, 24),
        p_align: word(bytes, 28).into(),
    }
}

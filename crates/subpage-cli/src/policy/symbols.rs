//! Symbols of ELF files.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use object::read::{ReadCache, ReadCacheOps};
use object::{Object, ObjectSegment, ObjectSymbol, SymbolKind};
use thiserror::Error;

use super::{AddressSpace, NamedRange, Names};

/// Longest ELF file in bytes: 4 GiB. A kernel with debug information has about 1 GiB.
const MAX_ELF_BYTES: u64 = 4 << 30;

/// Most symbols that are read; the Linux kernel has about 200,000.
const MAX_SYMBOLS: usize = 4_000_000;

/// Longest name of a symbol in bytes; longer ones cannot be named by a policy.
const MAX_NAME_BYTES: usize = 4096;

/// Why a file gives no symbols.
#[derive(Debug, Error)]
pub enum SymbolError {
    /// The file cannot be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is a directory, a pipe or a device.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// It has more than 4 GiB.
    #[error("{} is longer than 4 GiB", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// It is no ELF file, or a damaged one.
    #[error("{} cannot be read as ELF: {reason}", path.display())]
    NotElf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It has too many symbols.
    #[error("{} has more than 4,000,000 symbols", path.display())]
    TooMany {
        /// The file.
        path: PathBuf,
    },
}

/// The data, code and untyped symbols of a file's two symbol tables, with addresses as asked for.
///
/// A physical address is that of the load segment which holds the symbol (its `p_paddr`); symbols
/// outside every segment have none and are left out.
pub fn read_symbols(path: &Path, space: AddressSpace) -> Result<Names, SymbolError> {
    let failed = |source| SymbolError::Read { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(SymbolError::NotAFile { path: path.to_owned() });
    }
    if metadata.len() > MAX_ELF_BYTES {
        return Err(SymbolError::TooLong { path: path.to_owned() });
    }
    let cache = ReadCache::new(File::open(path).map_err(failed)?);
    symbols_of(&cache, path, space)
}

fn symbols_of<R: ReadCacheOps>(
    cache: &ReadCache<R>,
    path: &Path,
    space: AddressSpace,
) -> Result<Names, SymbolError> {
    let file = object::File::parse(cache).map_err(|error| SymbolError::NotElf {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    let segments = physical_segments(&file);
    let mut ranges = Vec::new();
    for symbol in file.symbols().chain(file.dynamic_symbols()) {
        let wanted = matches!(symbol.kind(), SymbolKind::Data | SymbolKind::Text)
            || symbol.kind() == SymbolKind::Unknown;
        let name = symbol.name().unwrap_or_default();
        if !wanted || !symbol.is_definition() || name.is_empty() || name.len() > MAX_NAME_BYTES {
            continue;
        }
        let start = match space {
            AddressSpace::Virtual => Some(symbol.address()),
            AddressSpace::Physical => physical(&segments, symbol.address()),
        };
        let Some(start) = start else { continue };
        if ranges.len() == MAX_SYMBOLS {
            return Err(SymbolError::TooMany { path: path.to_owned() });
        }
        ranges.push(NamedRange { name: name.to_owned(), start, length: symbol.size() });
    }
    Ok(Names::new(ranges))
}

/// A load segment: virtual start, length in memory, physical start.
struct Segment {
    start: u64,
    length: u64,
    physical: u64,
}

fn physical_segments<'a, R: object::ReadRef<'a>>(file: &object::File<'a, R>) -> Vec<Segment> {
    use object::read::elf::ProgramHeader as _;
    let endian = file.endianness();
    match file {
        object::File::Elf64(elf) => elf
            .elf_program_headers()
            .iter()
            .filter(|header| header.p_type(endian) == object::elf::PT_LOAD)
            .map(|header| Segment {
                start: header.p_vaddr(endian),
                length: header.p_memsz(endian),
                physical: header.p_paddr(endian),
            })
            .collect(),
        // 32-bit files: the generic view has no physical address, and none is in use as a guest.
        _ => file
            .segments()
            .map(|segment| Segment {
                start: segment.address(),
                length: segment.size(),
                physical: segment.address(),
            })
            .collect(),
    }
}

fn physical(segments: &[Segment], address: u64) -> Option<u64> {
    segments.iter().find_map(|segment| {
        let offset = address.checked_sub(segment.start).filter(|o| *o < segment.length)?;
        segment.physical.checked_add(offset)
    })
}

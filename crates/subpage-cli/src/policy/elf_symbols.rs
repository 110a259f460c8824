//! Symbols of ELF files.

use std::path::Path;

use object::read::{ReadCache, ReadCacheOps};
use object::{Object, ObjectKind, ObjectSymbol, SymbolKind};

use super::debug_info::{DebugInfo, Mapping, Segment};
use super::fleeting::Fleeting;
use super::place::START_KERNEL_MAP;
use super::symbol_file::{
    MAX_NAME_BYTES, MAX_NAMES_BYTES, MAX_SYMBOLS, SymbolError, kernel_address,
};
use super::{AddressSpace, NamedRange, Names};

/// The data, code and untyped symbols of a file's two symbol tables, with addresses as asked for.
///
/// A physical address is that of the load segment which holds the symbol (its `p_paddr`); symbols
/// outside every segment have none and are left out.
pub(super) fn parse<R: ReadCacheOps>(
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
    let mut unplaced = Vec::new();
    let mut fleeting = Fleeting::default();
    if space != AddressSpace::Virtual {
        for symbol in file.symbols() {
            fleeting.note(symbol.name_bytes().unwrap_or_default(), symbol.address());
        }
    }
    let mut name_bytes = 0;
    let too_many = || SymbolError::TooMany { path: path.to_owned() };
    for symbol in file.symbols().chain(file.dynamic_symbols()) {
        let wanted = matches!(symbol.kind(), SymbolKind::Data | SymbolKind::Text)
            || symbol.kind() == SymbolKind::Unknown;
        let name = symbol.name().unwrap_or_default();
        if !wanted || !symbol.is_definition() || name.is_empty() || name.len() > MAX_NAME_BYTES {
            continue;
        }
        name_bytes += name.len();
        if name_bytes > MAX_NAMES_BYTES || ranges.len() + unplaced.len() >= MAX_SYMBOLS {
            return Err(too_many());
        }
        if let Some(reason) = fleeting.reason(symbol.address()) {
            unplaced.push((name.to_owned(), reason));
            continue;
        }
        let start = match space {
            AddressSpace::Virtual => Some(symbol.address()),
            AddressSpace::Physical => physical(&segments, symbol.address()),
            AddressSpace::Kernel => match kernel_address(symbol.address()) {
                Ok(start) => Some(start),
                Err(reason) => {
                    unplaced.push((name.to_owned(), reason));
                    None
                }
            },
        };
        let Some(start) = start else { continue };
        ranges.push(NamedRange { name: name.to_owned(), start, length: symbol.size() });
    }
    let mapping = match space {
        AddressSpace::Virtual => Mapping::Shifted(0),
        AddressSpace::Physical => Mapping::Segments(segments),
        AddressSpace::Kernel => Mapping::Shifted(-i128::from(START_KERNEL_MAP)),
    };
    let names = Names::new(ranges)
        .with_unplaced(unplaced)
        .with_debug_info(DebugInfo::of(path.to_owned(), mapping));
    Ok(if file.kind() == ObjectKind::Dynamic { names.position_independent() } else { names })
}

fn physical_segments<'a, R: object::ReadRef<'a>>(file: &object::File<'a, R>) -> Vec<Segment> {
    match file {
        object::File::Elf64(elf) => load_segments(elf),
        object::File::Elf32(elf) => load_segments(elf),
        _ => Vec::new(),
    }
}

fn load_segments<'a, E, R>(elf: &object::read::elf::ElfFile<'a, E, R>) -> Vec<Segment>
where
    E: object::read::elf::FileHeader<Endian = object::Endianness>,
    R: object::ReadRef<'a>,
{
    use object::read::elf::ProgramHeader as _;
    let endian = elf.endianness();
    elf.elf_program_headers()
        .iter()
        .filter(|header| header.p_type(endian) == object::elf::PT_LOAD)
        .map(|header| Segment {
            start: header.p_vaddr(endian).into(),
            length: header.p_memsz(endian).into(),
            physical: header.p_paddr(endian).into(),
        })
        .collect()
}

fn physical(segments: &[Segment], address: u64) -> Option<u64> {
    segments.iter().find_map(|segment| {
        let offset = address.checked_sub(segment.start).filter(|o| *o < segment.length)?;
        segment.physical.checked_add(offset)
    })
}

//! Names of a program's code: its functions and source lines.

use std::ops::Range;

use object::{Object, ObjectSegment, ObjectSymbol, ReadRef, SegmentFlags, SymbolKind, elf};

use crate::source_lines::SourceLines;

/// Longest name of a function, in bytes.
const MAX_FUNCTION_BYTES: usize = 512;
/// Symbols looked at; a table that is longer is not read to its end.
const MAX_SYMBOLS: usize = 1 << 22;

/// Bytes of the names of all functions that are kept: many symbols of a made-up file may have one long
/// name.
const MAX_FUNCTIONS_BYTES: usize = 64 << 20;

/// Functions and source lines of a program, by the addresses in its file.
#[derive(Clone, Debug, Default)]
pub struct CodeNames {
    /// The functions with the addresses of their bytes, ascending by their first.
    pub functions: Vec<(Range<u64>, String)>,
    /// The source lines.
    pub lines: SourceLines,
    /// Where the code lies.
    code: Vec<Range<u64>>,
}

impl CodeNames {
    /// Those of an ELF file: its symbols of type `STT_FUNC` with a size, and the lines of its debug
    /// information as far as it can be [read](SourceLines::of_elf).
    pub fn of_elf<'data, R: ReadRef<'data>>(file: &object::File<'data, R>) -> Self {
        let named = file.symbols().take(MAX_SYMBOLS).filter_map(|symbol| {
            let name = symbol.name().ok().filter(|name| name.len() <= MAX_FUNCTION_BYTES)?;
            let is_function = symbol.kind() == SymbolKind::Text && symbol.is_definition();
            let end = symbol.address().checked_add(symbol.size())?;
            (is_function && symbol.size() > 0).then(|| (symbol.address()..end, name.to_owned()))
        });
        let mut functions = up_to(MAX_FUNCTIONS_BYTES, named);
        functions.sort_unstable_by(|(one, name), (other, other_name)| {
            (one.start, one.end, name).cmp(&(other.start, other.end, other_name))
        });
        let code = code_of(file);
        let is_code = |address: u64| code.iter().any(|segment| segment.contains(&address));
        Self { functions, lines: SourceLines::of_elf(file, is_code), code }
    }

    /// Whether a segment of code has the byte at `address`.
    pub fn is_code(&self, address: u64) -> bool {
        self.code.iter().any(|segment| segment.contains(&address))
    }

    /// How many functions and changes of line there are.
    pub(crate) fn size(&self) -> usize {
        self.functions.len() + self.lines.len()
    }

    /// The function that holds the instruction at `address`, and how many bytes behind its first one.
    pub fn function(&self, address: u64) -> Option<(&str, u64)> {
        let after = self.functions.partition_point(|(range, _)| range.start <= address);
        let (range, name) = &self.functions[after.checked_sub(1)?];
        range.contains(&address).then(|| (name.as_str(), address - range.start))
    }
}

/// The first functions whose names have so many bytes together.
fn up_to(
    most: usize,
    functions: impl Iterator<Item = (Range<u64>, String)>,
) -> Vec<(Range<u64>, String)> {
    let mut bytes = 0;
    let fits = |(_, name): &(Range<u64>, String)| {
        bytes += name.len();
        bytes <= most
    };
    functions.take_while(fits).collect()
}

/// Addresses of a file's code, by its segments.
fn code_of<'data, R: ReadRef<'data>>(file: &object::File<'data, R>) -> Vec<Range<u64>> {
    let code = file.segments().filter(|segment| {
        matches!(segment.flags(), SegmentFlags::Elf { p_flags, .. } if p_flags.contains(elf::PF_X))
    });
    code.map(|segment| segment.address()..segment.address().saturating_add(segment.size()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also where they are one and the same, which takes no room in the file.
    #[test]
    fn names_of_functions_are_bounded() {
        let mut made = 0;
        let functions = std::iter::repeat_with(|| {
            made += 1;
            (made..made + 1, "x".repeat(512))
        });
        assert_eq!(up_to(64 << 10, functions).len(), 128);
        assert_eq!(made, 129);
    }
}

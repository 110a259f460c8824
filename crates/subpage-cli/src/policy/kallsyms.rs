//! Lists of symbols as `/proc/kallsyms` and `System.map` have them: `ADDRESS TYPE NAME [MODULE]`.

use std::path::Path;

use super::fleeting::Fleeting;
use super::place::START_KERNEL_MAP;
use super::symbol_file::{MAX_NAME_BYTES, MAX_SYMBOLS, SymbolError, kernel_address};
use super::{AddressSpace, NamedRange, Names};

const OF_A_MODULE: &str = "it belongs to a loadable module, whose pages lie anywhere in memory; only \
                           the kernel's own image lies at its address minus 0xffffffff80000000";

/// One line.
struct Line<'l> {
    value: u64,
    name: &'l [u8],
    in_module: bool,
}

/// The names of a list, with addresses as asked for and lengths that are not known.
///
/// A list has no physical addresses: [`AddressSpace::Physical`] is the same as
/// [`AddressSpace::Virtual`].
pub(super) fn parse(list: &[u8], path: &Path, space: AddressSpace) -> Result<Names, SymbolError> {
    let mut ranges = Vec::new();
    let mut unplaced = Vec::new();
    let mut fleeting = Fleeting::default();
    let mut hidden = true;
    let mut symbols = 0;
    for (number, text) in (1..).zip(list.split(|byte| *byte == b'\n')) {
        let words = text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let line = match read(words) {
            Ok(Some(line)) => line,
            Ok(None) => continue,
            Err(()) if symbols == 0 && is_stub(text) => {
                return Err(SymbolError::Stub { path: path.to_owned() });
            }
            Err(()) if symbols == 0 => return Err(SymbolError::Neither { path: path.to_owned() }),
            Err(()) => return Err(SymbolError::Line { path: path.to_owned(), line: number }),
        };
        if symbols == MAX_SYMBOLS {
            return Err(SymbolError::TooMany { path: path.to_owned() });
        }
        symbols += 1;
        hidden &= line.value == 0;
        fleeting.note(line.name, line.value);
        // A policy is UTF-8, so it cannot mean any other name.
        let Some(name) = std::str::from_utf8(line.name).ok().filter(|n| n.len() <= MAX_NAME_BYTES)
        else {
            continue;
        };
        let start = match space {
            AddressSpace::Virtual | AddressSpace::Physical => Ok(line.value),
            AddressSpace::Kernel if line.in_module => Err(OF_A_MODULE),
            AddressSpace::Kernel => kernel_address(line.value),
        };
        match start {
            Ok(start) => ranges.push(NamedRange { name: name.to_owned(), start, length: 0 }),
            Err(reason) => unplaced.push((name.to_owned(), reason)),
        }
    }
    if space == AddressSpace::Kernel {
        fleeting.leave_out(&mut ranges, &mut unplaced, |range| range.start + START_KERNEL_MAP);
    }
    match (symbols, hidden) {
        (0, _) => Err(SymbolError::Empty { path: path.to_owned() }),
        (_, true) => Err(SymbolError::Hidden { path: path.to_owned() }),
        _ => Ok(Names::new(ranges).with_unplaced(unplaced)),
    }
}

/// Whether a line that is no symbol stands in place of a list: Debian's kernel packages have one of the
/// last address and a sentence about the package with the list.
fn is_stub(line: &[u8]) -> bool {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    words.next().and_then(hexadecimal) == Some(u64::MAX)
}

/// The symbol of a line; none for an empty line and for what is not defined; `Err` for anything else.
fn read<'l>(mut words: impl Iterator<Item = &'l [u8]>) -> Result<Option<Line<'l>>, ()> {
    let line = [words.next(), words.next(), words.next(), words.next(), words.next()];
    match line {
        // `nm` prints what a file only refers to without an address.
        [None, ..] | [Some(b"U" | b"w" | b"v"), Some(_), None, ..] => Ok(None),
        [Some(value), Some([kind]), Some(name), module, None] if kind.is_ascii_graphic() => {
            let in_module = match module {
                None => false,
                Some([b'[', .., b']']) => true,
                Some(_) => return Err(()),
            };
            Ok(Some(Line { value: hexadecimal(value).ok_or(())?, name, in_module }))
        }
        _ => Err(()),
    }
}

/// At most 16 digits, without a sign or a prefix.
fn hexadecimal(digits: &[u8]) -> Option<u64> {
    if digits.len() > 16 {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(value << 4 | u64::from(digit))
    })
}

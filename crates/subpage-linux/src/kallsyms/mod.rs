//! The names of a kernel's functions and data, from its own tables (CONFIG_KALLSYMS).
//!
//! The tables have no header: they are found by their form and taken only if all of them agree. Their
//! layout is that of Linux, `scripts/kallsyms.c` and `kernel/kallsyms.c`, from 4.6 on:
//!
//! | Linux | order |
//! |---|---|
//! | 4.6 | addresses, (base), count, names, markers, tokens, token index |
//! | 6.2 | addresses, (base), count, names, markers, order by name, tokens, token index |
//! | 6.4 | count, names, markers, tokens, token index, addresses, (base), order by name |
//!
//! Addresses are 64-bit, or 32-bit distances: from the base, from the base with per-processor data as
//! it is (before 6.15), or each from its own place (7.x, where there is no base). Each table is aligned to
//! 8 bytes, in 7.x to 4.

mod addresses;
mod error;
mod names;
mod symbols;
mod tables;
mod tokens;

use std::ops::Range;

pub use error::KallsymsError;
pub use symbols::{Placement, Symbol};

use crate::address::LinkAddress;
use crate::image::{KernelImage, Segment};
use symbols::Bounds;
use tables::Alignment;

/// Most symbols that are read; a distribution's kernel has about 200,000.
pub const MAX_SYMBOLS: usize = 2_000_000;

/// Longest name in bytes, without its type: the kernel's KSYM_NAME_LEN is 512 since 6.1.
pub const MAX_NAME_BYTES: usize = 511;

/// Most tables of tokens that are tried; a kernel has one, which may be seen at both alignments.
const MAX_TABLES: usize = 8;

/// Longest distance to the next symbol that is taken for a length, in bytes: 128 KiB; the hooks of security
/// modules have 95 KiB in 7.2. Further apart lies
/// what has no names, such as the tables of symbols themselves.
const MAX_LENGTH: u64 = 128 << 10;

/// One symbol. Its type is the first byte of its text.
#[derive(Debug, Clone, Copy)]
struct Entry {
    address: u64,
    text: usize,
    length: u16,
}

/// A kernel's symbols.
#[derive(Debug)]
pub struct Kallsyms {
    /// Types and names, one behind the other.
    texts: String,
    /// By address, and those of one address in the table's order.
    entries: Vec<Entry>,
    /// Numbers of entries, by name and then by address.
    by_name: Vec<u32>,
    bounds: Bounds,
    /// What the image covers, without per-processor data at 0.
    segments: Vec<Range<u64>>,
}

impl Kallsyms {
    /// Reads the tables of an image and checks that they agree with each other and with the image.
    ///
    /// Takes time in proportion to the image; well under a second for a distribution's kernel.
    pub fn read(image: &KernelImage) -> Result<Self, KallsymsError> {
        let mut found: Option<(u64, Self)> = None;
        let mut reason = None;
        let mut tables = 0;
        for alignment in Alignment::ALL {
            for segment in image.segments() {
                for tokens in tokens::find(segment, alignment) {
                    tables += 1;
                    if tables > MAX_TABLES {
                        return Err(KallsymsError::TooMuchWork);
                    }
                    let place = segment.address.as_u64() + tokens.start as u64;
                    match (Self::from_tables(image, segment, &tokens), &found) {
                        // A table may satisfy both alignments.
                        (Ok(_), Some((first, _))) if *first == place => {}
                        (Ok(_), Some(_)) => return Err(KallsymsError::Twice),
                        (Ok(read), None) => found = Some((place, read)),
                        (Err(error), _) => reason = Some(error),
                    }
                }
            }
        }
        match found {
            Some((_, found)) => Ok(found),
            None => Err(reason.unwrap_or(KallsymsError::NoTokens)),
        }
    }

    fn from_tables(
        image: &KernelImage,
        segment: &Segment,
        tokens: &tokens::Tokens<'_>,
    ) -> Result<Self, KallsymsError> {
        let names = names::find(&segment.bytes, tokens.start, tokens.alignment)?;
        let texts = names.expand(&segment.bytes, tokens)?;
        let mut entries: Vec<_> = texts
            .ends
            .iter()
            .scan(0, |start, end| {
                let text = std::mem::replace(start, *end);
                let length = u16::try_from(*end - text).expect("at most 512 bytes");
                Some(Entry { address: 0, text, length })
            })
            .collect();
        let addresses = addresses::find(image, segment, &names, tokens, &texts)?;
        for (entry, address) in entries.iter_mut().zip(addresses) {
            entry.address = address;
        }
        Ok(Self::of_entries(texts.bytes, entries, image))
    }

    fn of_entries(texts: String, entries: Vec<Entry>, image: &KernelImage) -> Self {
        let mut by_name: Vec<u32> = (0..).take(entries.len()).collect();
        // Stable, so that those of one name stay by address.
        by_name.sort_by_key(|number| name(&texts, &entries[*number as usize]));
        let segments = image.segments().iter().filter(|segment| segment.address.as_u64() != 0);
        let segments = segments.map(|segment| {
            let first = segment.address.as_u64();
            first..first + segment.length
        });
        let mut kallsyms = Self {
            texts,
            entries,
            by_name,
            bounds: Bounds::default(),
            segments: segments.collect(),
        };
        kallsyms.bounds = Bounds::of(&kallsyms);
        kallsyms
    }

    /// How many symbols there are.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Whether data has names, too (CONFIG_KALLSYMS_ALL); otherwise only functions have.
    pub fn has_data(&self) -> bool {
        self.iter().any(|symbol| matches!(symbol.kind, 'D' | 'd' | 'B' | 'b'))
    }

    /// Every symbol, by address.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Symbol<'_>> {
        (0..self.entries.len()).map(|number| self.symbol(number))
    }

    /// The symbols of a name, by address: names need not be unique.
    pub fn named(&self, wanted: &str) -> impl ExactSizeIterator<Item = Symbol<'_>> {
        let name = |number: &u32| name(&self.texts, &self.entries[*number as usize]);
        let first = self.by_name.partition_point(|number| name(number) < wanted);
        let behind = &self.by_name[first..];
        let count = behind.partition_point(|number| name(number) == wanted);
        behind[..count].iter().map(|number| self.symbol(*number as usize))
    }

    /// The one symbol of a name; `None` also if there are several.
    pub fn find(&self, name: &str) -> Option<Symbol<'_>> {
        let mut found = self.named(name);
        found.next().filter(|_| found.len() == 0)
    }

    /// The symbol that a byte of the image belongs to, the last one that begins at or before it, and
    /// how far behind its beginning the byte lies. Of several at one address the first in the table, as
    /// the kernel itself does. `None` outside the image, and behind its last symbol.
    pub fn at(&self, address: LinkAddress) -> Option<(Symbol<'_>, u64)> {
        let address = address.as_u64();
        let behind = self.entries.partition_point(|entry| entry.address <= address);
        let start = self.entries[..behind].last()?.address;
        let first = self.entries.partition_point(|entry| entry.address < start);
        let symbol = self.symbol(first);
        let offset = address - start;
        (offset < symbol.length?).then_some((symbol, offset))
    }

    /// The function that holds an address of the kernel's code, and how far behind its beginning the address
    /// lies.
    pub fn function_at(&self, address: LinkAddress) -> Option<(Symbol<'_>, u64)> {
        self.at(address).filter(|(symbol, _)| matches!(symbol.kind, 'T' | 't' | 'W' | 'w'))
    }

    fn symbol(&self, number: usize) -> Symbol<'_> {
        let entry = &self.entries[number];
        Symbol {
            name: name(&self.texts, entry),
            kind: char::from(self.texts.as_bytes()[entry.text]),
            address: LinkAddress::new(entry.address),
            length: self.length(number),
            placement: self.bounds.placement(entry.address),
        }
    }

    /// Bytes up to the next symbol of another address in the same segment, up to [`MAX_LENGTH`].
    fn length(&self, number: usize) -> Option<u64> {
        let start = self.entries[number].address;
        // Few symbols have the same address, and a hostile table may have as many as it likes.
        let behind = &self.entries[number + 1..];
        let near = behind.iter().take(8).position(|entry| entry.address > start);
        let next = near.or_else(|| {
            let next = behind.partition_point(|entry| entry.address <= start);
            (next < behind.len()).then_some(next)
        })?;
        let end = behind[next].address;
        let within = |segment: &Range<u64>| segment.contains(&start) && end <= segment.end;
        (end - start <= MAX_LENGTH && self.segments.iter().any(within)).then_some(end - start)
    }
}

fn name<'t>(texts: &'t str, entry: &Entry) -> &'t str {
    &texts[entry.text + 1..entry.text + usize::from(entry.length)]
}

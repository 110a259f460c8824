//! The compressed names, their count and their markers.

use super::tables::{Alignment, long, word};
use super::tokens::Tokens;
use super::{KallsymsError, MAX_NAME_BYTES, MAX_SYMBOLS};

/// Every so many names have a marker: the offset of the first of them.
const PER_MARKER: usize = 256;

/// Bytes of a name: its length in one byte or two, and one byte a token.
const ENTRY_BYTES: std::ops::RangeInclusive<u64> = 2..=2 + MAX_NAME_BYTES as u64 + 1;

/// Bytes of a number in the order by name (6.2 on).
const SEQUENCE_BYTES: usize = 3;

/// Longest total of all names in bytes: 64 MiB. Those of a distribution's kernel have about 5 MiB.
const MAX_TEXT_BYTES: usize = 64 << 20;

/// Most names that are stepped over in search of the table.
const MAX_STEPS: usize = 16 * MAX_SYMBOLS;

/// Where the names lie in their segment.
#[derive(Debug)]
pub(super) struct Names {
    /// The count, in the first word.
    pub(super) count_at: usize,
    pub(super) count: usize,
    first: usize,
}

/// All types and names, expanded.
#[derive(Debug)]
pub(super) struct Texts {
    pub(super) bytes: String,
    /// Where each ends.
    pub(super) ends: Vec<usize>,
}

/// Finds the names before the tokens, which begin at `tokens`.
pub(super) fn find(
    bytes: &[u8],
    tokens: usize,
    alignment: Alignment,
) -> Result<Names, KallsymsError> {
    let mut search = Search { bytes, alignment, steps: MAX_STEPS };
    let furthest = MAX_SYMBOLS.div_ceil(PER_MARKER) * 8 + MAX_SYMBOLS * SEQUENCE_BYTES + 32;
    let lowest = tokens.saturating_sub(furthest);
    // From the nearest on: without an order by name the markers end where the tokens begin.
    for at in (lowest..tokens).rev().filter(|at| alignment.up(*at) == *at) {
        // 64-bit markers until 4.19.
        for width in [4, 8] {
            let Some(markers) = Markers::at(bytes, at, width, tokens) else { continue };
            for length in [markers.values.len(), markers.values.len() - 1] {
                let Some(counts) = counts(at + length * width, length, tokens, alignment) else {
                    continue;
                };
                let markers = &markers.values[..length];
                if let Some(found) = search.names_before(at, markers, &counts)? {
                    return Ok(found);
                }
            }
        }
    }
    Err(KallsymsError::Names)
}

/// The markers that begin at a place, if they do: 0, and ascending as names can.
struct Markers {
    values: Vec<u64>,
}

impl Markers {
    fn at(bytes: &[u8], at: usize, width: usize, end: usize) -> Option<Self> {
        let value = |number: usize| {
            let at = at + number * width;
            let value = if width == 4 { word(bytes, at)?.into() } else { long(bytes, at)? };
            (at + width <= end).then_some(value)
        };
        let goes_on = |last: u64, next: &u64| {
            next.checked_sub(last).is_some_and(|step| {
                let least = PER_MARKER as u64 * ENTRY_BYTES.start();
                let most = PER_MARKER as u64 * ENTRY_BYTES.end();
                (least..=most).contains(&step)
            })
        };
        // Nearly every place fails here.
        value(0).filter(|first| *first == 0)?;
        value(1).filter(|second| goes_on(0, second))?;
        let mut values = vec![0];
        while values.len() <= MAX_SYMBOLS / PER_MARKER
            && let Some(next) = value(values.len())
            && goes_on(values[values.len() - 1], &next)
        {
            values.push(next);
        }
        Some(Self { values })
    }
}

/// How many names there can be with so many markers, which end at `end`, where the tokens begin at
/// `tokens`; `None`: the markers cannot be these.
fn counts(
    end: usize,
    markers: usize,
    tokens: usize,
    alignment: Alignment,
) -> Option<std::ops::RangeInclusive<usize>> {
    let least = markers.checked_sub(1)? * PER_MARKER + 1;
    let most = markers * PER_MARKER;
    if markers < 2 {
        return None;
    }
    match tokens.checked_sub(alignment.up(end))? {
        0 => Some(least..=most),
        between => {
            // The order by name: as long as that of so many names, up to alignment.
            let fits = |count: &usize| alignment.up(count * SEQUENCE_BYTES) == between;
            let first = (least..=most).find(fits)?;
            let last = (first..=most).rev().find(fits)?;
            Some(first..=last)
        }
    }
}

struct Search<'b> {
    bytes: &'b [u8],
    alignment: Alignment,
    /// What may still be done.
    steps: usize,
}

impl Search<'_> {
    /// The names before their markers, which lie at `at`: one place where the count fits, and every
    /// name's offset that has a marker.
    fn names_before(
        &mut self,
        at: usize,
        markers: &[u64],
        counts: &std::ops::RangeInclusive<usize>,
    ) -> Result<Option<Names>, KallsymsError> {
        let last = markers.last().and_then(|last| usize::try_from(*last).ok());
        let Some(highest) = last.and_then(|last| at.checked_sub(last)) else { return Ok(None) };
        let most = usize::try_from(PER_MARKER as u64 * ENTRY_BYTES.end()).expect("small");
        let lowest = highest.saturating_sub(most + 16);
        let alignment = self.alignment;
        for count_at in (lowest..highest).filter(|at| alignment.up(*at) == *at) {
            // The count has 32 bits, or once had 64; what is between it and the names is 0.
            let count = match alignment {
                Alignment::Eight => long(self.bytes, count_at),
                Alignment::Four => word(self.bytes, count_at).map(u64::from),
            };
            let count = count.and_then(|count| usize::try_from(count).ok());
            let Some(count) = count.filter(|count| counts.contains(count)) else { continue };
            if count > MAX_SYMBOLS {
                return Err(KallsymsError::TooMany);
            }
            let first = count_at + alignment.bytes();
            if self.are_names(first, count, at, markers)? {
                return Ok(Some(Names { count_at, count, first }));
            }
        }
        Ok(None)
    }

    /// Whether `count` names lie from `first` to `end`, those with markers where these say.
    fn are_names(
        &mut self,
        first: usize,
        count: usize,
        end: usize,
        markers: &[u64],
    ) -> Result<bool, KallsymsError> {
        let mut place = first;
        for number in 0..count {
            if number % PER_MARKER == 0 && markers[number / PER_MARKER] != (place - first) as u64 {
                return Ok(false);
            }
            let Some((length, header)) = entry(self.bytes, place) else { return Ok(false) };
            place += header + length;
            if place > end {
                return Ok(false);
            }
            self.steps = self.steps.checked_sub(1).ok_or(KallsymsError::TooMuchWork)?;
        }
        let padding = &self.bytes[place..end];
        Ok(self.alignment.up(place) == end && padding.iter().all(|byte| *byte == 0))
    }
}

/// Tokens of the name at a place, and bytes of their count: one, or two from 128 tokens on (6.1).
fn entry(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let low = usize::from(*bytes.get(at)?);
    let (length, header) = match low {
        0..=0x7f => (low, 1),
        _ => (low & 0x7f | usize::from(*bytes.get(at + 1)?) << 7, 2),
    };
    (1..=MAX_NAME_BYTES + 1).contains(&length).then_some((length, header))
}

impl Names {
    /// Every name in full.
    pub(super) fn expand(&self, bytes: &[u8], tokens: &Tokens<'_>) -> Result<Texts, KallsymsError> {
        let mut texts = Vec::with_capacity(24 * self.count);
        let mut ends = Vec::with_capacity(self.count);
        let mut place = self.first;
        for number in 0..self.count {
            let wrong = KallsymsError::Name { number };
            let (length, header) = entry(bytes, place).ok_or(wrong)?;
            let name = bytes.get(place + header..place + header + length).ok_or(wrong)?;
            let start = texts.len();
            for token in name {
                texts.extend_from_slice(tokens.texts[usize::from(*token)]);
                // At once: a token may be long.
                if texts.len() - start > MAX_NAME_BYTES + 1 {
                    return Err(wrong);
                }
                if texts.len() > MAX_TEXT_BYTES {
                    return Err(KallsymsError::TooMany);
                }
            }
            let text = &texts[start..];
            // A type and at least one character.
            if text.len() < 2
                || !text[0].is_ascii_alphabetic()
                || !text.iter().all(u8::is_ascii_graphic)
            {
                return Err(wrong);
            }
            ends.push(texts.len());
            place += header + length;
        }
        Ok(Texts { bytes: String::from_utf8(texts).expect("ASCII"), ends })
    }
}

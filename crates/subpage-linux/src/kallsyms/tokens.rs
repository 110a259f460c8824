//! The tokens: 256 texts that the bytes of compressed names stand for.

use super::tables::{Alignment, half};
use crate::image::Segment;

pub(super) const TOKENS: usize = 256;

/// Digits stand for themselves, since every kernel has names with each of them, and so they lie in
/// order in the table.
const DIGITS: &[u8] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\0";
const FIRST_DIGIT: usize = b'0' as usize;

/// Most places that are looked at.
const MAX_PLACES: usize = 64;

/// The tokens of a table, and where it lies in the segment.
#[derive(Debug)]
pub(super) struct Tokens<'s> {
    pub(super) texts: [&'s [u8]; TOKENS],
    pub(super) alignment: Alignment,
    /// The first token.
    pub(super) start: usize,
    /// Behind the token index, aligned.
    pub(super) end: usize,
}

/// Every table of tokens in a segment: one in a kernel.
pub(super) fn find(segment: &Segment, alignment: Alignment) -> Vec<Tokens<'_>> {
    // Alignment is counted from the segment's beginning.
    if !segment.address.as_u64().is_multiple_of(8) {
        return Vec::new();
    }
    let bytes = &segment.bytes[..];
    let places = memchr::memmem::find_iter(bytes, DIGITS).take(MAX_PLACES);
    places.filter_map(|digits| at(bytes, digits, alignment)).collect()
}

fn at(bytes: &[u8], digits: usize, alignment: Alignment) -> Option<Tokens<'_>> {
    let mut behind = digits;
    for _ in FIRST_DIGIT..TOKENS {
        behind += token(bytes, behind)?.len() + 1;
    }
    let index = alignment.up(behind);
    let offset = |number: usize| half(bytes, index + 2 * number).map(usize::from);
    let start = digits.checked_sub(offset(FIRST_DIGIT)?)?;
    if alignment.up(start) != start {
        return None;
    }
    let mut texts = [&bytes[..0]; TOKENS];
    let mut place = start;
    for (number, text) in texts.iter_mut().enumerate() {
        if offset(number)? != place - start {
            return None;
        }
        *text = token(bytes, place)?;
        place += text.len() + 1;
    }
    let end = alignment.up(index + 2 * TOKENS);
    (place == behind).then_some(Tokens { texts, alignment, start, end })
}

/// The text up to its NUL; the index has 16 bits.
fn token(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let rest = bytes.get(at..)?;
    let rest = &rest[..rest.len().min(1 << 16)];
    memchr::memchr(0, rest).map(|end| &rest[..end])
}

//! Lines of bounded length, out of a stream.

use std::io::{self, BufRead, BufReader, Read};

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// A line, without its end.
    Whole(&'a [u8]),
    /// More bytes than a line may have, and still no end.
    TooLong,
    /// The stream ended. What came after the last line's end is forgotten: half a request is none.
    End,
}

/// Reads lines.
#[derive(Debug)]
pub(super) struct Lines<R> {
    stream: BufReader<R>,
    line: Vec<u8>,
    max: usize,
}

/// Space for a line that is kept for the next one.
const KEPT_BYTES: usize = 16 << 10;

impl<R: Read> Lines<R> {
    /// Lines of at most `max` bytes, their end not counted.
    pub(super) fn new(stream: R, max: usize) -> Self {
        Self { stream: BufReader::new(stream), line: Vec::new(), max }
    }

    /// From now on lines have at most `max` bytes.
    pub(super) const fn limit(&mut self, max: usize) {
        self.max = max;
    }

    /// Where the lines come from.
    pub(super) fn input_mut(&mut self) -> &mut R {
        self.stream.get_mut()
    }

    /// The next line. After [`Line::TooLong`] or [`Line::End`] there is no sensible next one.
    pub(super) fn next(&mut self) -> io::Result<Line<'_>> {
        self.line.clear();
        self.line.shrink_to(KEPT_BYTES);
        let most = u64::try_from(self.max).unwrap_or(u64::MAX).saturating_add(1);
        (&mut self.stream).take(most).read_until(b'\n', &mut self.line)?;
        Ok(match self.line.split_last() {
            Some((b'\n', line)) => Line::Whole(line),
            _ if self.line.len() > self.max => Line::TooLong,
            _ => Line::End,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Line, Lines};

    fn all(bytes: &[u8], max: usize) -> Vec<String> {
        let mut lines = Lines::new(bytes, max);
        let mut all = Vec::new();
        loop {
            match lines.next().expect("a slice can be read") {
                Line::Whole(line) => all.push(String::from_utf8_lossy(line).into_owned()),
                Line::TooLong => {
                    all.push("too long".to_owned());
                    return all;
                }
                Line::End => return all,
            }
        }
    }

    #[test]
    fn lengths_to_the_byte() {
        assert_eq!(all(b"", 3), [""; 0]);
        assert_eq!(all(b"abc\n\nab\n", 3), ["abc", "", "ab"]);
        assert_eq!(all(b"abc\nabcd\nabc\n", 3), ["abc", "too long"]);
        assert_eq!(all(b"abcd", 3), ["too long"]);
        assert_eq!(all(b"abc", 3), [""; 0]);
        assert_eq!(all(b"a\nhalf", 30), ["a"]);
    }

    proptest! {
        /// However the bytes are, the lines are those between the ends, up to the first that is too
        /// long.
        #[test]
        fn as_splitting_gives(bytes in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200)) {
            let mut pieces: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').collect();
            let rest = pieces.pop().expect("split gives at least one");
            let mut expected = Vec::new();
            let long = |piece: &[u8]| piece.len() > 20;
            for piece in &pieces {
                if long(piece) {
                    break;
                }
                expected.push(String::from_utf8_lossy(piece).into_owned());
            }
            if expected.len() < pieces.len() || long(rest) {
                expected.push("too long".to_owned());
            }
            prop_assert_eq!(all(&bytes, 20), expected);
        }
    }
}

//! The text that Valgrind's tool lackey prints with `--trace-mem=yes`.
//!
//! One access a line: `I  addr,size` is an instruction fetch, ` L`, ` S` and ` M` a load, a store
//! and a modification (a load and a store at once), where `addr` is hexadecimal and `size`
//! decimal. An instruction's accesses follow its `I` line. Source: the comment on
//! `--trace-mem` in `lackey/lk_main.c` of Valgrind 3.19.

use std::io::{self, Read};

use crate::write::{Pieces, Write};

/// Lines longer than this are no access lines; they are skipped without being held.
pub const MAX_LINE: usize = 256;
/// The longest store of one line (`xsave` with all state is below 12 KiB); more is malformed.
pub const MAX_STORE: u64 = 1 << 16;
/// Malformed lines whose numbers are kept.
pub const MAX_REPORTED: usize = 8;
const BUFFER: usize = 1 << 18;

/// What was read besides writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LackeySummary {
    /// Lines read.
    pub lines: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Lines that begin like an access and are none.
    pub malformed: u64,
    /// Numbers (from 1) of the first [`MAX_REPORTED`] malformed lines.
    pub malformed_lines: Vec<u64>,
    /// Lines that are no access: Valgrind's messages and the program's own output.
    pub other: u64,
    /// Instructions that Valgrind does not know: it gives the program SIGILL, which a processor would not.
    pub unknown_instructions: u64,
    /// Valgrind itself has failed, and shows where.
    pub failed: bool,
}

/// What Valgrind says before SIGILL (`m_scheduler/scheduler.c`), and whenever it gives itself up
/// (`m_libcassert.c`).
const UNKNOWN_INSTRUCTION: &str = "valgrind: Unrecognised instruction at address ";
const FAILED: &str = "host stacktrace:";

impl LackeySummary {
    /// Well-formed lines of any access, fetches and loads among them.
    pub fn accesses(&self) -> u64 {
        self.lines - self.other - self.malformed
    }

    /// Adds what was read of another text; the numbers of lines stay those of each.
    pub(crate) fn add(&mut self, other: &Self) {
        self.lines += other.lines;
        self.bytes += other.bytes;
        self.malformed += other.malformed;
        self.other += other.other;
        self.unknown_instructions += other.unknown_instructions;
        self.failed |= other.failed;
        self.malformed_lines.extend(&other.malformed_lines);
        self.malformed_lines.truncate(MAX_REPORTED);
    }
}

/// Takes the writes out of lackey's text, with memory that does not depend on the text.
///
/// Malformed access lines are counted and skipped; lines of any other kind are ignored.
pub struct LackeyReader<R> {
    input: R,
    buffer: Box<[u8]>,
    /// Unread part of the buffer.
    start: usize,
    end: usize,
    at_end: bool,
    /// Within a line that is longer than [`MAX_LINE`].
    skipping: bool,
    pc: u64,
    pieces: Pieces,
    summary: LackeySummary,
}

/// Something that the text holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A write.
    Write(Write),
    /// A line that is no access, of at most [`MAX_LINE`] bytes: a message of Valgrind, or the
    /// program's own output. Not trusted.
    Message(String),
}

enum Line {
    Fetch(u64),
    Store(Pieces),
    Load,
    Malformed,
    Other,
}

impl<R: Read> LackeyReader<R> {
    /// Reads from `input`, which needs no buffer of its own.
    pub fn new(input: R) -> Self {
        Self::with_buffer(input, BUFFER)
    }

    /// The same with a buffer of `length` bytes, more than [`MAX_LINE`].
    pub(crate) fn with_buffer(input: R, length: usize) -> Self {
        Self {
            input,
            buffer: vec![0; length].into_boxed_slice(),
            start: 0,
            end: 0,
            at_end: false,
            skipping: false,
            pc: 0,
            pieces: Pieces::default(),
            summary: LackeySummary::default(),
        }
    }

    /// The next write, in the program's order; `None` at the end of the text.
    ///
    /// # Errors
    /// Those of the input.
    pub fn next_write(&mut self) -> io::Result<Option<Write>> {
        loop {
            match self.next_item()? {
                Some(Item::Write(write)) => return Ok(Some(write)),
                Some(Item::Message(_)) => {}
                None => return Ok(None),
            }
        }
    }

    /// The next write or message, in their order; `None` at the end of the text.
    ///
    /// # Errors
    /// Those of the input. After one of the kind [`io::ErrorKind::WouldBlock`] the text continues
    /// where it was.
    pub fn next_item(&mut self) -> io::Result<Option<Item>> {
        loop {
            if let Some(write) = self.pieces.next() {
                return Ok(Some(Item::Write(write)));
            }
            let unread = &self.buffer[self.start..self.end];
            let Some(length) = memchr::memchr(b'\n', unread) else {
                if self.refill()? {
                    continue;
                }
                return Ok(None);
            };
            let line = &unread[..length];
            let parsed = if self.skipping { Line::Other } else { parse(line, self.pc) };
            let is_message = matches!(parsed, Line::Other) && !self.skipping;
            let message = (is_message && length <= MAX_LINE)
                .then(|| String::from_utf8_lossy(line).into_owned());
            self.skipping = false;
            self.start += length + 1;
            self.take(parsed);
            if let Some(message) = message {
                self.summary.unknown_instructions +=
                    u64::from(message.contains(UNKNOWN_INSTRUCTION));
                self.summary.failed |= message.ends_with(FAILED);
                return Ok(Some(Item::Message(message)));
            }
        }
    }

    /// The input, which has been read ahead of the writes given.
    pub fn input(&self) -> &R {
        &self.input
    }

    pub(crate) fn input_mut(&mut self) -> &mut R {
        &mut self.input
    }

    /// The input, and what was read so far.
    pub fn into_parts(self) -> (R, LackeySummary) {
        (self.input, self.summary)
    }

    /// What was read so far.
    pub fn summary(&self) -> &LackeySummary {
        &self.summary
    }

    fn take(&mut self, line: Line) {
        self.summary.lines += 1;
        match line {
            Line::Fetch(pc) => self.pc = pc,
            Line::Store(pieces) => self.pieces = pieces,
            Line::Load => {}
            Line::Other => self.summary.other += 1,
            Line::Malformed => {
                self.summary.malformed += 1;
                if self.summary.malformed_lines.len() < MAX_REPORTED {
                    self.summary.malformed_lines.push(self.summary.lines);
                }
                // It may have been the fetch of what follows.
                self.pc = 0;
            }
        }
    }

    /// Gets more text, given that the unread part has no line end; false if nothing is left.
    fn refill(&mut self) -> io::Result<bool> {
        if self.end - self.start > MAX_LINE {
            self.skipping = true;
        }
        if self.skipping {
            self.start = self.end;
        }
        if self.at_end {
            // A last line without a line end is cut off: its numbers may lack digits.
            let left = self.end > self.start || self.skipping;
            self.start = self.end;
            self.skipping = false;
            if left {
                self.take(Line::Other);
            }
            return Ok(false);
        }
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let read = loop {
            match self.input.read(&mut self.buffer[self.end..]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.at_end = read == 0;
        self.end += read;
        self.summary.bytes += read as u64;
        Ok(true)
    }
}

fn parse(line: &[u8], pc: u64) -> Line {
    let Some((kind, rest)) = line.split_first_chunk::<3>() else {
        return Line::Other;
    };
    if !matches!(kind, b"I  " | b" S " | b" M " | b" L ") {
        return Line::Other;
    }
    if kind == b" L " {
        return Line::Load;
    }
    let Some((address, length)) = access(rest) else {
        return Line::Malformed;
    };
    if kind == b"I  " {
        return Line::Fetch(address);
    }
    if length > MAX_STORE {
        return Line::Malformed;
    }
    Write::split(pc, address, length).map_or(Line::Malformed, Line::Store)
}

/// `addr,size`, to the end of the line; a carriage return before it is allowed.
fn access(text: &[u8]) -> Option<(u64, u64)> {
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    let mut address = 0_u64;
    let mut digits = 0;
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b',' => break,
            _ => return None,
        };
        address = (address << 4) | u64::from(digit);
        digits += 1;
        rest = tail;
    }
    let (&comma, size) = rest.split_first()?;
    if comma != b',' || !(1..=16).contains(&digits) || !(1..=9).contains(&size.len()) {
        return None;
    }
    let mut length = 0_u64;
    for &byte in size {
        length = length * 10 + u64::from(byte.is_ascii_digit().then(|| byte - b'0')?);
    }
    Some((address, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: impl AsRef<[u8]>) -> (Vec<Write>, LackeySummary) {
        let mut reader = LackeyReader::new(text.as_ref());
        let mut writes = Vec::new();
        while let Some(write) = reader.next_write().expect("memory does not fail") {
            writes.push(write);
        }
        (writes, reader.summary().clone())
    }

    fn write(pc: u64, address: u64, size: u8) -> Write {
        Write { pc, address, size }
    }

    #[test]
    fn the_text_of_valgrind_3_19() {
        let text = "==2797== Lackey, an example Valgrind tool\n\
            ==2797== \n\
            I  0401ab70,3\n\
            I  0401ab73,5\n \
            S 1ffefffd08,8\n\
            I  0401b840,1\n \
            L 1ffefffd08,8\n \
            M 0402eab0,4\n\
            I  048c8d95,7\n \
            S 1ffefff540,512\n\
            hello from the program\n";
        let (writes, summary) = read(text);
        let mut expected =
            vec![write(0x401_ab73, 0x1f_feff_fd08, 8), write(0x401_b840, 0x402_eab0, 4)];
        expected.extend((0..8).map(|i| write(0x48c_8d95, 0x1f_feff_f540 + 64 * i, 64)));
        assert_eq!(writes, expected);
        assert_eq!(
            summary,
            LackeySummary {
                lines: 11,
                bytes: text.len() as u64,
                malformed: 0,
                malformed_lines: vec![],
                other: 3,
                unknown_instructions: 0,
                failed: false,
            }
        );
    }

    #[test]
    fn where_valgrind_stops_is_noticed() {
        let (_, summary) =
            read("I  0401ab70,3\n==7== valgrind: Unrecognised instruction at address 0x1.\n");
        assert_eq!((summary.unknown_instructions, summary.failed), (1, false));
        let (_, summary) = read("I  0401ab70,3\n\nhost stacktrace:\n==7==    at 0x1: ???\n");
        assert_eq!((summary.unknown_instructions, summary.failed), (0, true));
    }

    #[test]
    fn malformed_accesses_are_counted_with_their_lines() {
        let lines = [
            " S 10,8",
            "I  zz,3",
            " S 20,8",
            " S 1000000000000,1",
            " S fffffffffffff,0",
            " S 10,0",
            " S 10,99999",
            " S 10,9999999999",
            " S ,8",
            " S 10,",
            " S 10",
            " S 10,8x",
            " S 0x10,8",
            " S 11111111111111111,8",
            " S -1,8",
            "I  30,3",
            " M 40,8\r",
        ];
        let (writes, summary) = read(lines.join("\n") + "\n");
        assert_eq!(writes, [write(0, 0x10, 8), write(0, 0x20, 8), write(0x30, 0x40, 8)]);
        assert_eq!(summary.malformed, 13);
        assert_eq!(summary.malformed_lines, [2, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(summary.other, 0);
    }

    #[test]
    fn a_line_cut_off_at_the_end_is_not_taken_for_whole() {
        let (writes, summary) = read(" S 10,8\n S 20,1");
        assert_eq!(writes, [write(0, 0x10, 8)]);
        assert_eq!((summary.lines, summary.other), (2, 1));
    }

    #[test]
    fn endless_lines_take_no_memory_and_hide_nothing_after_them() {
        let mut text = b" S ".to_vec();
        text.resize(3 * BUFFER + 17, b'1');
        text.extend(b"\n S 10,8\n");
        text.resize(text.len() + 2 * BUFFER, b' ');
        let (writes, summary) = read(&text);
        assert_eq!(writes, [write(0, 0x10, 8)]);
        assert_eq!(summary.lines, 3);
    }

    /// A reader that gives one byte at a time.
    struct Drip<'a>(&'a [u8]);

    impl Read for Drip<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let Some((&byte, rest)) = self.0.split_first() else {
                return Ok(0);
            };
            out[0] = byte;
            self.0 = rest;
            Ok(1)
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_in_any_pieces_read_the_same(
            text in proptest::collection::vec(
                proptest::sample::select(b"ISML ,0123456789abcdef\r\n=x\xff".to_vec()),
                0..400,
            ),
        ) {
            let (whole, summary) = read(&text);
            let mut reader = LackeyReader::new(Drip(&text));
            for write in whole {
                proptest::prop_assert!(write.is_valid());
                proptest::prop_assert_eq!(reader.next_write().expect("no failure"), Some(write));
            }
            proptest::prop_assert_eq!(reader.next_write().expect("no failure"), None);
            proptest::prop_assert_eq!(reader.summary(), &summary);
        }
    }
}

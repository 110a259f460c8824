//! The header: what was recorded, and the names.

use std::io::Read;

use crate::error::TraceError;
use crate::frame::{Counted, MAGIC, VERSION};
use crate::names::{MAX_NAMES, Name, NameKind, Names};
use crate::varint;

/// The most words a recorded command line has.
pub const MAX_ARGUMENTS: usize = 4096;
/// The most bytes all words of a recorded command line have together.
pub const MAX_COMMAND_BYTES: usize = 1 << 17;
/// The most bytes of a header's content: a full table of the longest names, and the command.
const MAX_CONTENT: u32 = 20 << 20;

/// What a trace says about itself before the first write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Program and arguments that were recorded; empty where not known. Not trusted: escape it
    /// before it goes to a terminal.
    pub command: Vec<String>,
    /// Named ranges.
    pub names: Names,
}

impl Header {
    /// The whole header with magic, version, length and checksum.
    ///
    /// A command that is too long is cut, at a word if there are several.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut content = Vec::new();
        let mut left = MAX_COMMAND_BYTES;
        let words: Vec<&str> = self
            .command
            .iter()
            .take(MAX_ARGUMENTS)
            .map_while(|word| {
                left = left.checked_sub(word.len())?;
                Some(word.as_str())
            })
            .collect();
        varint::put(&mut content, words.len() as u64);
        for word in words {
            put_text(&mut content, word);
        }
        varint::put(&mut content, self.names.len() as u64);
        for name in &self.names {
            put_text(&mut content, &name.name);
            content.push(name.kind.code());
            varint::put(&mut content, name.start);
            varint::put(&mut content, name.length);
        }
        let length = u32::try_from(content.len()).ok().filter(|&length| length <= MAX_CONTENT);
        let length = length.unwrap_or_else(|| unreachable!("names and command are bounded"));
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(content);
        let checksum = crc32fast::hash(&bytes);
        bytes.extend(checksum.to_le_bytes());
        bytes
    }

    /// Reads what [`Self::encode`] wrote.
    pub(crate) fn read<R: Read>(input: &mut Counted<R>) -> Result<Self, TraceError> {
        let mut magic = [0; 8];
        if input.fill(&mut magic)? < 8 || magic != MAGIC {
            return Err(TraceError::NotATrace);
        }
        let cut = |offset| TraceError::Truncated { block: 0, offset, writes: 0 };
        let mut word = [0; 4];
        let mut bytes = MAGIC.to_vec();
        if input.fill(&mut word)? < 4 {
            return Err(cut(input.offset));
        }
        let version = u32::from_le_bytes(word);
        if version != VERSION {
            return Err(TraceError::Version { found: version, known: VERSION });
        }
        bytes.extend(word);
        if input.fill(&mut word)? < 4 {
            return Err(cut(input.offset));
        }
        let length = u32::from_le_bytes(word);
        if length > MAX_CONTENT {
            return Err(TraceError::Header { what: "it is longer than 20 MiB" });
        }
        bytes.extend(word);
        if input.append(&mut bytes, u64::from(length))? < u64::from(length)
            || input.fill(&mut word)? < 4
        {
            return Err(cut(input.offset));
        }
        if crc32fast::hash(&bytes) != u32::from_le_bytes(word) {
            return Err(TraceError::Header { what: "its checksum does not match" });
        }
        decode(&bytes[16..]).map_err(|what| TraceError::Header { what })
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    varint::put(out, text.len() as u64);
    out.extend(text.as_bytes());
}

fn take_text<'a>(content: &mut &'a [u8]) -> Result<&'a str, &'static str> {
    let length = varint::take(content).ok_or("a text is cut off")?;
    let length = usize::try_from(length).ok().filter(|&length| length <= content.len());
    let (text, rest) = content.split_at(length.ok_or("a text is cut off")?);
    *content = rest;
    std::str::from_utf8(text).map_err(|_| "a text is not UTF-8")
}

fn decode(mut content: &[u8]) -> Result<Header, &'static str> {
    let content = &mut content;
    let count = varint::take(content).ok_or("the command is cut off")?;
    if count > MAX_ARGUMENTS as u64 {
        return Err("the command has more than 4,096 words");
    }
    let mut command = Vec::new();
    let mut bytes = 0;
    for _ in 0..count {
        let word = take_text(content)?;
        bytes += word.len();
        if bytes > MAX_COMMAND_BYTES {
            return Err("the command is longer than 128 KiB");
        }
        command.push(word.to_owned());
    }
    let count = varint::take(content).ok_or("the names are cut off")?;
    if count > MAX_NAMES as u64 {
        return Err("there are more than 65,536 names");
    }
    let mut names = Vec::new();
    for _ in 0..count {
        let name = take_text(content)?.to_owned();
        let (&kind, rest) = content.split_first().ok_or("a name is cut off")?;
        *content = rest;
        let kind = NameKind::from_code(kind).ok_or("a name is of an unknown kind")?;
        let start = varint::take(content).ok_or("a name is cut off")?;
        let length = varint::take(content).ok_or("a name is cut off")?;
        let name = Name { name, start, length, kind };
        if !name.is_valid() {
            return Err("a name breaks its limits");
        }
        names.push(name);
    }
    if !content.is_empty() {
        return Err("bytes follow the last name");
    }
    Ok(Header { command, names: Names::new(names) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Header, TraceError> {
        Header::read(&mut Counted::new(bytes))
    }

    #[test]
    fn a_full_header_stays_below_its_limit() {
        let name = |i: u64| Name {
            name: format!("{i:0>255}"),
            start: (1 << 47) + i,
            length: 1 << 40,
            kind: NameKind::Object,
        };
        let header = Header {
            command: vec!["x".repeat(MAX_COMMAND_BYTES)],
            names: Names::new((0..MAX_NAMES as u64).map(name)),
        };
        assert_eq!(read(&header.encode()).expect("readable"), header);
    }

    #[test]
    fn a_command_that_is_too_long_is_cut_at_a_word() {
        let header = Header {
            command: vec!["a".into(), "b".repeat(MAX_COMMAND_BYTES), "c".into()],
            ..Header::default()
        };
        assert_eq!(read(&header.encode()).expect("readable").command, ["a"]);
        let header = Header { command: vec![String::new(); 5000], ..Header::default() };
        assert_eq!(read(&header.encode()).expect("readable").command.len(), MAX_ARGUMENTS);
    }

    #[test]
    fn a_lying_length_takes_no_memory() {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(MAX_CONTENT.to_le_bytes());
        assert!(matches!(read(&bytes), Err(TraceError::Truncated { offset: 16, .. })));
        bytes.truncate(12);
        bytes.extend(u32::MAX.to_le_bytes());
        assert!(matches!(read(&bytes), Err(TraceError::Header { .. })));
        bytes[8] = 9;
        assert!(matches!(read(&bytes), Err(TraceError::Version { found: 9, known: 1 })));
    }

    #[test]
    fn content_that_breaks_a_rule_is_refused_with_the_rule() {
        let name = |text: &[u8], rest: &[u8]| {
            let mut content = vec![0, 1];
            varint::put(&mut content, text.len() as u64);
            content.extend(text);
            content.extend(rest);
            content
        };
        assert_eq!(decode(&name(b"ok", &[1, 0x10, 8])).expect("right").names.len(), 1);
        let limits = "a name breaks its limits";
        for (content, rule) in [
            (vec![], "the command is cut off"),
            (vec![0], "the names are cut off"),
            (vec![0xff, 0xff, 0x7f], "the command has more than 4,096 words"),
            (vec![1, 5, b'x'], "a text is cut off"),
            (vec![1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1], "a text is cut off"),
            (vec![1, 1, 0xff, 0], "a text is not UTF-8"),
            (vec![0, 0x81, 0x80, 4], "there are more than 65,536 names"),
            (vec![0, 0, 0], "bytes follow the last name"),
            (name(b"ok", &[]), "a name is cut off"),
            (name(b"ok", &[4, 0x10, 8]), "a name is of an unknown kind"),
            (name(b"ok", &[1, 0x10]), "a name is cut off"),
            (name(b"ok", &[1, 0x10, 0]), limits),
            (name(b"", &[1, 0x10, 8]), limits),
            (name(b"\x1b[31m", &[1, 0x10, 8]), limits),
            (name(&[b'x'; 256], &[1, 0x10, 8]), limits),
            (name(b"ok", &[1, 0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]), limits),
        ] {
            assert_eq!(decode(&content), Err(rule), "{content:?}");
        }
    }
}

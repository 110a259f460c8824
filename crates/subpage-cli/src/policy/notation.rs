//! One notation of a place, for policies, `plan` and `ctl`: `PLACE[+OFFSET][..END|+LENGTH]`.

use std::fmt;

use subpage::address::{ByteRange, Gpa};

use super::names::{LookupError, NamedRange, Names, did_you_mean, list_candidates};
use super::number::parse_number;

/// What a place looks like, for messages.
const EXAMPLES: &str = "write 0x1000..0x1080 (the end not included), 0x1000+128, NAME, NAME+OFFSET, \
     NAME+OFFSET+LENGTH or NAME..NAME";

/// Why a text is no place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotAPlace {
    /// What is wrong, lower-case, without a full stop.
    pub message: String,
    /// What would be right.
    pub help: String,
}

impl fmt::Display for NotAPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.help)
    }
}

/// Where a place begins, and how far its name reaches.
struct Start<'n> {
    first: u64,
    named: Option<&'n NamedRange>,
}

/// A notation that is read with the names of a guest.
struct Reader<'n> {
    names: &'n Names,
    /// What to do about a name that is like none of them.
    otherwise: &'n str,
}

/// The bytes of a place: a number or a name, `+OFFSET` bytes of it left out, up to `..END`, or
/// `+LENGTH` bytes, else to the end of what is named.
///
/// A number has no end of its own, so one number behind it is the length: `0x1000+128`. `END` is
/// again a number or a name with an offset, and not included. A name that contains `+` or `..` is
/// found as a whole. `otherwise` says what to do about a name that is like none of `names`.
pub fn place(text: &str, names: &Names, otherwise: &str) -> Result<ByteRange, NotAPlace> {
    Reader { names, otherwise }.place(text.trim())
}

/// The address of a place: as [`place`], without a length and an end.
pub fn address(text: &str, names: &Names, otherwise: &str) -> Result<Gpa, NotAPlace> {
    let reader = Reader { names, otherwise };
    let text = text.trim();
    let first = match reader.whole(text) {
        Some(named) => named.start,
        None => reader.point(text)?,
    };
    Gpa::try_new(first).map_err(|error| wrong(error.to_string(), EXAMPLES))
}

/// Whether a text is a place by numbers alone, so that no names are needed for it.
pub fn is_numeric(text: &str) -> bool {
    text.split("..").flat_map(|side| side.split('+')).all(|term| number(term).is_some())
}

fn wrong(message: impl Into<String>, help: impl Into<String>) -> NotAPlace {
    NotAPlace { message: message.into(), help: help.into() }
}

fn number(text: &str) -> Option<u64> {
    parse_number(text.trim()).and_then(|number| u64::try_from(number).ok())
}

fn amount(text: &str, what: &str) -> Result<u64, NotAPlace> {
    let text = text.trim();
    number(text).ok_or_else(|| {
        wrong(format!("the {what} `{text}` is not a number from 0 to 2^64 - 1"), EXAMPLES)
    })
}

impl<'n> Reader<'n> {
    /// A name that is all of the text, whatever it contains.
    fn whole(&self, text: &str) -> Option<&'n NamedRange> {
        self.names.find_exactly(text).ok()
    }

    fn place(&self, text: &str) -> Result<ByteRange, NotAPlace> {
        if let Some(named) = self.whole(text) {
            return range(named.start, rest(named, 0)?);
        }
        let (place, end) = match text.split_once("..") {
            Some((place, end)) => (place, Some(end)),
            None => (text, None),
        };
        let mut terms = place.split('+');
        let Start { first, named } = self.start(terms.next().unwrap_or_default())?;
        let numbers: Vec<&str> = terms.collect();
        if let Some(end) = end {
            let first = match numbers[..] {
                [] => Some(first),
                [offset] => first.checked_add(amount(offset, "offset")?),
                _ => return Err(wrong("a place has an end or a length, not both", EXAMPLES)),
            };
            let end = self.point(end)?;
            let first = first.ok_or_else(|| wrong("the place lies beyond 2^64", EXAMPLES))?;
            if end <= first {
                let what = if end == first { "has no byte" } else { "ends before it begins" };
                return Err(wrong(format!("the range {what}"), EXAMPLES));
            }
            return range(first, end - first);
        }
        let (offset, length) = match (numbers.as_slice(), named) {
            ([], None) => return Err(wrong("there is an address and no length", EXAMPLES)),
            ([], Some(_)) => (0, None),
            ([length], None) => (0, Some(amount(length, "length")?)),
            ([offset], Some(_)) => (amount(offset, "offset")?, None),
            ([offset, length], _) => (amount(offset, "offset")?, Some(amount(length, "length")?)),
            _ => return Err(wrong("there are too many numbers", EXAMPLES)),
        };
        let length = match (length, named) {
            (Some(0), _) => return Err(wrong("the length is 0", EXAMPLES)),
            (Some(length), Some(named)) if named.length > 0 => {
                if length > rest(named, offset)? {
                    return Err(beyond(named));
                }
                length
            }
            (Some(length), _) => length,
            (None, named) => rest(named.expect("numbers have lengths"), offset)?,
        };
        let first = first.checked_add(offset);
        range(first.ok_or_else(|| wrong("the place lies beyond 2^64", EXAMPLES))?, length)
    }

    /// A number or a name, with an offset.
    fn point(&self, text: &str) -> Result<u64, NotAPlace> {
        let (base, offset) = match text.split_once('+') {
            Some((base, offset)) => (base, amount(offset, "offset")?),
            None => (text, 0),
        };
        let first = self.start(base)?.first;
        first.checked_add(offset).ok_or_else(|| wrong("the place lies beyond 2^64", EXAMPLES))
    }

    fn start(&self, text: &str) -> Result<Start<'n>, NotAPlace> {
        let text = text.trim();
        if let Some(first) = number(text) {
            return Ok(Start { first, named: None });
        }
        if text.starts_with(|first: char| first.is_ascii_digit()) && self.whole(text).is_none() {
            return Err(wrong(format!("`{text}` is neither a number nor a name"), EXAMPLES));
        }
        if text.is_empty() {
            return Err(wrong("there is no address and no name", EXAMPLES));
        }
        match self.names.find(text) {
            Ok(named) => Ok(Start { first: named.start, named: Some(named) }),
            Err(LookupError::Missing { near }) => Err(wrong(
                format!("there is no name `{text}`"),
                did_you_mean(&near, self.otherwise),
            )),
            Err(LookupError::Unplaced { reason }) => {
                Err(wrong(format!("`{text}` has no guest-physical address here"), reason))
            }
            Err(LookupError::Ambiguous { candidates, count }) => Err(wrong(
                format!("{count} things are called `{text}`"),
                format!("give the address of one: {}", list_candidates(&candidates, count)),
            )),
        }
    }
}

fn rest(named: &NamedRange, offset: u64) -> Result<u64, NotAPlace> {
    if named.length == 0 {
        return Err(wrong(
            format!("the file does not say how long `{}` is", named.name),
            "give the length: NAME+0+LENGTH",
        ));
    }
    named.length.checked_sub(offset).filter(|rest| *rest > 0).ok_or_else(|| beyond(named))
}

fn beyond(named: &NamedRange) -> NotAPlace {
    wrong(
        format!(
            "this reaches beyond the end of `{}`, which has {} bytes",
            named.name, named.length
        ),
        "offset and length together stay within what is named; NAME..END does not have to",
    )
}

fn range(first: u64, length: u64) -> Result<ByteRange, NotAPlace> {
    Gpa::try_new(first)
        .and_then(|first| ByteRange::new(first, length))
        .map_err(|error| wrong(error.to_string(), EXAMPLES))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let named = |name: &str, start, length| NamedRange { name: name.to_owned(), start, length };
        Names::new(vec![
            named("path", 0x1000, 0x100),
            named("label", 0x2000, 0),
            named("a..b", 0x3000, 8),
            named("operator+", 0x4000, 8),
            named("twin", 0x5000, 8),
            named("twin", 0x6000, 8),
            named("high", 1 << 50, 8),
        ])
    }

    #[test]
    fn every_form_of_a_place() {
        for (text, start, length) in [
            ("0x1000..0x1080", 0x1000, 0x80),
            ("4096 .. 0x1080", 0x1000, 0x80),
            ("0x1000+128", 0x1000, 0x80),
            ("0x1000 + 0x10 + 8", 0x1010, 8),
            ("0x1000+0x10..0x1020", 0x1010, 0x10),
            ("path", 0x1000, 0x100),
            ("path+0x80", 0x1080, 0x80),
            (" path + 8 + 16 ", 0x1008, 16),
            ("path..0x1010", 0x1000, 0x10),
            ("path+8..path+0x10", 0x1008, 8),
            ("path..label", 0x1000, 0x1000),
            ("label+0+8", 0x2000, 8),
            ("label+4+8", 0x2004, 8),
            ("a..b", 0x3000, 8),
            ("operator+", 0x4000, 8),
        ] {
            let range = ByteRange::new(Gpa::new(start), length).expect("a range");
            assert_eq!(place(text, &names(), ""), Ok(range), "{text}");
        }
        assert_eq!(address("path+8", &names(), ""), Ok(Gpa::new(0x1008)));
        assert_eq!(address("0x10", &names(), ""), Ok(Gpa::new(0x10)));
        assert_eq!(address("operator+", &names(), ""), Ok(Gpa::new(0x4000)));
    }

    #[test]
    fn what_is_no_place_is_said_in_words() {
        for (text, part) in [
            ("", "no address and no name"),
            ("0x1000", "no length"),
            ("0x1000+0", "the length is 0"),
            ("path+0+0", "the length is 0"),
            ("0x1000+x", "the length `x`"),
            ("path+-1", "the offset `-1`"),
            ("path+1+2+3", "too many numbers"),
            ("path+1+2..3", "not both"),
            ("0x1080..0x1000", "ends before it begins"),
            ("0x1000..0x1000", "has no byte"),
            ("path+0x100", "beyond the end of `path`, which has 256 bytes"),
            ("path+8+0xf9", "beyond the end"),
            ("label", "how long"),
            ("label+4", "how long"),
            ("pth", "no name `pth`; the nearest known: `path`"),
            ("nothing..0x10", "no name `nothing`; look there"),
            ("0x1000-0x1080", "neither a number nor a name"),
            ("twin", "2 things are called `twin`; give the address of one: 0x5000"),
            ("high", "48"),
            ("0xffffffffffffffff+1..0x10", "beyond 2^64"),
            ("0xffffffffffff+2", "beyond the address space"),
            ("0..0x1000000000001", "beyond the address space"),
        ] {
            let wrong = place(text, &names(), "look there").expect_err(text).to_string();
            assert!(wrong.contains(part), "{text}: {wrong}");
        }
        assert!(address("path+8+8", &names(), "").is_err());
        assert!(address("0x1000000000000", &names(), "").is_err());
    }

    #[test]
    fn numbers_alone_need_no_names() {
        for (text, numeric) in [
            ("0x1000..0x1080", true),
            ("0x1000+128", true),
            ("0x1000 + 0x10 .. 0x2000", true),
            ("path", false),
            ("0x1000..path", false),
            ("", false),
            ("0x1000-0x1080", false),
        ] {
            assert_eq!(is_numeric(text), numeric, "{text}");
        }
    }
}

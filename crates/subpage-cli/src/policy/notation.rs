//! One notation of a place, for policies, `plan` and `ctl`: `PLACE[+OFFSET][..END|+LENGTH]`.

use std::fmt;

use subpage::address::{ByteRange, Gpa};

use super::names::{LookupError, NamedRange, Names, did_you_mean, list_candidates};
use super::number::parse_number;

/// What a place looks like, for messages.
const EXAMPLES: &str = "write 0x1000..0x1080 (the end not included), 0x1000+128, NAME, NAME+OFFSET, \
     NAME+OFFSET+LENGTH or NAME..NAME";

/// Most places in a text where a name that contains `..` is looked for.
const MAX_SPLITS: usize = 64;

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

/// A number or a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Term<'t> {
    Number(u64),
    Name(&'t str),
}

/// A term and the bytes behind its first one that are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Point<'t> {
    term: Term<'t>,
    offset: u64,
}

/// How far a place reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach<'t> {
    /// To the end of what is named.
    Rest,
    Length(u64),
    /// The end, not included.
    End(Point<'t>),
}

/// A place as it is written; its names have not been looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Form<'t> {
    start: Point<'t>,
    reach: Reach<'t>,
}

/// A notation that is read with the names of a guest.
struct Reader<'n> {
    names: &'n Names,
    /// What to do about a name that is like none of them.
    otherwise: &'n str,
    /// Whether the nearest names are searched for one that is not there.
    nearest: bool,
}

/// The bytes of a place: a number or a name, `+OFFSET` bytes of it left out, up to `..END`, or
/// `+LENGTH` bytes, else to the end of what is named.
///
/// A number has no end of its own, so one number behind it is the length: `0x1000+128`. `END` is
/// again a number or a name with an offset, and not included. What can be read as numbers is; else a
/// name that is all of the text, or all of END, is found first, whatever it contains. A text that can
/// be read in several ways with the names that there are is a mistake. `otherwise` says what to do
/// about a name that is like none of `names`.
pub fn place(text: &str, names: &Names, otherwise: &str) -> Result<ByteRange, NotAPlace> {
    read_place(text, names, otherwise, true)
}

/// The same; only with `nearest` the names are searched for those that are like a missing one.
pub(super) fn read_place(
    text: &str,
    names: &Names,
    otherwise: &str,
    nearest: bool,
) -> Result<ByteRange, NotAPlace> {
    let reader = Reader { names, otherwise, nearest };
    reader.bytes(reader.form(text.trim())?)
}

/// The address of a place: as [`place`], without a length and an end.
pub fn address(text: &str, names: &Names, otherwise: &str) -> Result<Gpa, NotAPlace> {
    let reader = Reader { names, otherwise, nearest: true };
    let point = reader.point(text.trim())?;
    let (first, named) = reader.first(point)?;
    if let Some(named) = named.filter(|named| named.length > 0 && point.offset >= named.length) {
        return Err(beyond(named));
    }
    Gpa::try_new(first).map_err(|error| wrong(error.to_string(), EXAMPLES))
}

/// Whether a text is a place by numbers alone, so that no names are needed for it.
pub fn is_numeric(text: &str) -> bool {
    text.split("..").flat_map(|side| side.split('+')).all(|term| number(term).is_some())
}

/// Finds what is wrong with the form of a place that needs names, whichever they are.
///
/// A name may contain `+` and `..`, and then the form is another: see [`may_be_another_form`].
pub(super) fn check_form(text: &str) -> Result<(), NotAPlace> {
    plain_form(text.trim()).map(|_| ())
}

/// Whether a name could contain what looks like the parts of this text.
pub(super) fn may_be_another_form(text: &str) -> bool {
    !is_numeric(text) && (text.contains('+') || text.contains(".."))
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

/// A number, or what may be a name.
fn term(text: &str) -> Result<Term<'_>, NotAPlace> {
    let text = text.trim();
    if let Some(number) = number(text) {
        return Ok(Term::Number(number));
    }
    if text.is_empty() {
        return Err(wrong("there is no address and no name", EXAMPLES));
    }
    // Otherwise a slip in a number would be a name that is not there yet.
    let like_a_number = text.starts_with(|first: char| first.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if like_a_number || is_numeric(text) {
        return Err(wrong(format!("`{text}` is neither a number nor a name"), EXAMPLES));
    }
    Ok(Term::Name(text))
}

fn plain_point(text: &str) -> Result<Point<'_>, NotAPlace> {
    let (base, offset) = match text.split_once('+') {
        Some((base, offset)) => (base, amount(offset, "offset")?),
        None => (text, 0),
    };
    Ok(Point { term: term(base)?, offset })
}

/// The form of a text none of whose names contains `+` or `..`.
fn plain_form(text: &str) -> Result<Form<'_>, NotAPlace> {
    let (place, end) = match text.split_once("..") {
        Some((place, end)) => (place, Some(end)),
        None => (text, None),
    };
    let mut terms = place.split('+');
    let start = term(terms.next().unwrap_or_default())?;
    let numbers: Vec<&str> = terms.collect();
    form_of(start, &numbers, end.map(plain_point))
}

/// A start, the numbers behind it, and its end.
fn form_of<'t>(
    term: Term<'t>,
    numbers: &[&str],
    end: Option<Result<Point<'t>, NotAPlace>>,
) -> Result<Form<'t>, NotAPlace> {
    let is_number = matches!(term, Term::Number(_));
    let (offset, reach) = match (numbers, end) {
        ([], Some(end)) => (0, Reach::End(end?)),
        ([offset], Some(end)) => (amount(offset, "offset")?, Reach::End(end?)),
        (_, Some(_)) => return Err(wrong("a place has an end or a length, not both", EXAMPLES)),
        ([], None) if is_number => {
            return Err(wrong("there is an address and no length", EXAMPLES));
        }
        ([], None) => (0, Reach::Rest),
        ([length], None) if is_number => (0, Reach::Length(amount(length, "length")?)),
        ([offset], None) => (amount(offset, "offset")?, Reach::Rest),
        ([offset, length], None) => {
            (amount(offset, "offset")?, Reach::Length(amount(length, "length")?))
        }
        _ => return Err(wrong("there are too many numbers", EXAMPLES)),
    };
    if reach == Reach::Length(0) {
        return Err(wrong("the length is 0", EXAMPLES));
    }
    Ok(Form { start: Point { term, offset }, reach })
}

impl<'n> Reader<'n> {
    /// The term, if it is a number, or a name that is there, once or more often.
    fn known<'t>(&self, text: &'t str) -> Option<Term<'t>> {
        match term(text) {
            Ok(Term::Name(name)) => match self.names.find_exactly(name) {
                Err(LookupError::Missing { .. }) => None,
                Ok(_) | Err(_) => Some(Term::Name(name)),
            },
            Ok(number) => Some(number),
            Err(_) => None,
        }
    }

    /// The form of a text, with the names that are there.
    fn form<'t>(&self, text: &'t str) -> Result<Form<'t>, NotAPlace> {
        if !may_be_another_form(text) {
            return plain_form(text);
        }
        if let Some(term) = self.known(text) {
            return form_of(term, &[], None);
        }
        let mut forms = Vec::new();
        let mut add = |start: &'t str, numbers: &[&str], end: Option<Point<'t>>| {
            if let Some(term) = self.known(start)
                && let Ok(form) = form_of(term, numbers, end.map(Ok))
            {
                forms.push((start.trim(), form));
            }
        };
        if let Some((before, last)) = text.rsplit_once('+') {
            add(before, &[last], None);
            if let Some((before, first)) = before.rsplit_once('+') {
                add(before, &[first, last], None);
            }
        }
        let dots = text.match_indices('.').filter(|(at, _)| text[*at..].starts_with(".."));
        for (at, _) in dots.take(MAX_SPLITS) {
            let Some(end) = self.known_point(&text[at + 2..]) else { continue };
            let start = &text[..at];
            add(start, &[], Some(end));
            if let Some((start, offset)) = start.rsplit_once('+') {
                add(start, &[offset], Some(end));
            }
        }
        match forms[..] {
            // None of its names is there: the plain form says what is missing.
            [] => plain_form(text),
            [(_, form)] => Ok(form),
            [(one, _), (other, _), ..] => Err(wrong(
                format!(
                    "this can be read in {} ways: it begins with `{one}` or with `{other}`",
                    forms.len()
                ),
                "give addresses, or in a policy `region`, `offset` and `length`",
            )),
        }
    }

    /// A number or a name that is there, with an offset.
    fn known_point<'t>(&self, text: &'t str) -> Option<Point<'t>> {
        if let Some(term) = self.known(text) {
            return Some(Point { term, offset: 0 });
        }
        let (base, offset) = text.rsplit_once('+')?;
        Some(Point { term: self.known(base)?, offset: number(offset)? })
    }

    fn point<'t>(&self, text: &'t str) -> Result<Point<'t>, NotAPlace> {
        self.known_point(text).map_or_else(|| plain_point(text), Ok)
    }

    fn bytes(&self, form: Form<'_>) -> Result<ByteRange, NotAPlace> {
        let (first, named) = self.first(form.start)?;
        let offset = form.start.offset;
        let length = match form.reach {
            Reach::End(end) => {
                if let Some(named) = named.filter(|named| named.length > 0) {
                    rest(named, offset)?;
                }
                let (last, named) = self.first(end)?;
                if let Some(named) = named
                    && named.length > 0
                    && end.offset > named.length
                {
                    return Err(beyond(named));
                }
                if last <= first {
                    let what = if last == first { "has no byte" } else { "ends before it begins" };
                    return Err(wrong(format!("the range {what}"), EXAMPLES));
                }
                last - first
            }
            Reach::Length(length) => {
                if let Some(named) = named
                    && named.length > 0
                    && length > rest(named, offset)?
                {
                    return Err(beyond(named));
                }
                length
            }
            Reach::Rest => rest(named.expect("a number has no end of its own"), offset)?,
        };
        Gpa::try_new(first)
            .and_then(|first| ByteRange::new(first, length))
            .map_err(|error| wrong(error.to_string(), EXAMPLES))
    }

    /// The address of a point, and what its name stands for.
    fn first(&self, point: Point<'_>) -> Result<(u64, Option<&'n NamedRange>), NotAPlace> {
        let (first, named) = match point.term {
            Term::Number(first) => (first, None),
            Term::Name(name) => {
                let named = self.named(name)?;
                (named.start, Some(named))
            }
        };
        let first = first.checked_add(point.offset);
        Ok((first.ok_or_else(|| wrong("the place lies beyond 2^64", EXAMPLES))?, named))
    }

    fn named(&self, name: &str) -> Result<&'n NamedRange, NotAPlace> {
        let found =
            if self.nearest { self.names.find(name) } else { self.names.find_exactly(name) };
        found.map_err(|error| match error {
            LookupError::Missing { near } => {
                wrong(format!("there is no name `{name}`"), did_you_mean(&near, self.otherwise))
            }
            LookupError::Unplaced { reason } => {
                wrong(format!("`{name}` has no guest-physical address here"), reason)
            }
            LookupError::Ambiguous { candidates, count } => wrong(
                format!("{count} things are called `{name}`"),
                format!("give the address of one: {}", list_candidates(&candidates, count)),
            ),
        })
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
        "offset and length together stay within what is named; the bytes of NAME..END do not have to",
    )
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
            named("libstdc++.so:.data", 0x8000, 0x100),
            named("of..two", 0x9000, 8),
            named("of..two", 0xa000, 8),
            named("0x1000..0x1080", 0xb000, 8),
            named("0x1000+8", 0xc000, 8),
            named("0x1000-0x1080", 0xd000, 8),
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
            // Names with `+` and `..` behind, before and between other parts.
            ("path..operator+", 0x1000, 0x3000),
            ("path+8..operator++4", 0x1008, 0x2ffc),
            ("0x1000+8..a..b", 0x1008, 0x1ff8),
            ("a..b+4", 0x3004, 4),
            ("a..b + 2 + 3", 0x3002, 3),
            ("operator++4", 0x4004, 4),
            ("a..b..operator+", 0x3000, 0x1000),
            ("a..b+2..operator++3", 0x3002, 0x1001),
            ("libstdc++.so:.data+8", 0x8008, 0xf8),
            // To the end of a name, and from a name of unknown length on.
            ("path..path+0x100", 0x1000, 0x100),
            ("label+0x100..0x3000", 0x2100, 0xf00),
        ] {
            let range = ByteRange::new(Gpa::new(start), length).expect("a range");
            assert_eq!(place(text, &names(), ""), Ok(range), "{text}");
        }
        assert_eq!(address("path+8", &names(), ""), Ok(Gpa::new(0x1008)));
        assert_eq!(address("0x10", &names(), ""), Ok(Gpa::new(0x10)));
        assert_eq!(address("operator+", &names(), ""), Ok(Gpa::new(0x4000)));
        assert_eq!(address("operator++4", &names(), ""), Ok(Gpa::new(0x4004)));
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
            ("of..two", "2 things are called `of..two`; give the address of one: 0x9000"),
            ("of..two+4", "2 things are called `of..two`"),
            ("path..of..two", "2 things are called `of..two`"),
            ("path+0x100..0x110000", "beyond the end of `path`"),
            ("path+0x1000..0x110000", "beyond the end of `path`"),
            ("path..path+0x101", "beyond the end of `path`"),
            ("a..c+4", "no name `a`"),
            ("0xffffffffffffffff+1..0x10", "beyond 2^64"),
            ("0xffffffffffff+2", "beyond the address space"),
            ("0..0x1000000000001", "beyond the address space"),
        ] {
            let wrong = place(text, &names(), "look there").expect_err(text).to_string();
            assert!(wrong.contains(part), "{text}: {wrong}");
        }
        assert!(address("path+8+8", &names(), "").is_err());
        assert!(address("0x1000000000000", &names(), "").is_err());
        for (text, part) in [("path+0x100", "beyond the end"), ("of..two", "2 things")] {
            let wrong = address(text, &names(), "").expect_err(text).to_string();
            assert!(wrong.contains(part), "{text}: {wrong}");
        }
    }

    /// Where the names of a trace could turn the text into something else than it says.
    #[test]
    fn numbers_come_before_names_and_two_readings_are_none() {
        let of = |text| place(text, &names(), "").map(|range| range.first().as_u64());
        assert_eq!(of("0x1000..0x1080"), Ok(0x1000));
        assert_eq!(of("0x1000+8"), Ok(0x1000));
        assert_eq!(of("0x1000+8..path+0x20"), Ok(0x1008));
        assert_eq!(of("0x800..0x1000+8"), Ok(0x800));
        assert!(of("0x1000-0x1080").is_err());
        let address = |text| address(text, &names(), "").map(Gpa::as_u64);
        assert_eq!(address("0x1000+8"), Ok(0x1008));
        assert!(address("0x1000..0x1080").is_err());
        let named = |name: &str, start, length| NamedRange { name: name.to_owned(), start, length };
        // The reading that is beyond the end of its name is one, too.
        for length in [8, 2] {
            let names = Names::new(vec![
                named("a", 0x1000, 8),
                named("b", 0x2000, 8),
                named("a..b", 0x3000, length),
            ]);
            let wrong = place("a..b+4", &names, "").expect_err("two ways").to_string();
            assert!(wrong.contains("in 2 ways") && wrong.contains("`a..b` or with `a`"), "{wrong}");
            assert_eq!(place("a..b", &names, "").map(ByteRange::first), Ok(Gpa::new(0x3000)));
        }
    }

    /// No name can make these right, except one that contains `+` or `..`.
    #[test]
    fn a_wrong_form_is_wrong_without_names() {
        for (text, wrong, may_be_another) in [
            ("", "no address and no name", false),
            ("0x1000-0x1080", "neither a number nor a name", false),
            ("128bytes", "neither a number nor a name", false),
            ("x+y+z+1..2", "not both", true),
            ("x+y", "the offset `y`", true),
            ("x+1+0", "the length is 0", true),
            ("..0x10", "no address and no name", true),
            ("x..", "no address and no name", true),
            ("0x1000..x+y", "the offset `y`", true),
        ] {
            let message = check_form(text).expect_err(text).to_string();
            assert!(message.contains(wrong), "{text}: {message}");
            assert_eq!(may_be_another_form(text), may_be_another, "{text}");
        }
        for text in ["x", "x+1", "x+1+2", "x..y", "x+1..y+2", "0x10..x", "7z:.data+1", "a..b..c"] {
            assert_eq!(check_form(text), Ok(()), "{text}");
        }
    }

    /// A hostile text with many places to split is read in time linear in its length.
    #[test]
    fn many_dots_end() {
        for part in ["..", "a..", "1..", "+", "x+"] {
            let text = part.repeat(200_000) + "x";
            assert!(place(&text, &names(), "").is_err(), "{part}");
        }
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

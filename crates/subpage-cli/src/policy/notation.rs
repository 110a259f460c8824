//! One notation of a place, for policies, `plan` and `ctl`: `PLACE[+OFFSET][..END|+LENGTH]`, where a
//! PLACE is a number, or a name with fields and indices behind it: `NAME[.field][[n]]`.

use std::borrow::Cow;
use std::fmt;

use subpage::address::{ByteRange, Gpa};

use super::names::{LookupError, NamedRange, Names, did_you_mean, list_candidates};
use super::number::parse_number;

/// What a place looks like, for messages.
const EXAMPLES: &str = "write 0x1000..0x1080 (the end not included), 0x1000+128, NAME, NAME+OFFSET, \
     NAME+OFFSET+LENGTH or NAME..NAME; behind a NAME may stand .FIELD and [INDEX]";

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
        return Err(beyond(&named));
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
    /// The term, if it is a number, or a name that is there, once or more often, with fields and indices.
    fn known<'t>(&self, text: &'t str) -> Option<Term<'t>> {
        match term(text) {
            Ok(Term::Name(name)) => self.names.split(name).map(|_| Term::Name(name)),
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
                    rest(&named, offset)?;
                }
                let (last, named) = self.first(end)?;
                if let Some(named) = named
                    && named.length > 0
                    && end.offset > named.length
                {
                    return Err(beyond(&named));
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
                    && length > rest(&named, offset)?
                {
                    return Err(beyond(&named));
                }
                length
            }
            Reach::Rest => rest(&named.expect("a number has no end of its own"), offset)?,
        };
        Gpa::try_new(first)
            .and_then(|first| ByteRange::new(first, length))
            .map_err(|error| wrong(error.to_string(), EXAMPLES))
    }

    /// The address of a point, and what its name stands for.
    fn first(&self, point: Point<'_>) -> Result<(u64, Option<Cow<'n, NamedRange>>), NotAPlace> {
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

    fn named(&self, name: &str) -> Result<Cow<'n, NamedRange>, NotAPlace> {
        self.names.locate(name, self.nearest).map_err(|error| match error {
            LookupError::NoPart(wrong) => wrong,
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
mod tests;

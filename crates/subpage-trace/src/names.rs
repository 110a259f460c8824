//! Names of the recorded program's memory, so that rules need no addresses.

use std::fmt;

use crate::write::ADDRESS_LIMIT;

/// The most names a trace holds.
pub const MAX_NAMES: usize = 65_536;
/// The most bytes (UTF-8) a name has.
pub const MAX_NAME_BYTES: usize = 255;
/// Suggestions that an error carries at most.
const SUGGESTIONS: usize = 3;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NameKind {
    /// A writable section of the program, named `program:.data` and so on.
    Section,
    /// A data object of the program's symbol table.
    Object,
    /// The pages of the heap (brk segment) up to the highest that was written.
    Heap,
    /// The pages of the main thread's stack down to the lowest that was written.
    Stack,
}

impl NameKind {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Section => 0,
            Self::Object => 1,
            Self::Heap => 2,
            Self::Stack => 3,
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        [Self::Section, Self::Object, Self::Heap, Self::Stack]
            .into_iter()
            .find(|k| k.code() == code)
    }
}

impl fmt::Display for NameKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Section => "section",
            Self::Object => "object",
            Self::Heap => "heap",
            Self::Stack => "stack",
        })
    }
}

/// A named byte range of the recorded program.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    /// The name: 1 to [`MAX_NAME_BYTES`] bytes without control characters.
    pub name: String,
    /// First byte.
    pub start: u64,
    /// Bytes, at least 1; the last one is below [`ADDRESS_LIMIT`].
    pub length: u64,
    /// What it stands for.
    pub kind: NameKind,
}

impl Name {
    /// Whether a trace can hold this name.
    pub fn is_valid(&self) -> bool {
        (1..=MAX_NAME_BYTES).contains(&self.name.len())
            && !self.name.chars().any(char::is_control)
            && self.length > 0
            && self.start.checked_add(self.length).is_some_and(|end| end <= ADDRESS_LIMIT)
    }
}

/// The names of a trace, in ascending order of their start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    names: Vec<Name>,
    left_out: usize,
}

/// Why a name does not lead to one range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// No range has this name.
    #[error("the trace has no name `{name}`{}", suggestion_text(.suggestions))]
    Missing {
        /// What was looked for.
        name: String,
        /// Names that look alike, best first, at most three.
        suggestions: Vec<String>,
    },
    /// Several ranges have this name.
    #[error(
        "`{name}` is the name of {} ranges ({}); give the range by its address instead",
        .places.len(),
        place_text(.places)
    )]
    Ambiguous {
        /// What was looked for.
        name: String,
        /// Start and length of each.
        places: Vec<(u64, u64)>,
    },
}

fn suggestion_text(suggestions: &[String]) -> String {
    if suggestions.is_empty() {
        return String::new();
    }
    let quoted: Vec<_> = suggestions.iter().map(|name| format!("`{name}`")).collect();
    format!("; did you mean {}?", quoted.join(" or "))
}

fn place_text(places: &[(u64, u64)]) -> String {
    let mut text: Vec<_> = places
        .iter()
        .take(4)
        .map(|(start, length)| format!("{start:#x}, {length} bytes"))
        .collect();
    if places.len() > 4 {
        text.push("…".to_owned());
    }
    text.join("; ")
}

impl Names {
    /// Sorts `names` and drops exact repetitions.
    ///
    /// A name that is not valid, and every name after the first [`MAX_NAMES`], is left out and
    /// counted in [`Self::left_out`]. Heap, stack and sections are kept before objects.
    pub fn new(names: impl IntoIterator<Item = Name>) -> Self {
        let mut names: Vec<_> = names.into_iter().collect();
        let given = names.len();
        names.retain(Name::is_valid);
        let mut left_out = given - names.len();
        let order = |a: &Name, b: &Name| {
            let key = |name: &Name| (name.start, name.length, name.kind.code());
            key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
        };
        names.sort_by(order);
        names.dedup();
        if names.len() > MAX_NAMES {
            left_out += names.len() - MAX_NAMES;
            names.sort_by_key(|name| name.kind == NameKind::Object);
            names.truncate(MAX_NAMES);
            names.sort_by(order);
        }
        Self { names, left_out }
    }

    /// Names that [`Self::new`] could not keep.
    pub fn left_out(&self) -> usize {
        self.left_out
    }

    /// The range of that name, exact to the letter.
    pub fn find(&self, name: &str) -> Result<&Name, NameError> {
        let mut found = self.names.iter().filter(|n| n.name == name);
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one),
            (None, _) => {
                Err(NameError::Missing { name: name.to_owned(), suggestions: self.near(name) })
            }
            (Some(_), Some(_)) => Err(NameError::Ambiguous {
                name: name.to_owned(),
                places: self
                    .names
                    .iter()
                    .filter(|n| n.name == name)
                    .map(|n| (n.start, n.length))
                    .collect(),
            }),
        }
    }

    fn near(&self, name: &str) -> Vec<String> {
        // A longer text cannot be near a name, and comparing costs the product of the lengths.
        if name.len() > MAX_NAME_BYTES {
            return Vec::new();
        }
        let lower = name.to_lowercase();
        let mut near: Vec<_> = self
            .names
            .iter()
            .map(|n| (strsim::jaro_winkler(&lower, &n.name.to_lowercase()), n.name.as_str()))
            .filter(|&(likeness, _)| likeness >= 0.8)
            .collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
        near.dedup_by(|a, b| a.1 == b.1);
        near.into_iter().take(SUGGESTIONS).map(|(_, name)| name.to_owned()).collect()
    }

    /// The smallest named range that holds `address`.
    pub fn at(&self, address: u64) -> Option<&Name> {
        self.names
            .iter()
            .take_while(|n| n.start <= address)
            .filter(|n| address - n.start < n.length)
            .min_by_key(|n| n.length)
    }

    /// All names, in ascending order of their start.
    pub fn iter(&self) -> std::slice::Iter<'_, Name> {
        self.names.iter()
    }

    /// How many names there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is no name.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

impl<'a> IntoIterator for &'a Names {
    type Item = &'a Name;
    type IntoIter = std::slice::Iter<'a, Name>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, start: u64, length: u64) -> Name {
        Name { name: name.to_owned(), start, length, kind: NameKind::Object }
    }

    #[test]
    fn a_name_is_found_missed_with_a_hint_or_ambiguous() {
        let names = Names::new([
            object("helper_path", 0x2000, 64),
            object("state", 0x1000, 8),
            object("state", 0x3000, 8),
            object("state", 0x3000, 8),
        ]);
        assert_eq!(names.len(), 3, "the repetition is dropped");
        assert_eq!(names.find("helper_path").map(|n| n.start), Ok(0x2000));
        let missing = names.find("helper_pth").expect_err("no such name");
        assert_eq!(
            missing.to_string(),
            "the trace has no name `helper_pth`; did you mean `helper_path`?"
        );
        let far = names.find("zzz").expect_err("no such name");
        assert_eq!(far.to_string(), "the trace has no name `zzz`");
        let two = names.find("state").expect_err("two of them");
        assert_eq!(
            two.to_string(),
            "`state` is the name of 2 ranges (0x1000, 8 bytes; 0x3000, 8 bytes); \
             give the range by its address instead"
        );
    }

    #[test]
    fn the_innermost_range_names_an_address() {
        let names = Names::new([
            Name { kind: NameKind::Section, ..object("program:.data", 0x1000, 0x1000) },
            object("counter", 0x1100, 8),
        ]);
        assert_eq!(names.at(0x1107).map(|n| n.name.as_str()), Some("counter"));
        assert_eq!(names.at(0x1108).map(|n| n.name.as_str()), Some("program:.data"));
        assert_eq!(names.at(0x2000), None);
        assert_eq!(names.at(0xfff), None);
    }

    #[test]
    fn what_a_trace_cannot_hold_is_left_out_and_counted() {
        let mut all: Vec<_> = (0..MAX_NAMES as u64 + 5).map(|i| object("o", i * 8, 8)).collect();
        all.push(Name { kind: NameKind::Stack, ..object("stack", 1 << 40, 8) });
        all.push(object("escape\u{1b}[31m", 0, 8));
        all.push(object("", 0, 8));
        all.push(object(&"x".repeat(256), 0, 8));
        all.push(object("empty", 0, 0));
        all.push(object("beyond", ADDRESS_LIMIT - 1, 2));
        all.push(object("wraps", u64::MAX, 2));
        let names = Names::new(all);
        assert_eq!((names.len(), names.left_out()), (MAX_NAMES, 12));
        assert!(names.find("stack").is_ok(), "the stack is worth more than an object");
    }
}

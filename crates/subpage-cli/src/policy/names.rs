//! Names of address ranges: those of a trace, or the symbols of a file.

use std::borrow::Cow;
use std::sync::Arc;

use super::debug_info::DebugInfo;
use super::notation::NotAPlace;
use super::path::{splits, steps};
use crate::terminal::grouped;

/// A name and the bytes it stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedRange {
    /// May be hostile text; need not be unique.
    pub name: String,
    /// First byte.
    pub start: u64,
    /// Bytes; 0 where the file does not say.
    pub length: u64,
}

/// Why a name has no address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookupError {
    /// Nothing has this name; these are nearest to it, best first.
    Missing {
        /// At most three.
        near: Vec<String>,
    },
    /// The file has the name and no guest-physical address for it.
    Unplaced {
        /// Why not.
        reason: &'static str,
    },
    /// Several different ranges have this name.
    Ambiguous {
        /// At most four of them, in ascending order of address.
        candidates: Vec<NamedRange>,
        /// How many there are.
        count: usize,
    },
    /// The name is there, and not the field or the element of it.
    NoPart(NotAPlace),
}

/// A list of named ranges that can be searched.
#[derive(Debug, Clone, Default)]
pub struct Names {
    sorted: Vec<NamedRange>,
    /// Names without an address, in order, each with the reason.
    unplaced: Vec<(String, &'static str)>,
    /// They are of a file that is loaded elsewhere than it says.
    moves: bool,
    /// Knows the fields of what is named.
    debug_info: Option<Arc<DebugInfo>>,
}

/// Longest name that is compared for likeness, in bytes; the comparison is quadratic in it.
const MAX_LIKENESS_BYTES: usize = 128;

impl Names {
    /// Takes the ranges in any order; equal ones count once.
    pub fn new(mut ranges: Vec<NamedRange>) -> Self {
        ranges.sort_unstable();
        ranges.dedup();
        Self { sorted: ranges, ..Self::default() }
    }

    /// The same list, which can also say why these names have no address.
    pub(super) fn with_unplaced(mut self, mut unplaced: Vec<(String, &'static str)>) -> Self {
        unplaced.sort_unstable();
        self.unplaced = unplaced;
        self
    }

    /// The same list of a position-independent file, whose addresses count from wherever it is loaded.
    pub(super) fn position_independent(mut self) -> Self {
        self.moves = true;
        self
    }

    /// The same list, with the debug information of the file that it is of.
    pub(super) fn with_debug_info(mut self, debug_info: Arc<DebugInfo>) -> Self {
        self.debug_info = Some(debug_info);
        self
    }

    /// The same names and places, without lengths: those that were only distances to the next name
    /// say nothing about another list.
    pub fn without_lengths(&self) -> Self {
        let mut same = self.clone();
        for range in &mut same.sorted {
            range.length = 0;
        }
        same
    }

    /// The same list; what it does not know the length of is as long as the other list says.
    pub(super) fn with_lengths_of(mut self, other: &Self) -> Self {
        for range in self.sorted.iter_mut().filter(|range| range.length == 0) {
            range.length = other.find_exactly(&range.name).map_or(0, |known| known.length);
        }
        self
    }

    /// Whether the addresses count from wherever the file is loaded.
    pub fn is_position_independent(&self) -> bool {
        self.moves
    }

    /// Whether there is no name at all.
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// Every range, by name and then by address.
    pub fn iter(&self) -> impl Iterator<Item = &NamedRange> {
        self.sorted.iter()
    }

    /// The one range that has this name; if there is none, the nearest are searched among all.
    pub fn find(&self, name: &str) -> Result<&NamedRange, LookupError> {
        self.find_exactly(name).map_err(|error| match error {
            LookupError::Missing { .. } => LookupError::Missing { near: self.near(name) },
            other => other,
        })
    }

    /// The one range that has this name, in logarithmic time: no nearest names.
    pub fn find_exactly(&self, name: &str) -> Result<&NamedRange, LookupError> {
        let first = self.sorted.partition_point(|range| range.name.as_str() < name);
        let count = self.sorted[first..].partition_point(|range| range.name == name);
        match &self.sorted[first..first + count] {
            [] => match self.unplaced.binary_search_by(|(other, _)| other.as_str().cmp(name)) {
                Ok(at) => Err(LookupError::Unplaced { reason: self.unplaced[at].1 }),
                Err(_) => Err(LookupError::Missing { near: Vec::new() }),
            },
            [one] => Ok(one),
            several => Err(LookupError::Ambiguous {
                candidates: several.iter().take(4).cloned().collect(),
                count,
            }),
        }
    }

    /// The first name that both lists have once, and not for the same bytes: its range in each. A list
    /// that does not know lengths has 0.
    pub fn first_difference<'a>(&'a self, other: &'a Self) -> Option<[&'a NamedRange; 2]> {
        self.common(other).find(|[ours, theirs]| {
            let lengths = [ours.length, theirs.length];
            ours.start != theirs.start || lengths[0] != lengths[1] && !lengths.contains(&0)
        })
    }

    /// The ranges of the names that both lists have once.
    pub fn common<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = [&'a NamedRange; 2]> {
        self.sorted.iter().filter_map(|range| {
            let ours = self.find_exactly(&range.name).ok()?;
            Some([ours, other.find_exactly(&range.name).ok()?])
        })
    }

    /// A text as a name that is there, once or more often, and the path behind it: `table` and
    /// `[3].next`. A name that is all of the text comes first, then the longest.
    pub(super) fn split<'t>(&self, text: &'t str) -> Option<(&'t str, &'t str)> {
        let is_there =
            |name: &str| !matches!(self.find_exactly(name), Err(LookupError::Missing { .. }));
        if is_there(text) {
            return Some((text, ""));
        }
        splits(text).find(|(name, path)| is_there(name) && steps(path).is_some())
    }

    /// The range of a name, or of a field or an element of what is named: `table[3].next`.
    ///
    /// Only with `nearest` the names are searched for those that are like a missing one.
    pub fn locate(&self, text: &str, nearest: bool) -> Result<Cow<'_, NamedRange>, LookupError> {
        let find = |name| if nearest { self.find(name) } else { self.find_exactly(name) };
        let Some((name, path)) = self.split(text) else {
            return find(text)
                .map(Cow::Borrowed)
                .map_err(|error| self.no_path(text, error, nearest));
        };
        let named = find(name)?;
        if path.is_empty() {
            return Ok(Cow::Borrowed(named));
        }
        let steps = steps(path).unwrap_or_default();
        let Some(debug_info) = &self.debug_info else {
            return Err(LookupError::NoPart(NotAPlace {
                message: format!("nothing tells the fields and elements of `{name}`"),
                help: "give the ELF file with its debug information by `--symbols` (in a policy's \
                       rule also by `elf`), or write NAME+OFFSET+LENGTH"
                    .to_owned(),
            }));
        };
        let bytes = debug_info.find(named, &steps).map_err(LookupError::NoPart)?;
        let start = named.start.checked_add(bytes.offset).ok_or_else(|| {
            LookupError::NoPart(NotAPlace {
                message: format!("`{text}` lies beyond 2^64"),
                help: "the debug information is damaged: write NAME+OFFSET+LENGTH".to_owned(),
            })
        })?;
        Ok(Cow::Owned(NamedRange { name: text.to_owned(), start, length: bytes.length }))
    }

    /// Why a text is neither a name nor a part of something named.
    fn no_path(&self, text: &str, error: LookupError, nearest: bool) -> LookupError {
        let LookupError::Missing { near } = &error else { return error };
        let known = splits(text)
            .find(|(name, _)| !matches!(self.find_exactly(name), Err(LookupError::Missing { .. })));
        if let Some((name, path)) = known {
            return LookupError::NoPart(NotAPlace {
                message: format!("`{path}` behind `{name}` is neither a field nor an index"),
                help: format!("write `{name}.FIELD` or `{name}[0]`, at most 64 of them"),
            });
        }
        let first = splits(text).last().filter(|_| nearest && near.is_empty());
        match first {
            Some((name, _)) => LookupError::Missing { near: self.near(name) },
            None => error,
        }
    }

    fn near(&self, name: &str) -> Vec<String> {
        nearest(name, self.sorted.iter().map(|range| range.name.as_str()), 3)
    }
}

/// The `most` candidates that are most like `wanted`, best first; only those that are like it.
pub(super) fn nearest<'a>(
    wanted: &str,
    candidates: impl Iterator<Item = &'a str>,
    most: usize,
) -> Vec<String> {
    if wanted.len() > MAX_LIKENESS_BYTES {
        return Vec::new();
    }
    let mut best: Vec<(f64, &str)> = Vec::new();
    for candidate in candidates {
        // A much shorter or longer name is not a slip of the keyboard.
        if candidate.len() > 2 * wanted.len() + 8 || best.iter().any(|(_, c)| *c == candidate) {
            continue;
        }
        let likeness = strsim::jaro_winkler(wanted, candidate);
        if likeness < 0.8 {
            continue;
        }
        let place = best.partition_point(|(other, _)| *other >= likeness);
        best.insert(place, (likeness, candidate));
        best.truncate(most);
    }
    best.into_iter().map(|(_, candidate)| candidate.to_owned()).collect()
}

/// Advice for a name that was not found: the nearest, or where to look.
pub(super) fn did_you_mean(near: &[String], otherwise: &str) -> String {
    match near {
        [] => otherwise.to_owned(),
        near => {
            let quoted: Vec<_> = near.iter().map(|name| format!("`{name}`")).collect();
            format!("the nearest known: {}", quoted.join(", "))
        }
    }
}

/// The candidates of an ambiguous name in words.
pub(super) fn list_candidates(candidates: &[NamedRange], count: usize) -> String {
    let mut text: Vec<_> = candidates
        .iter()
        .map(|range| match range.length {
            0 => format!("{:#x}", range.start),
            length => format!("{:#x} ({} bytes)", range.start, grouped(length)),
        })
        .collect();
    if count > candidates.len() {
        text.push(format!("{} more", count - candidates.len()));
    }
    text.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(name: &str, start: u64) -> NamedRange {
        NamedRange { name: name.to_owned(), start, length: 8 }
    }

    #[test]
    fn one_name_is_found_and_two_are_ambiguous() {
        let names = Names::new(vec![
            range("b", 2),
            range("a", 1),
            range("b", 3),
            range("a", 1),
            range("helper_path", 4),
        ]);
        assert_eq!(names.find("a"), Ok(&range("a", 1)));
        assert_eq!(
            names.find("b"),
            Err(LookupError::Ambiguous {
                candidates: vec![range("b", 2), range("b", 3)],
                count: 2
            })
        );
        assert_eq!(
            names.find("helperpath"),
            Err(LookupError::Missing { near: vec!["helper_path".to_owned()] })
        );
        assert_eq!(names.find("zzz"), Err(LookupError::Missing { near: vec![] }));
        assert_eq!(Names::default().find(""), Err(LookupError::Missing { near: vec![] }));
    }
}

//! Fields and array elements of named things, by the debug information (DWARF) of an ELF file.
//!
//! Nothing is read before the first field or index is looked up. Of the entries, one unit at a time is
//! held, and no more of the strings than names that are compared.

mod arrays;
mod entry;
mod index;
mod members;
mod sections;
mod types;
mod units;
mod variables;
mod wording;
mod work;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::names::NamedRange;
use super::notation::NotAPlace;
use super::path::Step;
use units::Reader;

/// Where an ELF file's own addresses lie among those of the names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mapping {
    /// The name's address is the file's own plus this.
    Shifted(i128),
    /// Load segments put each address somewhere else.
    Segments(Vec<Segment>),
}

/// A load segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    /// The file's own address of its first byte.
    pub(super) start: u64,
    /// Bytes in memory.
    pub(super) length: u64,
    /// Physical address of its first byte.
    pub(super) physical: u64,
}

impl Mapping {
    /// The file's own addresses that may be meant by the address of a name.
    fn own(&self, address: u64) -> Vec<u64> {
        match self {
            Self::Shifted(shift) => {
                u64::try_from(i128::from(address) - shift).ok().into_iter().collect()
            }
            Self::Segments(segments) => {
                let own = |segment: &Segment| {
                    let offset =
                        address.checked_sub(segment.physical).filter(|o| *o < segment.length)?;
                    segment.start.checked_add(offset)
                };
                segments.iter().filter_map(own).collect()
            }
        }
    }
}

/// Some bytes of a named thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bytes {
    /// Bytes of the thing before them.
    pub(super) offset: u64,
    /// How many there are, at least 1.
    pub(super) length: u64,
}

/// The debug information of an ELF file; it is opened when it is needed first.
#[derive(Debug)]
pub(super) struct DebugInfo {
    path: PathBuf,
    mapping: Mapping,
    reader: Mutex<Option<Result<Reader, NotAPlace>>>,
}

impl DebugInfo {
    /// That of the file at `path`.
    pub(super) fn of(path: PathBuf, mapping: Mapping) -> Arc<Self> {
        Arc::new(Self { path, mapping, reader: Mutex::new(None) })
    }

    /// The bytes of a field or an element of the variable that `named` stands for.
    ///
    /// Fails for what is not there, for pointers, if the debug information does not tell, and beyond its
    /// limits.
    pub(super) fn find(&self, named: &NamedRange, steps: &[Step<'_>]) -> Result<Bytes, NotAPlace> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let reader = reader.get_or_insert_with(|| Reader::open(&self.path));
        let reader = reader.as_mut().map_err(|wrong| wrong.clone())?;
        types::find(reader, &self.mapping.own(named.start), named, steps)
    }
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;

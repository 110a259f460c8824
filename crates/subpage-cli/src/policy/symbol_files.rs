//! The files of symbols that the rules of a policy name.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use super::draft::Draft;
use super::names::Names;
use super::place::{AddressSpace, Place, SymbolFormat};
use super::symbol_file::read_symbols;

/// The symbols of each file, or why it has none; each is read once.
#[derive(Debug, Clone, Default)]
pub(super) struct SymbolFiles(
    HashMap<(PathBuf, SymbolFormat, AddressSpace), Result<Names, String>>,
);

impl SymbolFiles {
    /// The symbols of a file, which is read if it was not before.
    pub(super) fn names(
        &mut self,
        path: PathBuf,
        format: SymbolFormat,
        space: AddressSpace,
    ) -> &Result<Names, String> {
        self.0.entry((path, format, space)).or_insert_with_key(|(path, format, space)| {
            read_symbols(path, *format, *space).map_err(|error| error.to_string())
        })
    }
}

impl Draft {
    /// The files of symbols of this guest that rules name, each once, and what they say; a file that cannot
    /// be read is among the mistakes of [`Draft::resolve`].
    ///
    /// Those of a program's own addresses are of no guest.
    pub fn guest_symbols(&mut self) -> Vec<(PathBuf, AddressSpace, Names)> {
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        for policy in &self.files {
            for rule in &policy.rules {
                let Place::Symbol { file, format, space, .. } = &rule.place else { continue };
                let path = policy.source.relative(&file.value);
                let is_of_guest = *space != AddressSpace::Virtual;
                if is_of_guest
                    && seen.insert((path.clone(), *format, *space))
                    && let Ok(names) = self.symbols.names(path.clone(), *format, *space)
                {
                    found.push((path, *space, names.clone()));
                }
            }
        }
        found
    }

    /// Where the rules' files of kernel symbols put `first`, the symbol at the first byte of a kernel:
    /// its guest-physical address with the rule's bias, for each file and bias once.
    ///
    /// An ELF file whose physical addresses are taken says itself where it lies, and one of a program's
    /// own addresses is of no kernel. Files that cannot be read are among the mistakes of
    /// [`Draft::resolve`], which does not read the others again.
    pub fn kernel_starts(&mut self, first: &str) -> Vec<(PathBuf, i128)> {
        let mut starts = Vec::new();
        let mut seen = HashSet::new();
        for policy in &self.files {
            for rule in &policy.rules {
                let Place::Symbol { file, format, space, bias, .. } = &rule.place else { continue };
                let path = policy.source.relative(&file.value);
                let bias = bias.as_ref().map_or(0, |bias| bias.value);
                if *space != AddressSpace::Kernel || !seen.insert((path.clone(), *format, bias)) {
                    continue;
                }
                if let Ok(names) = self.symbols.names(path.clone(), *format, *space)
                    && let Ok(found) = names.find_exactly(first)
                {
                    starts.push((path, i128::from(found.start) + bias));
                }
            }
        }
        starts
    }
}

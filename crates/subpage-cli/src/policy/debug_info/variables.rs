//! Variables by their addresses.

use std::collections::HashSet;

use super::super::notation::NotAPlace;
use super::index;
use super::sections::Section;
use super::units::{At, Reader, UnitId};
use super::work::too_large;

/// Most variables of a file that have an address; a Linux kernel has some 100,000.
const MAX_VARIABLES: usize = 4_000_000;

/// Looks for a variable by an index of the file, before all units are read for the next.
const MAX_LOOKS: usize = 64;

/// What has been read of a file's variables.
#[derive(Debug, Default)]
pub(super) struct Variables {
    /// By address; sorted.
    found: Vec<(u64, At)>,
    read: HashSet<u64>,
    /// Whether all units have been read.
    complete: bool,
    looks: usize,
    /// What was wrong first in what was left out.
    damage: Option<NotAPlace>,
    /// Whether a unit's entries are in another file.
    split: bool,
}

impl Variables {
    /// Keeps in mind what is wrong with a part that is left out.
    pub(super) fn note(&mut self, wrong: NotAPlace) {
        self.damage.get_or_insert(wrong);
    }

    /// The variables at one of these addresses.
    fn at_any(&self, addresses: &[u64]) -> Vec<At> {
        addresses.iter().flat_map(|address| self.at(*address)).collect()
    }

    /// The variables at an address.
    fn at(&self, address: u64) -> Vec<At> {
        let first = self.found.partition_point(|(other, _)| *other < address);
        let same = self.found[first..].iter().take_while(|(other, _)| *other == address);
        same.map(|(_, at)| *at).collect()
    }
}

impl Reader {
    /// The variables that lie at one of these addresses; `name` is that of the symbol there.
    ///
    /// Those of the units that were read for other names, and of the units that an index of the file
    /// gives for this one; others may lie there as well: see [`all_variables_at`](Self::all_variables_at).
    pub(super) fn variables_at(
        &mut self,
        addresses: &[u64],
        name: &str,
    ) -> Result<Vec<At>, NotAPlace> {
        if !self.variables.complete && self.variables.looks < MAX_LOOKS {
            self.variables.looks += 1;
            let units = index::units_of(self, name, addresses)?;
            self.scan(&units)?;
        }
        Ok(self.variables.at_any(addresses))
    }

    /// The same of all units.
    pub(super) fn all_variables_at(&mut self, addresses: &[u64]) -> Result<Vec<At>, NotAPlace> {
        if !self.variables.complete {
            let all = self.starts()?;
            self.scan(&all)?;
            self.variables.complete = true;
        }
        Ok(self.variables.at_any(addresses))
    }

    /// Why a variable is not there, if something was left out.
    pub(super) fn left_out(&self) -> Option<NotAPlace> {
        if self.variables.split {
            return Some(super::sections::wrong(
                format!(
                    "the debug information of {} lies in other files (.dwo)",
                    self.sections.path()
                ),
                "compile it without `-gsplit-dwarf`, or write NAME+OFFSET+LENGTH",
            ));
        }
        self.variables.damage.clone()
    }

    /// Reads the variables of units that were not read before.
    fn scan(&mut self, starts: &[u64]) -> Result<(), NotAPlace> {
        for start in starts {
            if self.variables.read.insert(*start) {
                self.scan_unit(UnitId { section: Section::Info, start: *start })?;
            }
        }
        self.variables.found.sort_unstable_by_key(|(address, at)| (*address, at.unit.start));
        Ok(())
    }

    /// The same of one; fails at a limit only.
    fn scan_unit(&mut self, id: UnitId) -> Result<(), NotAPlace> {
        let unit = match self.read_unit(id) {
            Ok(unit) => unit,
            Err(wrong) => {
                self.variables.note(wrong);
                // At the limit it fails again.
                return self.work.charge(1);
            }
        };
        self.variables.split |= unit.is_split;
        let header = unit.header();
        let Ok(mut entries) = header.entries_raw(&unit.abbreviations, None) else { return Ok(()) };
        while !entries.is_empty() {
            let offset = entries.next_offset().0;
            let read = match entries.read_abbreviation() {
                Ok(read) => read,
                Err(error) => {
                    let wrong = self.sections.damaged(error);
                    self.variables.note(wrong);
                    break;
                }
            };
            let Some(abbreviation) = read else {
                self.work.charge(1)?;
                continue;
            };
            let attributes = abbreviation.attributes();
            self.work.charge(1 + attributes.len())?;
            let is_variable = abbreviation.tag() == gimli::DW_TAG_variable;
            let mut result = Ok(());
            if is_variable {
                for specification in attributes {
                    let attribute = match entries.read_attribute(*specification) {
                        Ok(attribute) => attribute,
                        Err(error) => {
                            result = Err(error);
                            break;
                        }
                    };
                    if attribute.name() == gimli::DW_AT_location
                        && let Some(address) = self.address(&unit, &attribute.value())
                    {
                        if self.variables.found.len() == MAX_VARIABLES {
                            return Err(too_large("has more than 4,000,000 variables"));
                        }
                        self.variables.found.push((address, At { unit: id, offset }));
                    }
                }
            } else {
                result = entries.skip_attributes(attributes);
            }
            if let Err(error) = result {
                let wrong = self.sections.damaged(error);
                self.variables.note(wrong);
                break;
            }
        }
        Ok(())
    }
}

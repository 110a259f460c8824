//! Units of debug information, read one at a time.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use gimli::{
    Abbreviations, AttributeValue, DebugAbbrev, DebugAbbrevOffset, DebugInfo, DebugTypes,
    EndianSlice, RunTimeEndian, UnitHeader, UnitType,
};

use super::super::notation::NotAPlace;
use super::sections::{Section, Sections};
use super::variables::Variables;
use super::work::{Work, too_large};

/// Longest unit in bytes: 512 MiB. A program that is optimized as a whole may be one unit.
const MAX_UNIT_BYTES: u64 = 512 << 20;

/// Longest table of abbreviations in bytes: those of compilers have some thousand.
const MAX_TABLE_BYTES: u64 = 1 << 20;

/// Most units of a file.
const MAX_UNITS: usize = 1_000_000;

/// Bytes of units that are held for the next look.
pub(super) const MAX_HELD_BYTES: usize = 64 << 20;

/// Most units that are held for the next look.
const MAX_HELD: usize = 64;

/// Bytes of memory for each of a table of abbreviations, at most.
const TABLE_COST: usize = 16;

pub(super) type Slice<'a> = EndianSlice<'a, RunTimeEndian>;

/// A unit by the section that has it and its offset there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct UnitId {
    /// [`Section::Info`] or [`Section::Types`].
    pub(super) section: Section,
    pub(super) start: u64,
}

/// An entry of a unit by its offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct At {
    pub(super) unit: UnitId,
    pub(super) offset: usize,
}

/// A unit that has been read.
#[derive(Debug)]
pub(super) struct Unit {
    bytes: Vec<u8>,
    /// Bytes of its table of abbreviations in the file.
    table_bytes: usize,
    endian: RunTimeEndian,
    is_types: bool,
    pub(super) abbreviations: Abbreviations,
    pub(super) addr_base: u64,
    pub(super) str_offsets_base: u64,
    /// Number of the first element of an array in its language; none if it does not say which it is.
    pub(super) lower_bound: Option<i64>,
    /// A part that other units have in common.
    pub(super) is_partial: bool,
    /// Its entries are in another file.
    pub(super) is_split: bool,
}

impl Unit {
    /// Its header.
    pub(super) fn header(&self) -> UnitHeader<Slice<'_>> {
        header(&self.bytes, self.endian, self.is_types).expect("it was right when it was read")
    }
}

fn header(
    bytes: &[u8],
    endian: RunTimeEndian,
    is_types: bool,
) -> Result<UnitHeader<Slice<'_>>, gimli::Error> {
    let header = if is_types {
        DebugTypes::new(bytes, endian).units().next()?
    } else {
        DebugInfo::new(bytes, endian).units().next()?
    };
    header.ok_or(gimli::Error::MissingUnitDie)
}

/// The debug information of one file.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) sections: Sections,
    pub(super) work: Work,
    pub(super) variables: Variables,
    /// Number of the first element of an array in the language of the variable that is looked at.
    pub(super) lower_bound: Option<i64>,
    held: HashMap<UnitId, Arc<Unit>>,
    held_bytes: usize,
    /// Start of every unit of `.debug_info`, ascending, once it was asked for.
    starts: Option<Arc<Vec<u64>>>,
    /// Every type that is found by its signature, once one was asked for.
    signatures: Option<HashMap<u64, At>>,
}

impl Reader {
    /// That of the file at `path`.
    pub(super) fn open(path: &Path) -> Result<Self, NotAPlace> {
        Ok(Self {
            sections: Sections::open(path)?,
            work: Work::of_a_file(),
            variables: Variables::default(),
            lower_bound: None,
            held: HashMap::new(),
            held_bytes: 0,
            starts: None,
            signatures: None,
        })
    }

    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Length in bytes of the unit at `start`, with the field that tells it.
    fn unit_length(&mut self, id: UnitId) -> Result<u64, NotAPlace> {
        self.work.charge(1)?;
        let length = match self.sections.number(id.section, id.start, 4)? {
            0xffff_ffff => self.sections.number(id.section, id.start + 4, 8)?.checked_add(12),
            length => Some(length + 4),
        };
        let rest = self.sections.length(id.section) - id.start;
        length
            .filter(|length| *length <= rest)
            .ok_or_else(|| self.sections.damaged("a unit is cut off"))
    }

    /// Starts of the units of a section, up to the first whose length is wrong.
    fn starts_of(&mut self, section: Section) -> Result<Vec<u64>, NotAPlace> {
        let mut starts = Vec::new();
        let mut start = 0;
        while start < self.sections.length(section) {
            if starts.len() == MAX_UNITS {
                return Err(too_large("has more than 1,000,000 units"));
            }
            match self.unit_length(UnitId { section, start }) {
                Ok(length) => {
                    starts.push(start);
                    start += length;
                }
                Err(wrong) => {
                    self.variables.note(wrong);
                    break;
                }
            }
        }
        Ok(starts)
    }

    /// Start of every unit of `.debug_info`.
    pub(super) fn starts(&mut self) -> Result<Arc<Vec<u64>>, NotAPlace> {
        if self.starts.is_none() {
            self.starts = Some(Arc::new(self.starts_of(Section::Info)?));
        }
        Ok(Arc::clone(self.starts.as_ref().expect("just read")))
    }

    /// The entry at an offset of `.debug_info`.
    pub(super) fn entry_at(&mut self, offset: u64) -> Result<At, NotAPlace> {
        let starts = self.starts()?;
        let unit = starts[..starts.partition_point(|start| *start <= offset)].last();
        let found = unit.and_then(|start| {
            let unit = UnitId { section: Section::Info, start: *start };
            Some(At { unit, offset: usize::try_from(offset - start).ok()? })
        });
        found.ok_or_else(|| self.sections.damaged("a type is in no unit"))
    }

    /// The type with that signature.
    pub(super) fn signed(&mut self, signature: u64) -> Result<At, NotAPlace> {
        if self.signatures.is_none() {
            let mut found = HashMap::new();
            for section in [Section::Info, Section::Types] {
                for start in self.starts_of(section)? {
                    let id = UnitId { section, start };
                    let length = self.unit_length(id)?;
                    self.work.charge(usize::try_from(length / 64).unwrap_or(usize::MAX))?;
                    let Ok(bytes) = self.read_bytes(id, length) else { continue };
                    let is_types = section == Section::Types;
                    if let Ok(header) = header(&bytes, self.sections.endian, is_types)
                        && let UnitType::Type { type_signature, type_offset } = header.type_()
                    {
                        found.insert(type_signature.0, At { unit: id, offset: type_offset.0 });
                    }
                }
            }
            self.signatures = Some(found);
        }
        let found = self.signatures.as_ref().and_then(|all| all.get(&signature)).copied();
        found.ok_or_else(|| self.sections.damaged("a type is not there"))
    }

    fn read_bytes(&mut self, id: UnitId, length: u64) -> Result<Vec<u8>, NotAPlace> {
        self.sections.read(id.section, id.start, length, MAX_UNIT_BYTES)
    }

    /// The unit, read or held.
    pub(super) fn unit(&mut self, id: UnitId) -> Result<Arc<Unit>, NotAPlace> {
        if let Some(unit) = self.held.get(&id) {
            return Ok(Arc::clone(unit));
        }
        let unit = Arc::new(self.read_unit(id)?);
        let bytes = unit.bytes.len() + unit.table_bytes * TABLE_COST;
        if self.held.len() == MAX_HELD || self.held_bytes + bytes > MAX_HELD_BYTES {
            self.held.clear();
            self.held_bytes = 0;
        }
        self.held_bytes += bytes;
        self.held.insert(id, Arc::clone(&unit));
        Ok(unit)
    }

    /// The unit, which is not kept.
    pub(super) fn read_unit(&mut self, id: UnitId) -> Result<Unit, NotAPlace> {
        let length = self.unit_length(id)?;
        // Again and again, if units that refer to each other cannot be held together.
        self.work.charge(usize::try_from(length / 2).unwrap_or(usize::MAX))?;
        let bytes = self.read_bytes(id, length)?;
        let endian = self.sections.endian;
        let is_types = id.section == Section::Types;
        let damaged = |sections: &Sections, error: gimli::Error| match error {
            gimli::Error::UnknownVersion(version) => {
                sections.damaged(format_args!("DWARF version {version} is not known here"))
            }
            other => sections.damaged(other),
        };
        let header =
            header(&bytes, endian, is_types).map_err(|error| damaged(&self.sections, error))?;
        let offset = header.debug_abbrev_offset().0 as u64;
        let rest = self.sections.length(Section::Abbrev).saturating_sub(offset);
        let table = self.abbreviation_table(offset, rest.min(MAX_TABLE_BYTES))?;
        self.work.charge(table.len())?;
        let abbreviations = DebugAbbrev::new(&table, endian)
            .abbreviations(DebugAbbrevOffset(0))
            .map_err(|error| damaged(&self.sections, error))?;
        let mut unit = Unit {
            endian,
            is_types,
            abbreviations,
            addr_base: 0,
            // Behind the header of the only table of such a file.
            str_offsets_base: 0,
            lower_bound: None,
            is_partial: false,
            is_split: matches!(header.type_(), UnitType::Skeleton(_)),
            bytes: Vec::new(),
            table_bytes: table.len(),
        };
        let mut entries = header
            .entries_raw(&unit.abbreviations, None)
            .map_err(|error| damaged(&self.sections, error))?;
        let root = entries.read_abbreviation().map_err(|error| damaged(&self.sections, error))?;
        unit.is_partial = root.is_some_and(|root| root.tag() == gimli::DW_TAG_partial_unit);
        for specification in root.map_or(&[][..], |root| root.attributes()) {
            self.work.charge(1)?;
            let attribute = entries
                .read_attribute(*specification)
                .map_err(|error| damaged(&self.sections, error))?;
            match (attribute.name(), attribute.value()) {
                (_, AttributeValue::DebugAddrBase(base)) => unit.addr_base = base.0 as u64,
                (_, AttributeValue::DebugStrOffsetsBase(base)) => {
                    unit.str_offsets_base = base.0 as u64;
                }
                (_, AttributeValue::Language(language)) => {
                    let first = language.default_lower_bound().unwrap_or(0);
                    unit.lower_bound = Some(i64::try_from(first).unwrap_or(0));
                }
                (gimli::DW_AT_dwo_name | gimli::DW_AT_GNU_dwo_name, _) => unit.is_split = true,
                _ => {}
            }
        }
        unit.bytes = bytes;
        Ok(unit)
    }

    /// The table of abbreviations at `offset`, cut where it ends.
    fn abbreviation_table(&mut self, offset: u64, most: u64) -> Result<Vec<u8>, NotAPlace> {
        // Those of compilers are short: the rest is read where it is needed.
        let mut length = most.min(1 << 14);
        loop {
            let mut table = self.sections.read(Section::Abbrev, offset, length, MAX_TABLE_BYTES)?;
            self.work.charge(table.len() / 16)?;
            if let Some(end) = table_end(&table) {
                table.truncate(end);
                return Ok(table);
            }
            if length == most {
                return Err(match most {
                    MAX_TABLE_BYTES => too_large("has a table of abbreviations that is too large"),
                    _ => self.sections.damaged("a table of abbreviations is cut off"),
                });
            }
            length = most;
        }
    }
}

/// Bytes up to the end of the table of abbreviations at the start of `bytes`, if it is in them.
fn table_end(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    // The value is told apart from 0 only.
    let mut number = || {
        let length = bytes.get(at..)?.iter().position(|byte| byte & 0x80 == 0)? + 1;
        let value = bytes[at..at + length].iter().any(|byte| byte & 0x7f != 0);
        let low = bytes[at] & 0x7f;
        let is_short = length == 1;
        at += length;
        Some((value, is_short.then_some(low), at))
    };
    loop {
        let (code, _, end) = number()?;
        if !code {
            return Some(end);
        }
        number()?;
        // Whether it has children, one byte: a longer one is a mistake that is found later.
        number()?;
        loop {
            let (name, _, _) = number()?;
            let (form, low, _) = number()?;
            if u16::from(low.unwrap_or(0)) == gimli::DW_FORM_implicit_const.0 {
                number()?;
            }
            if !name && !form {
                break;
            }
        }
    }
}

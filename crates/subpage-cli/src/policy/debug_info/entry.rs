//! One entry of a unit: a variable, a type, a member.

use gimli::{AttributeValue, DebugAddrIndex, DwAt, DwTag, Encoding, Operation, ReaderOffset};

use super::super::notation::NotAPlace;
use super::sections::{MAX_TEXT_BYTES, Section};
use super::units::{At, Reader, Slice, Unit, UnitId};
use super::work::too_large;

/// Most members or dimensions of one type.
const MAX_CHILDREN: usize = 1 << 16;

/// Most bytes of the names of one structure's members.
const MAX_TEXTS_BYTES: usize = 16 << 20;

/// Where the entry says that something is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reference {
    /// An entry of a unit.
    Entry(At),
    /// An entry anywhere in `.debug_info`.
    Anywhere(u64),
    /// A type by its signature.
    Signed(u64),
    /// In another file.
    Elsewhere,
}

/// A number that an entry may tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Number {
    #[default]
    Absent,
    Known(i128),
    /// Known to the running program only.
    Computed,
}

impl Number {
    /// The number, if it is known and not negative.
    pub(super) fn known(self) -> Option<u64> {
        match self {
            Self::Known(number) => u64::try_from(number).ok(),
            Self::Absent | Self::Computed => None,
        }
    }
}

/// What is of interest of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) at: At,
    pub(super) tag: DwTag,
    pub(super) has_children: bool,
    pub(super) name: Option<String>,
    pub(super) linkage_name: Option<String>,
    pub(super) its_type: Option<Reference>,
    /// The entry that has what this one leaves out.
    pub(super) origin: Option<Reference>,
    pub(super) signature: Option<Reference>,
    pub(super) is_declaration: bool,
    pub(super) byte_size: Number,
    /// Of a member, in bytes.
    pub(super) location: Number,
    pub(super) bit_size: Number,
    /// From the most significant bit of its storage on.
    pub(super) bit_offset: Number,
    /// From the first bit of the whole on.
    pub(super) data_bit_offset: Number,
    pub(super) count: Number,
    pub(super) lower_bound: Number,
    pub(super) upper_bound: Number,
    pub(super) byte_stride: Number,
    pub(super) bit_stride: Number,
}

impl Entry {
    fn of(at: At, tag: DwTag, has_children: bool) -> Self {
        let absent = Number::Absent;
        Self {
            at,
            tag,
            has_children,
            name: None,
            linkage_name: None,
            its_type: None,
            origin: None,
            signature: None,
            is_declaration: false,
            byte_size: absent,
            location: absent,
            bit_size: absent,
            bit_offset: absent,
            data_bit_offset: absent,
            count: absent,
            lower_bound: absent,
            upper_bound: absent,
            byte_stride: absent,
            bit_stride: absent,
        }
    }
}

impl Reader {
    /// The entry at `at`.
    pub(super) fn entry(&mut self, at: At) -> Result<Entry, NotAPlace> {
        let found = self.entries(at, 1, |_| true)?.pop();
        found.ok_or_else(|| self.sections.damaged("there is no entry at an offset"))
    }

    /// The children of an entry that are members or dimensions.
    pub(super) fn children(&mut self, of: &Entry) -> Result<Vec<Entry>, NotAPlace> {
        if !of.has_children {
            return Ok(Vec::new());
        }
        let wanted = |tag| {
            matches!(
                tag,
                gimli::DW_TAG_member
                    | gimli::DW_TAG_inheritance
                    | gimli::DW_TAG_subrange_type
                    | gimli::DW_TAG_enumeration_type
            )
        };
        self.entries(of.at, MAX_CHILDREN, wanted)
    }

    /// The entry at `at` alone, if `most` is 1, else its children with a tag that is wanted.
    fn entries(
        &mut self,
        at: At,
        most: usize,
        wanted: impl Fn(DwTag) -> bool,
    ) -> Result<Vec<Entry>, NotAPlace> {
        let unit = self.unit(at.unit)?;
        let header = unit.header();
        let mut found = Vec::new();
        let mut text_bytes = 0;
        let damaged = |reader: &Self, error: gimli::Error| reader.sections.damaged(error);
        let mut entries = header
            .entries_raw(&unit.abbreviations, Some(gimli::UnitOffset(at.offset)))
            .map_err(|error| damaged(self, error))?;
        let depth = isize::from(most > 1);
        while !entries.is_empty() {
            let (offset, level) = (entries.next_offset().0, entries.next_depth());
            let read = entries.read_abbreviation().map_err(|error| damaged(self, error))?;
            let Some(abbreviation) = read else {
                self.work.charge(1)?;
                if entries.next_depth() <= 0 {
                    break;
                }
                continue;
            };
            self.work.charge(1 + abbreviation.attributes().len())?;
            if level != depth || !wanted(abbreviation.tag()) {
                let skipped = entries.skip_attributes(abbreviation.attributes());
                skipped.map_err(|error| damaged(self, error))?;
                continue;
            }
            if found.len() == most {
                return Err(too_large("has a type of more than 65,536 members"));
            }
            let at = At { unit: at.unit, offset };
            let mut entry = Entry::of(at, abbreviation.tag(), abbreviation.has_children());
            for specification in abbreviation.attributes() {
                let attribute = entries.read_attribute(*specification);
                let attribute = attribute.map_err(|error| damaged(self, error))?;
                self.take(&mut entry, &unit, attribute.name(), attribute.value())?;
            }
            for text in [&entry.name, &entry.linkage_name].into_iter().flatten() {
                text_bytes += text.len();
            }
            if text_bytes > MAX_TEXTS_BYTES {
                return Err(too_large("has a structure whose names are too long"));
            }
            found.push(entry);
            if most == 1 {
                break;
            }
        }
        Ok(found)
    }

    fn take(
        &mut self,
        entry: &mut Entry,
        unit: &Unit,
        name: DwAt,
        value: AttributeValue<Slice<'_>>,
    ) -> Result<(), NotAPlace> {
        let encoding = unit.header().encoding();
        let reference = || reference(entry.at.unit, &value);
        let number = || number(&value, encoding);
        match name {
            gimli::DW_AT_name => entry.name = self.string(unit, &value)?,
            gimli::DW_AT_linkage_name | gimli::DW_AT_MIPS_linkage_name => {
                entry.linkage_name = self.string(unit, &value)?;
            }
            gimli::DW_AT_type => entry.its_type = reference(),
            gimli::DW_AT_specification | gimli::DW_AT_abstract_origin => {
                entry.origin = reference();
            }
            gimli::DW_AT_signature => entry.signature = reference(),
            gimli::DW_AT_declaration => {
                entry.is_declaration = value == AttributeValue::Flag(true);
            }
            gimli::DW_AT_byte_size => entry.byte_size = number(),
            gimli::DW_AT_data_member_location => entry.location = number(),
            gimli::DW_AT_bit_size => entry.bit_size = number(),
            gimli::DW_AT_bit_offset => entry.bit_offset = number(),
            gimli::DW_AT_data_bit_offset => entry.data_bit_offset = number(),
            gimli::DW_AT_count => entry.count = number(),
            gimli::DW_AT_lower_bound => entry.lower_bound = signed(&value, encoding),
            gimli::DW_AT_upper_bound => entry.upper_bound = signed(&value, encoding),
            gimli::DW_AT_byte_stride => entry.byte_stride = number(),
            gimli::DW_AT_bit_stride => entry.bit_stride = number(),
            _ => {}
        }
        Ok(())
    }

    /// The text of an attribute, cut if it is long.
    fn string(
        &mut self,
        unit: &Unit,
        value: &AttributeValue<Slice<'_>>,
    ) -> Result<Option<String>, NotAPlace> {
        let text = match value {
            AttributeValue::String(text) => {
                let text = text.slice();
                text[..text.len().min(MAX_TEXT_BYTES)].to_vec()
            }
            AttributeValue::DebugStrRef(offset) => {
                self.sections.text(Section::Str, offset.0 as u64)?
            }
            AttributeValue::DebugLineStrRef(offset) => {
                self.sections.text(Section::LineStr, offset.0 as u64)?
            }
            AttributeValue::DebugStrOffsetsIndex(index) => {
                let word = unit.header().format().word_size();
                let at = (index.0 as u64).checked_mul(u64::from(word));
                let at = at.and_then(|at| at.checked_add(unit.str_offsets_base));
                let at = at.ok_or_else(|| self.sections.damaged("a text is not there"))?;
                let offset = self.sections.number(Section::StrOffsets, at, word.into())?;
                self.sections.text(Section::Str, offset)?
            }
            _ => return Ok(None),
        };
        self.work.charge(8 * text.len())?;
        Ok(Some(String::from_utf8_lossy(&text).into_owned()))
    }

    /// The address that a location says, if it is one that holds always.
    pub(super) fn address(&self, unit: &Unit, value: &AttributeValue<Slice<'_>>) -> Option<u64> {
        let encoding = unit.header().encoding();
        let mut operations = value.exprloc_value()?.operations(encoding);
        let mut address = match operations.next().ok()?? {
            Operation::Address { address } => address,
            Operation::AddressIndex { index } => self.indexed(unit, index, encoding)?,
            _ => return None,
        };
        if let Some(operation) = operations.next().ok()? {
            let Operation::PlusConstant { value } = operation else { return None };
            address = address.checked_add(value)?;
        }
        operations.next().ok()?.is_none().then_some(address)
    }

    fn indexed(
        &self,
        unit: &Unit,
        index: DebugAddrIndex<usize>,
        encoding: Encoding,
    ) -> Option<u64> {
        let bytes = encoding.address_size;
        let at = index.0.into_u64().checked_mul(bytes.into())?.checked_add(unit.addr_base)?;
        self.sections.number(Section::Addr, at, usize::from(bytes.min(8))).ok()
    }
}

fn reference(unit: UnitId, value: &AttributeValue<Slice<'_>>) -> Option<Reference> {
    Some(match value {
        AttributeValue::UnitRef(offset) => Reference::Entry(At { unit, offset: offset.0 }),
        AttributeValue::DebugInfoRef(offset) => Reference::Anywhere(offset.0 as u64),
        AttributeValue::DebugTypesRef(signature) => Reference::Signed(signature.0),
        AttributeValue::DebugInfoRefSup(_) => Reference::Elsewhere,
        _ => return None,
    })
}

/// A number, or an offset that the old form of an expression adds.
fn number(value: &AttributeValue<Slice<'_>>, encoding: Encoding) -> Number {
    if let Some(number) = value.udata_value() {
        return Number::Known(number.into());
    }
    let offset = value.exprloc_value().and_then(|expression| {
        let mut operations = expression.operations(encoding);
        match (operations.next().ok()??, operations.next().ok()?) {
            (Operation::PlusConstant { value }, None) => Some(value),
            _ => None,
        }
    });
    offset.map_or(Number::Computed, |offset| Number::Known(offset.into()))
}

/// A bound, which may be -1: some compilers say so of an array without an element, in any width from 4
/// bytes on.
fn signed(value: &AttributeValue<Slice<'_>>, encoding: Encoding) -> Number {
    match value {
        AttributeValue::Sdata(number) => Number::Known((*number).into()),
        AttributeValue::Data4(u32::MAX)
        | AttributeValue::Data8(u64::MAX)
        | AttributeValue::Udata(u64::MAX) => Number::Known(-1),
        other => number(other, encoding),
    }
}

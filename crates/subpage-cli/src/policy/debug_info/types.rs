//! From a variable's type to the bytes of its fields and elements.

use std::collections::HashSet;

use super::super::names::{NamedRange, did_you_mean, nearest};
use super::super::notation::NotAPlace;
use super::super::path::Step;
use super::Bytes;
use super::arrays::Kind;
use super::entry::{Entry, Number, Reference};
use super::sections::wrong;
use super::units::{At, Reader};
use super::wording::{counted, cut, listed, no_structure, shown, unusual};
use super::work::too_large;

/// Most steps from a type to what it stands for: names of names, arrays of arrays.
pub(super) const MAX_CHAIN: usize = 64;

/// Most structures without a name, and bases, that are searched for one field.
const MAX_PARTS: usize = 1024;

/// Most fields that are kept for a message about one that is not there, and longest name of such a one.
const MAX_NAMES: usize = 4096;
const MAX_NAME_BYTES: usize = 256;

/// The bytes that `steps` lead to in the variable that `named` stands for, which lies at one of
/// `addresses`.
pub(super) fn find(
    reader: &mut Reader,
    addresses: &[u64],
    named: &NamedRange,
    steps: &[Step<'_>],
) -> Result<Bytes, NotAPlace> {
    let its_type = variable_type(reader, addresses, named)?;
    let mut kind = Kind::Type(Some(its_type));
    let mut path = named.name.clone();
    let mut offset = 0_u64;
    let beyond = || wrong(format!("`{}` does not reach so far", named.name), "");
    // Bytes from here to the end of what this is a part of, if that is known.
    let mut within = (named.length > 0).then_some(named.length);
    same_length(reader, &kind, named)?;
    for step in steps {
        let (more, next) = match step {
            Step::Field(field) => reader.field(kind, &path, field)?,
            Step::Index(index) => reader.element(kind, &path, *index)?,
        };
        let inner = match step {
            Step::Field(field) => format!("{path}.{field}"),
            Step::Index(index) => format!("{path}[{index}]"),
        };
        let outer = std::mem::replace(&mut path, inner);
        offset = offset.checked_add(more).ok_or_else(beyond)?;
        kind = next;
        within = within.map(|within| within.saturating_sub(more));
        if let Some(length) = reader.length(kind.clone(), None)? {
            if within.is_some_and(|room| length > room) {
                let end = offset.checked_add(length).ok_or_else(beyond)?;
                return Err(too_far(&path, end, named, &outer));
            }
            within = Some(length);
        }
    }
    let Some(length) = reader.length(kind, within)? else {
        return Err(wrong(
            format!("nothing says how long `{path}` is"),
            format!("name one element, `{path}[0]`, or write NAME+OFFSET+LENGTH"),
        ));
    };
    let end = offset.checked_add(length).ok_or_else(beyond)?;
    if length == 0 {
        return Err(wrong(format!("`{path}` has no byte"), "name what has bytes"));
    }
    if named.length > 0 && end > named.length {
        return Err(too_far(&path, end, named, &named.name));
    }
    Ok(Bytes { offset, length })
}

/// About what ends behind what it is in.
fn too_far(path: &str, end: u64, named: &NamedRange, outer: &str) -> NotAPlace {
    let NamedRange { name, length, .. } = named;
    let message = if *length > 0 && end > *length {
        format!("`{path}` ends at byte {end} of `{name}`, which has {length} bytes")
    } else {
        format!("`{path}` ends behind `{outer}`, which it is in")
    };
    wrong(message, "name less of it; if it is all there, the debug information is of another build")
}

/// Refuses a type that is not as long as its symbol: it is that of something else, or there is more to it
/// than is known here. A structure may be shorter: an array without a count may end it.
fn same_length(reader: &mut Reader, kind: &Kind, named: &NamedRange) -> Result<(), NotAPlace> {
    let Some(length) = reader.length(kind.clone(), None)? else { return Ok(()) };
    let is_structure = reader.looked_through(kind.clone())?.is_err();
    if named.length == 0
        || length == named.length
        || length < named.length && is_structure && reader.ends_open(kind.clone())?
    {
        return Ok(());
    }
    Err(wrong(
        format!(
            "`{}` has {} bytes, and {length} by its type in the debug information of {}",
            named.name,
            named.length,
            reader.sections.path()
        ),
        "take the debug information of this very build, or write NAME+OFFSET+LENGTH",
    ))
}

/// The type of the variable at one of these addresses.
fn variable_type(
    reader: &mut Reader,
    addresses: &[u64],
    named: &NamedRange,
) -> Result<Reference, NotAPlace> {
    let near = reader.variables_at(addresses, &named.name)?;
    if let Found::Called(its_type) = among(reader, &near, named)? {
        return Ok(its_type);
    }
    // Another name for the same bytes counts only where none of all is called so.
    let all = reader.all_variables_at(addresses)?;
    match among(reader, &all, named)? {
        Found::Called(its_type) | Found::AsLong(its_type) => Ok(its_type),
        Found::Nothing => Err(reader.left_out().unwrap_or_else(|| {
            wrong(
                format!(
                    "the debug information of {} does not describe `{}`",
                    reader.sections.path(),
                    named.name
                ),
                "compile the file that defines it with `-g`, or write NAME+OFFSET+LENGTH",
            )
        })),
    }
}

/// What some variables tell of a name.
enum Found {
    /// One of them is called so, and has this type.
    Called(Reference),
    /// One of them stands for as many bytes: perhaps another name for the same.
    AsLong(Reference),
    Nothing,
}

/// What these variables, all at the address of `named`, tell of it.
fn among(reader: &mut Reader, variables: &[At], named: &NamedRange) -> Result<Found, NotAPlace> {
    let name = &named.name;
    let plain = name.split('.').next().unwrap_or(name);
    let mut found = Found::Nothing;
    for at in variables {
        let mut entry = reader.entry(*at)?;
        let (mut is_called_so, mut its_type) = (false, None);
        for _ in 0..MAX_CHAIN {
            let names = [&entry.name, &entry.linkage_name];
            is_called_so |=
                names.into_iter().flatten().any(|other| other == name || other == plain);
            its_type = its_type.or(entry.its_type);
            let Some(origin) = entry.origin else { break };
            let at = reader.resolve(origin)?;
            entry = reader.entry(at)?;
        }
        let Some(its_type) = its_type else { continue };
        if is_called_so {
            return Ok(Found::Called(its_type));
        }
        let length = reader.length(Kind::Type(Some(its_type)), None)?;
        if named.length > 0 && length == Some(named.length) {
            found = Found::AsLong(its_type);
        }
    }
    Ok(found)
}

impl Reader {
    fn resolve(&mut self, reference: Reference) -> Result<At, NotAPlace> {
        match reference {
            Reference::Entry(at) => Ok(at),
            Reference::Anywhere(offset) => self.entry_at(offset),
            Reference::Signed(signature) => self.signed(signature),
            Reference::Elsewhere => Err(wrong(
                format!(
                    "the debug information of {} refers to another file (dwz)",
                    self.sections.path()
                ),
                "take the file as its linker wrote it, or write NAME+OFFSET+LENGTH",
            )),
        }
    }

    /// The type behind other names for it and what qualifies it; none if it is `void`.
    pub(super) fn behind(
        &mut self,
        its_type: Option<Reference>,
    ) -> Result<Option<Entry>, NotAPlace> {
        let mut next = its_type;
        for _ in 0..MAX_CHAIN {
            let Some(reference) = next else { return Ok(None) };
            let at = self.resolve(reference)?;
            let entry = self.entry(at)?;
            next = match entry.tag {
                gimli::DW_TAG_typedef
                | gimli::DW_TAG_const_type
                | gimli::DW_TAG_volatile_type
                | gimli::DW_TAG_restrict_type
                | gimli::DW_TAG_atomic_type
                | gimli::DW_TAG_packed_type
                | gimli::DW_TAG_immutable_type
                | gimli::DW_TAG_template_alias => entry.its_type,
                _ if entry.signature.is_some() => entry.signature,
                _ => return Ok(Some(entry)),
            };
        }
        Err(self.sections.damaged("a type stands for itself"))
    }

    /// Where a field of what is at `path` begins, and what it is.
    fn field(&mut self, kind: Kind, path: &str, field: &str) -> Result<(u64, Kind), NotAPlace> {
        let entry = match self.looked_through(kind)? {
            Ok(Kind::Array { dimensions, .. }) => {
                return Err(wrong(
                    format!(
                        "`{path}` is an array of {}, not a structure",
                        counted(dimensions.first().and_then(|it| it.count))
                    ),
                    format!("name an element first: `{path}[0].{field}`"),
                ));
            }
            Ok(Kind::Bits(_) | Kind::Type(_)) => return Err(no_structure(path, None)),
            Err(entry) => entry,
        };
        let entry = entry.ok_or_else(|| no_structure(path, None))?;
        let is_structure = matches!(
            entry.tag,
            gimli::DW_TAG_structure_type | gimli::DW_TAG_union_type | gimli::DW_TAG_class_type
        );
        if !is_structure {
            return Err(no_structure(path, Some(&entry)));
        }
        if entry.is_declaration {
            return Err(wrong(
                format!("the debug information does not say what is in {}", shown(&entry)),
                "compile the file that defines it with `-g`, or write NAME+OFFSET+LENGTH",
            ));
        }
        self.member(&entry, path, field)
    }

    /// The same of a structure, parts of it without a name and bases included.
    fn member(
        &mut self,
        structure: &Entry,
        path: &str,
        field: &str,
    ) -> Result<(u64, Kind), NotAPlace> {
        let mut parts = vec![(structure.clone(), 0_u64)];
        let mut seen = HashSet::from([structure.at]);
        let mut names = Vec::new();
        let mut next = 0;
        while let Some((part, start)) = parts.get(next).cloned() {
            next += 1;
            let members = self.children(&part)?;
            for member in &members {
                // A member of the class, not of each of its objects.
                if member.is_declaration {
                    continue;
                }
                let is_base = member.tag == gimli::DW_TAG_inheritance;
                if !is_base && member.tag != gimli::DW_TAG_member {
                    continue;
                }
                match &member.name {
                    Some(name) if !name.is_empty() && !is_base => {
                        if name == field {
                            let (offset, kind) = self.place(member)?;
                            let is_last = part.tag == gimli::DW_TAG_union_type
                                || members.iter().all(|other| {
                                    other.at == member.at
                                        || location(other).is_some_and(|at| at < offset)
                                });
                            if self.is_open(kind.clone())? && !(is_last && start == 0) {
                                return Err(unusual());
                            }
                            let offset = start.checked_add(offset).ok_or_else(unusual)?;
                            return Ok((offset, kind));
                        }
                        // For the message only.
                        if names.len() < MAX_NAMES && name.len() <= MAX_NAME_BYTES {
                            names.push(name.clone());
                        }
                    }
                    _ => {
                        // A virtual base lies where the running program says.
                        let Some(offset) = location(member) else { continue };
                        let inner = self.behind(member.its_type)?;
                        let Some(inner) = inner.filter(|inner| seen.insert(inner.at)) else {
                            continue;
                        };
                        if parts.len() == MAX_PARTS {
                            return Err(too_large("has a structure of too many parts"));
                        }
                        parts.push((inner, start.checked_add(offset).ok_or_else(unusual)?));
                    }
                }
            }
        }
        let near = nearest(field, names.iter().map(String::as_str), 3);
        let help = match names.len() {
            0 => "it has none".to_owned(),
            _ => {
                did_you_mean(&near, "") + if near.is_empty() { "" } else { "; " } + &listed(&names)
            }
        };
        Err(wrong(
            format!("{}, which `{path}` is, has no field `{}`", shown(structure), cut(field)),
            help,
        ))
    }

    /// Whether it is an array that has as many elements as there is room for.
    fn is_open(&mut self, kind: Kind) -> Result<bool, NotAPlace> {
        Ok(match self.looked_through(kind)? {
            Ok(Kind::Array { dimensions, .. }) => dimensions.iter().any(|it| it.count.is_none()),
            _ => false,
        })
    }

    /// Whether a structure ends in such an array, or its last member does.
    fn ends_open(&mut self, kind: Kind) -> Result<bool, NotAPlace> {
        let mut kind = kind;
        for _ in 0..MAX_CHAIN {
            let Err(Some(structure)) = self.looked_through(kind)? else { return Ok(false) };
            let members = self.children(&structure)?;
            let of_structure =
                members.into_iter().filter(|member| member.tag == gimli::DW_TAG_member);
            // Of several at one place the last one: an array without elements has no length.
            let Some(last) = of_structure.max_by_key(location) else { return Ok(false) };
            kind = Kind::Type(last.its_type);
            if self.is_open(kind.clone())? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Where a member begins in its structure, and what it is.
    fn place(&mut self, member: &Entry) -> Result<(u64, Kind), NotAPlace> {
        let Some(bits) = member.bit_size.known().filter(|bits| *bits > 0) else {
            let offset = location(member).ok_or_else(unusual)?;
            return Ok((offset, Kind::Type(member.its_type)));
        };
        let first = if let Some(first) = member.data_bit_offset.known() {
            first
        } else {
            let start = location(member).and_then(|it| it.checked_mul(8)).ok_or_else(unusual)?;
            let storage = match member.byte_size.known() {
                Some(storage) => Some(storage),
                None => self.length(Kind::Type(member.its_type), None)?,
            };
            let from_left = match member.bit_offset {
                Number::Absent => None,
                offset => Some(offset.known().ok_or_else(unusual)?),
            };
            let is_little = self.sections.endian == gimli::RunTimeEndian::Little;
            let offset = match (from_left, storage) {
                (None, _) => Some(0),
                (Some(from_left), _) if !is_little => Some(from_left),
                (Some(from_left), Some(storage)) => storage
                    .checked_mul(8)
                    .and_then(|all| all.checked_sub(from_left)?.checked_sub(bits)),
                (Some(_), None) => None,
            };
            offset.and_then(|offset| start.checked_add(offset)).ok_or_else(unusual)?
        };
        let last = first.checked_add(bits - 1).ok_or_else(unusual)?;
        Ok((first / 8, Kind::Bits(last / 8 - first / 8 + 1)))
    }
}

/// Where a member begins, if that is the same in every object.
fn location(member: &Entry) -> Option<u64> {
    match (member.location, member.data_bit_offset) {
        (Number::Absent, Number::Absent) => Some(0),
        (Number::Absent, bits) => bits.known().filter(|bits| bits % 8 == 0).map(|bits| bits / 8),
        (location, _) => location.known(),
    }
}

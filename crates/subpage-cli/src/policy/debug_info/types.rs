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
    for step in steps {
        let (more, next) = match step {
            Step::Field(field) => reader.field(kind, &path, field)?,
            Step::Index(index) => reader.element(kind, &path, *index)?,
        };
        match step {
            Step::Field(field) => path = format!("{path}.{field}"),
            Step::Index(index) => path = format!("{path}[{index}]"),
        }
        offset = offset.checked_add(more).ok_or_else(beyond)?;
        kind = next;
    }
    let rest = (named.length > 0).then(|| named.length.saturating_sub(offset));
    let Some(length) = reader.length(kind, rest)? else {
        return Err(wrong(
            format!("nothing says how long `{path}` is"),
            format!("name one element, `{path}[0]`, or write NAME+OFFSET+LENGTH"),
        ));
    };
    let end = offset.checked_add(length).ok_or_else(beyond)?;
    if length == 0 {
        return Err(wrong(format!("`{path}` has no byte"), "name what has bytes"));
    }
    if rest.is_some() && end > named.length {
        return Err(wrong(
            format!(
                "`{path}` ends at byte {end} of `{}`, which has {} bytes",
                named.name, named.length
            ),
            "name less of it; if it is all there, the debug information is of another build",
        ));
    }
    Ok(Bytes { offset, length })
}

/// The type of the variable at one of these addresses.
fn variable_type(
    reader: &mut Reader,
    addresses: &[u64],
    named: &NamedRange,
) -> Result<Reference, NotAPlace> {
    let name = &named.name;
    let plain = name.split('.').next().unwrap_or(name);
    let mut found = None;
    for at in reader.variables_at(addresses, name)? {
        let mut entry = reader.entry(at)?;
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
        if let Some(its_type) = its_type {
            // Another name for the same bytes is as good, if there is no better one.
            if is_called_so {
                return Ok(its_type);
            }
            found.get_or_insert(its_type);
        }
    }
    found.ok_or_else(|| {
        reader.left_out().unwrap_or_else(|| {
            wrong(
                format!(
                    "the debug information of {} does not describe `{name}`",
                    reader.sections.path()
                ),
                "compile the file that defines it with `-g`, or write NAME+OFFSET+LENGTH",
            )
        })
    })
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
            for member in self.children(&part)? {
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
                            let (offset, kind) = self.place(&member)?;
                            let offset = start.checked_add(offset).ok_or_else(unusual)?;
                            return Ok((offset, kind));
                        }
                        names.push(name.clone());
                    }
                    _ => {
                        // A virtual base lies where the running program says.
                        let Some(offset) = location(&member) else { continue };
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

//! From a variable's type to the bytes of its fields and elements.

use super::super::names::NamedRange;
use super::super::notation::NotAPlace;
use super::super::path::Step;
use super::Bytes;
use super::arrays::Kind;
use super::entry::{Entry, Reference};
use super::members::location;
use super::sections::wrong;
use super::units::{At, Reader};
use super::wording::{counted, no_structure, shown};

/// Most steps from a type to what it stands for: names of names, arrays of arrays.
pub(super) const MAX_CHAIN: usize = 64;

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
    let mut found = among(reader, &near, named)?;
    if !matches!(found, Found::Called(..)) {
        // Another name for the same bytes counts only where none of all is called so.
        let all = reader.all_variables_at(addresses)?;
        found = among(reader, &all, named)?;
    }
    match found {
        Found::Called(its_type, at) | Found::AsLong(its_type, at) => {
            reader.lower_bound = reader.unit(at.unit)?.lower_bound;
            Ok(its_type)
        }
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
    Called(Reference, At),
    /// One of them stands for as many bytes: perhaps another name for the same.
    AsLong(Reference, At),
    Nothing,
}

/// What these variables, all at the address of `named`, tell of it.
fn among(reader: &mut Reader, variables: &[At], named: &NamedRange) -> Result<Found, NotAPlace> {
    let name = &named.name;
    let plain = name.split('.').next().unwrap_or(name);
    let mut found = Found::Nothing;
    for at in variables {
        reader.lower_bound = reader.unit(at.unit)?.lower_bound;
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
            return Ok(Found::Called(its_type, *at));
        }
        let length = reader.length(Kind::Type(Some(its_type)), None)?;
        if named.length > 0 && length == Some(named.length) {
            found = Found::AsLong(its_type, *at);
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

    /// Whether it is an array that has as many elements as there is room for.
    pub(super) fn is_open(&mut self, kind: Kind) -> Result<bool, NotAPlace> {
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
}

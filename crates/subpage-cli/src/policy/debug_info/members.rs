//! The members of a structure, those of parts without a name and of bases among them.

use super::super::names::{did_you_mean, nearest};
use super::super::notation::NotAPlace;
use super::arrays::Kind;
use super::entry::{Entry, Number};
use super::sections::wrong;
use super::units::Reader;
use super::wording::{cut, listed, shown, unusual};
use super::work::too_large;

/// Most structures without a name, and bases, that are searched for one field.
const MAX_PARTS: usize = 1024;

/// Most fields that are kept for a message about one that is not there, and longest name of such a one.
const MAX_NAMES: usize = 4096;
const MAX_NAME_BYTES: usize = 256;

/// Most bases of bases that a message names for one.
const MAX_BASES_SHOWN: usize = 4;

/// A structure, a part of it without a name, or a base.
struct Part {
    entry: Entry,
    /// Where it begins in the whole; none if the running program says where, as of a virtual base.
    start: Option<u64>,
    /// The part that it is in.
    within: Option<usize>,
    /// The class whose own members it has: itself, or for a part without a name the one around it.
    class: usize,
}

/// A member that is called like the field.
struct Candidate {
    class: usize,
    member: Entry,
    /// None in a virtual base.
    found: Option<(u64, Kind)>,
}

impl Reader {
    /// Where a field of a structure begins, and what it is.
    ///
    /// A member hides those of the same name in the bases of its class; of several others none is meant.
    pub(super) fn member(
        &mut self,
        structure: &Entry,
        path: &str,
        field: &str,
    ) -> Result<(u64, Kind), NotAPlace> {
        let mut parts =
            vec![Part { entry: structure.clone(), start: Some(0), within: None, class: 0 }];
        let mut names = Vec::new();
        let mut candidates: Vec<Candidate> = Vec::new();
        let mut next = 0;
        while let Some(part) = parts.get(next) {
            let (index, start, class) = (next, part.start, part.class);
            let is_union = part.entry.tag == gimli::DW_TAG_union_type;
            next += 1;
            let members = self.children(&parts[index].entry.clone())?;
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
                            let found = match start {
                                Some(start) => {
                                    Some(self.within(start, member, &members, is_union)?)
                                }
                                None => None,
                            };
                            candidates.push(Candidate { class, member: member.clone(), found });
                        }
                        // For the message only.
                        if names.len() < MAX_NAMES && name.len() <= MAX_NAME_BYTES {
                            names.push(name.clone());
                        }
                    }
                    _ => {
                        let Some(inner) = self.behind(member.its_type)? else { continue };
                        // A structure is no part of itself.
                        if chain(&parts, index).any(|outer| parts[outer].entry.at == inner.at) {
                            continue;
                        }
                        if parts.len() == MAX_PARTS {
                            return Err(too_large("has a structure of too many parts"));
                        }
                        let offset = location(member);
                        let start = match (start, offset) {
                            (Some(start), Some(offset)) => {
                                Some(start.checked_add(offset).ok_or_else(unusual)?)
                            }
                            _ => None,
                        };
                        let class = if is_base { parts.len() } else { class };
                        parts.push(Part { entry: inner, start, within: Some(index), class });
                    }
                }
            }
        }
        let hidden = |class: usize| {
            chain(&parts, class)
                .skip(1)
                .any(|outer| candidates.iter().any(|other| other.class == parts[outer].class))
        };
        let mut meant: Vec<&Candidate> = Vec::new();
        for candidate in candidates.iter().filter(|candidate| !hidden(candidate.class)) {
            // A virtual base is in the whole once, however many have it as theirs.
            let is_same = |other: &&Candidate| {
                other.found.is_none()
                    && candidate.found.is_none()
                    && other.member.at == candidate.member.at
            };
            // Members of one class: a compiler sees to it that there is one.
            let is_of_one = |other: &&Candidate| other.class == candidate.class;
            if !meant.iter().any(|other| is_same(other) || is_of_one(other)) {
                meant.push(candidate);
            }
        }
        match meant[..] {
            [] => Err(no_field(structure, path, field, &names)),
            [one] => one.found.clone().ok_or_else(unusual),
            [first, second, ..] => Err(wrong(
                format!(
                    "`{}` of `{path}` may be that of {} or that of {}, which both are bases of {}",
                    cut(field),
                    base(&parts, first.class),
                    base(&parts, second.class),
                    shown(structure),
                ),
                "write NAME+OFFSET+LENGTH",
            )),
        }
    }

    /// Where `member` of a part that begins at `start` lies, and what it is.
    fn within(
        &mut self,
        start: u64,
        member: &Entry,
        members: &[Entry],
        is_union: bool,
    ) -> Result<(u64, Kind), NotAPlace> {
        let (offset, kind) = self.place(member)?;
        let is_last = is_union
            || members.iter().all(|other| {
                other.at == member.at || location(other).is_some_and(|at| at < offset)
            });
        if self.is_open(kind.clone())? && !(is_last && start == 0) {
            return Err(unusual());
        }
        Ok((start.checked_add(offset).ok_or_else(unusual)?, kind))
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
pub(super) fn location(member: &Entry) -> Option<u64> {
    match (member.location, member.data_bit_offset) {
        (Number::Absent, Number::Absent) => Some(0),
        (Number::Absent, bits) => bits.known().filter(|bits| bits % 8 == 0).map(|bits| bits / 8),
        (location, _) => location.known(),
    }
}

/// A part, the part that it is in, and so on to the whole.
fn chain(parts: &[Part], from: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(from), |part| parts[*part].within)
}

/// A base by its name and by those that it is a base of, the whole left out.
fn base(parts: &[Part], class: usize) -> String {
    let classes = chain(parts, class).filter(|part| parts[*part].class == *part);
    let mut names: Vec<_> =
        classes.filter(|part| *part != 0).map(|part| shown(&parts[part].entry)).collect();
    names.truncate(MAX_BASES_SHOWN);
    names.join(" in ")
}

/// About a field that is not there.
fn no_field(structure: &Entry, path: &str, field: &str, names: &[String]) -> NotAPlace {
    let near = nearest(field, names.iter().map(String::as_str), 3);
    let help = match names.len() {
        0 => "it has none".to_owned(),
        _ => did_you_mean(&near, "") + if near.is_empty() { "" } else { "; " } + &listed(names),
    };
    wrong(format!("{}, which `{path}` is, has no field `{}`", shown(structure), cut(field)), help)
}

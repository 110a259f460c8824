//! What messages say of types.

use super::super::notation::NotAPlace;
use super::entry::Entry;
use super::sections::wrong;

/// Most fields that a message lists.
const MAX_LISTED: usize = 12;

/// Longest name in a message, in characters.
const MAX_SHOWN: usize = 64;

pub(super) fn unusual() -> NotAPlace {
    wrong(
        "the debug information does not say in a way that is known here where this is",
        "write NAME+OFFSET+LENGTH",
    )
}

pub(super) fn no_structure(path: &str, entry: Option<&Entry>) -> NotAPlace {
    not_looked_into(path, entry, "a field")
}

pub(super) fn no_array(path: &str, entry: Option<&Entry>) -> NotAPlace {
    not_looked_into(path, entry, "an element")
}

fn not_looked_into(path: &str, entry: Option<&Entry>, what: &str) -> NotAPlace {
    let tag = entry.map(|entry| entry.tag);
    match (tag, entry) {
        (
            Some(
                gimli::DW_TAG_pointer_type
                | gimli::DW_TAG_reference_type
                | gimli::DW_TAG_rvalue_reference_type
                | gimli::DW_TAG_ptr_to_member_type,
            ),
            _,
        ) => wrong(
            format!(
                "`{path}` is a pointer, and what it points to is not part of it and may change"
            ),
            format!("guard the pointer itself, `{path}`, or name what it points to"),
        ),
        (Some(_), Some(entry)) => wrong(
            format!("`{path}` is {}, and has not {what}", shown(entry)),
            format!("name all of it: `{path}`"),
        ),
        _ => wrong(format!("`{path}` has not {what}"), format!("name all of it: `{path}`")),
    }
}

/// A type in words.
pub(super) fn shown(entry: &Entry) -> String {
    let kind = match entry.tag {
        gimli::DW_TAG_structure_type => "struct",
        gimli::DW_TAG_class_type => "class",
        gimli::DW_TAG_union_type => "union",
        gimli::DW_TAG_enumeration_type => "enum",
        gimli::DW_TAG_subroutine_type => return "a function".to_owned(),
        _ => "",
    };
    match (&entry.name, kind) {
        (Some(name), "") => format!("`{}`", cut(name)),
        (Some(name), kind) => format!("`{kind} {}`", cut(name)),
        (None, "") => "a type without a name".to_owned(),
        (None, kind) => format!("a {kind} without a name"),
    }
}

pub(super) fn cut(name: &str) -> String {
    if name.chars().count() <= MAX_SHOWN {
        return name.to_owned();
    }
    name.chars().take(MAX_SHOWN).chain(['…']).collect()
}

/// So many elements in words.
pub(super) fn counted(count: Option<u64>) -> String {
    match count {
        Some(1) => "1 element".to_owned(),
        Some(count) => format!("{count} elements"),
        None => "any number of elements".to_owned(),
    }
}

/// The fields in words, as many as a message holds.
pub(super) fn listed(names: &[String]) -> String {
    let mut text: Vec<_> =
        names.iter().take(MAX_LISTED).map(|name| format!("`{}`", cut(name))).collect();
    if names.len() > MAX_LISTED {
        text.push(format!("{} more", names.len() - MAX_LISTED));
    }
    format!("its fields: {}", text.join(", "))
}

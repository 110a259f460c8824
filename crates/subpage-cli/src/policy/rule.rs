//! One table of the policy as a rule: its text alone.

use std::ops::Range;
use std::path::PathBuf;

use subpage::address::{ByteRange, GPA_BITS, Gpa};
use subpage::rules::{Action, Moment, Owner, RuleName};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::Diagnostic;
use super::fields::{Fields, type_name};
use super::names::Names;
use super::notation::{NotAPlace, check_form, is_numeric, may_be_another_form, place as place_of};
use super::number::parse_address_range;
use super::place::{AddressSpace, Part, Place, SymbolFormat, Written};

pub(super) const RULE_KEYS: &[&str] = &[
    "name", "range", "symbol", "elf", "map", "address", "bias", "region", "offset", "length",
    "action", "owner", "locked", "arm",
];
pub(super) const RANGE_KEYS: &[&str] = &["start", "end", "length"];

/// The keys of a rule whose symbol is that of a file.
const SYMBOL_FILE_KEYS: [&str; 4] = ["elf", "map", "address", "bias"];

const PLACE_HELP: &str = "give one of `range = \"0x1000..0x1080\"`, `region = \"NAME\"`, or \
                          `symbol = \"NAME\"`, of the guest or with `elf = \"FILE\"` or `map = \"FILE\"`";
const RANGE_HELP: &str = "write `range = \"0x1000..0x1080\"` (the end is not included), \
                          `range = \"0x1000+128\"`, `range = \"NAME+OFFSET+LENGTH\"` or \
                          `range = { start = 0x1000, length = 128 }`";
const ADDRESS_HELP: &str = "a guest-physical address has at most 48 bits: below 0x1000000000000";

/// A rule whose text is right; its place may still have to be found.
#[derive(Debug, Clone)]
pub struct DraftRule {
    /// Its name; one that is not unique in the policy is among the mistakes.
    pub name: RuleName,
    /// Where it applies.
    pub place: Place,
    /// What happens to a write.
    pub action: Action,
    /// Whose it is.
    pub owner: Owner,
    /// Whether nothing can loosen it.
    pub locked: bool,
    /// From when on it holds, if the policy says so.
    pub arm: Option<Moment>,
    /// Line of its name, from 1.
    pub line: usize,
}

/// Reads every key even after a mistake, so that all mistakes of the rule are reported.
///
/// `line` gives the line of a byte of the text. The name is there whatever else is wrong.
pub(super) fn read_rule(
    table: &DeTable<'_>,
    span: &Range<usize>,
    line: impl FnOnce(usize) -> usize,
    mistakes: &mut Vec<Diagnostic>,
) -> (Option<(Written<RuleName>, usize)>, Option<DraftRule>) {
    const OWNER_HELP: &str = "an owner is a number from 0 (the host) to 4294967295";
    let mut fields = Fields::new(table, "a rule", RULE_KEYS, mistakes);
    let name = read_name(&mut fields, span).map(|name| {
        let line = line(name.span.start);
        (name, line)
    });
    let before = fields.mistakes_so_far();
    let place = read_place(&mut fields, span);
    let place_is_right = fields.mistakes_so_far() == before;
    let action = read_action(&mut fields);
    let owner = fields
        .number("owner", 0, i128::from(u32::MAX), OWNER_HELP)
        .and_then(|owner| u32::try_from(owner.value).ok());
    let locked = fields.flag("locked", "write `locked = true`, or leave the key out");
    let arm = read_moment(&mut fields);
    // A rule with another mistake still has its place looked up, so that a wrong name of a region is
    // reported in the same run; the mistakes keep the policy from being used.
    let placed = name.as_ref().zip(place.filter(|_| place_is_right));
    let rule = placed.map(|((name, line), place)| DraftRule {
        name: name.value,
        place,
        action: action.unwrap_or(Action::Deny),
        owner: owner.map_or(Owner::HOST, Owner),
        locked: locked.unwrap_or(false),
        arm,
        line: *line,
    });
    (name, rule)
}

fn read_name(fields: &mut Fields<'_, '_>, span: &Range<usize>) -> Option<Written<RuleName>> {
    const HELP: &str = "give the rule a name of 1 to 62 bytes without control characters: `name = \"helper path\"`";
    if !fields.has("name") {
        fields.mistake(span.clone(), "the rule has no name", "this rule", HELP);
        return None;
    }
    let text = fields.text("name", HELP)?;
    match RuleName::new(&text.value) {
        Ok(name) => Some(Written { value: name, span: text.span }),
        Err(error) => {
            fields.mistake(text.span, error.to_string(), "", HELP);
            None
        }
    }
}

fn read_action(fields: &mut Fields<'_, '_>) -> Option<Action> {
    const HELP: &str = "the actions are `deny`, `log`, `allow-once` and `stop`";
    let text = fields.text("action", HELP)?;
    let action = Action::from_word(&text.value);
    if action.is_none() {
        let near = super::names::nearest(&text.value, Action::ALL.map(Action::word).into_iter(), 1);
        let label = near.first().map(|word| format!("perhaps `{word}`")).unwrap_or_default();
        fields.mistake(text.span, format!("unknown action `{}`", text.value), label, HELP);
    }
    action
}

fn read_moment(fields: &mut Fields<'_, '_>) -> Option<Moment> {
    const HELP: &str = "a rule arms at `start`, at the kernel's `entry`, at `init` when the kernel \
                        starts its first program, by a `write` of the guest to port 0xf5, or by the \
                        `command` subpage ctl arm";
    let text = fields.text("arm", HELP)?;
    let moment = Moment::from_word(&text.value);
    if moment.is_none() {
        let message = format!("unknown moment `{}`", text.value);
        fields.mistake(text.span, message, "", HELP);
    }
    moment
}

fn read_place(fields: &mut Fields<'_, '_>, span: &Range<usize>) -> Option<Place> {
    let kinds: Vec<&str> =
        ["range", "region", "symbol"].into_iter().filter(|key| fields.has(key)).collect();
    if let [_, second, ..] = kinds[..] {
        let message = format!("the rule has both `{}` and `{second}`", kinds[0]);
        let at = fields.key_span(second).unwrap_or_else(|| span.clone());
        fields.mistake(at, message, "one place too many", PLACE_HELP);
    }
    let kind = kinds.first().copied();
    for key in SYMBOL_FILE_KEYS {
        if kind != Some("symbol") && kind.is_some() {
            forbid(fields, key, "belongs to `symbol`", "leave it out, or give a `symbol`");
        }
    }
    if kind == Some("range") {
        let help = "leave it out; a range says itself where it begins and ends";
        forbid(fields, "offset", "belongs to `symbol` or `region`", help);
        forbid(fields, "length", "belongs to `symbol` or `region`", help);
    }
    match kind {
        None => {
            fields.mistake(span.clone(), "the rule has no place", "this rule", PLACE_HELP);
            None
        }
        Some("range") => read_range(fields),
        Some("region") => {
            let region = fields.text("region", "name an object or a region of the trace");
            let part = read_part(fields);
            Some(Place::Region { region: region?, part })
        }
        Some(_) => read_symbol(fields),
    }
}

fn forbid(fields: &mut Fields<'_, '_>, key: &str, label: &str, help: &str) {
    if let Some(span) = fields.key_span(key) {
        fields.mistake(span, format!("`{key}` does not fit this rule"), label, help);
    }
}

fn read_symbol(fields: &mut Fields<'_, '_>) -> Option<Place> {
    const BIAS_HELP: &str = "the bias is added to the symbol's address; from -2^64 to 2^64, a \
                             signed hexadecimal one in quotes: `bias = \"-0xffffffff80000000\"`";
    let symbol = fields.text("symbol", "name a symbol of the guest or of the file");
    if !SYMBOL_FILE_KEYS.into_iter().any(|key| fields.has(key)) {
        let part = read_part(fields);
        return Some(Place::GuestSymbol { symbol: symbol?, part });
    }
    let file = read_symbol_file(fields);
    let format = file.as_ref().map_or(SymbolFormat::Elf, |(_, format)| *format);
    let space = read_space(fields, format);
    let bias = fields.number("bias", -(1 << 64), 1 << 64, BIAS_HELP);
    let part = read_part(fields);
    let (file, format) = file?;
    Some(Place::Symbol { symbol: symbol?, file, format, space, bias, part })
}

fn read_symbol_file(fields: &mut Fields<'_, '_>) -> Option<(Written<PathBuf>, SymbolFormat)> {
    const HELP: &str = "say which file has the symbol, relative to the policy's directory: \
                        `elf = \"vmlinux\"` or `map = \"System.map\"`";
    let elf = fields.text("elf", HELP);
    let map = fields.text("map", HELP);
    match (fields.has("elf"), fields.has("map")) {
        (false, false) => {
            let key = if fields.has("bias") { "bias" } else { "address" };
            let span = fields.key_span(key).unwrap_or(0..0);
            let message = format!("`{key}` needs `elf` or `map`");
            fields.mistake(span, message, "for the symbols of a file", HELP);
        }
        (true, true) => {
            let span = fields.key_span("map").unwrap_or(0..0);
            let message = "the rule has both `elf` and `map`";
            fields.mistake(span, message, "one file too many", HELP);
        }
        _ => {}
    }
    let elf = elf.map(|file| (file, SymbolFormat::Elf));
    let (file, format) = elf.or(map.map(|file| (file, SymbolFormat::Map)))?;
    Some((Written { value: PathBuf::from(file.value), span: file.span }, format))
}

fn read_space(fields: &mut Fields<'_, '_>, format: SymbolFormat) -> AddressSpace {
    const HELP: &str = "write `address = \"virtual\"` (the symbol's own value), \
                        `address = \"physical\"` (where the ELF file's load segment puts it), or \
                        `address = \"kernel\"` (the value minus 0xffffffff80000000)";
    let otherwise = match format {
        SymbolFormat::Elf => AddressSpace::Virtual,
        // Such lists are of kernels, whose own addresses are never guest-physical ones.
        SymbolFormat::Map => AddressSpace::Kernel,
    };
    let Some(text) = fields.text("address", HELP) else { return otherwise };
    match (text.value.as_str(), format) {
        ("virtual", _) => AddressSpace::Virtual,
        ("kernel", _) => AddressSpace::Kernel,
        ("physical", SymbolFormat::Elf) => AddressSpace::Physical,
        ("physical", SymbolFormat::Map) => {
            let message = "a list of symbols has no physical addresses";
            let help = "write `address = \"kernel\"`, or leave `address` out: the value minus \
                        0xffffffff80000000";
            fields.mistake(text.span, message, "only load segments of ELF say them", help);
            otherwise
        }
        (other, _) => {
            let message = format!("unknown kind of address `{other}`");
            fields.mistake(text.span, message, "", HELP);
            otherwise
        }
    }
}

fn read_part(fields: &mut Fields<'_, '_>) -> Part {
    let offset = fields.unsigned("offset", "bytes to leave out at the start, from 0");
    let length = read_length(fields);
    Part { offset, length }
}

fn read_length(fields: &mut Fields<'_, '_>) -> Option<Written<u64>> {
    const HELP: &str = "give at least 1 byte, or leave `length` out to guard all to the end";
    let length = fields.unsigned("length", HELP)?;
    if length.value == 0 {
        fields.mistake(length.span, "the length is 0", "guards nothing", HELP);
        return None;
    }
    Some(length)
}

fn read_range(fields: &mut Fields<'_, '_>) -> Option<Place> {
    let value = fields.value("range")?;
    let span = value.span();
    match value.get_ref() {
        DeValue::String(text) => {
            if let Ok(range) = parse_address_range(text) {
                return byte_range(fields, &span, range.start, range.end).map(Place::Range);
            }
            let read = if is_numeric(text) {
                place_of(text, &Names::default(), "").map(Place::Range)
            } else {
                match check_form(text) {
                    Err(wrong) if !may_be_another_form(text) => Err(wrong),
                    // Names are known in the second stage.
                    _ => Ok(Place::Notation(Written {
                        value: text.clone().into_owned(),
                        span: span.clone(),
                    })),
                }
            };
            match read {
                Ok(place) => Some(place),
                Err(NotAPlace { message, help }) => {
                    fields.mistake(span, message, "", help);
                    None
                }
            }
        }
        DeValue::Table(table) => read_range_table(fields, value, table).map(Place::Range),
        other => {
            let label = format!("this is {}", type_name(other));
            fields.mistake(span, "this is not a range", label, RANGE_HELP);
            None
        }
    }
}

fn read_range_table(
    outer: &mut Fields<'_, '_>,
    value: &Spanned<DeValue<'_>>,
    table: &DeTable<'_>,
) -> Option<ByteRange> {
    let span = value.span();
    let mut mistakes = Vec::new();
    let mut fields = Fields::new(table, "a range", RANGE_KEYS, &mut mistakes);
    let start = fields.unsigned("start", ADDRESS_HELP);
    let end = fields.unsigned("end", ADDRESS_HELP);
    let length = read_length(&mut fields);
    if !fields.has("start") || fields.has("end") == fields.has("length") {
        let message = "a range needs `start` and one of `end` and `length`";
        fields.mistake(span.clone(), message, "", RANGE_HELP);
    }
    let complete = mistakes.is_empty();
    for mistake in mistakes {
        outer.mistake(mistake.span, mistake.message, mistake.label, mistake.help);
    }
    if !complete {
        return None;
    }
    let start = start?.value;
    let end = match (end, length) {
        (Some(end), _) => Some(end.value),
        (None, Some(length)) => start.checked_add(length.value),
        (None, None) => None,
    };
    if end.is_none() {
        outer.mistake(span.clone(), "the range ends beyond 2^64", "", ADDRESS_HELP);
    }
    byte_range(outer, &span, start, end?)
}

fn byte_range(
    fields: &mut Fields<'_, '_>,
    span: &Range<usize>,
    start: u64,
    end: u64,
) -> Option<ByteRange> {
    if end <= start {
        let label = if end == start { "has no byte" } else { "ends before it begins" };
        fields.mistake(span.clone(), "the range is empty", label, RANGE_HELP);
        return None;
    }
    let range = Gpa::try_new(start).and_then(|first| ByteRange::new(first, end - start));
    if range.is_err() {
        let message = format!("the range reaches beyond {GPA_BITS} bits");
        fields.mistake(span.clone(), message, format!("ends at {end:#x}"), ADDRESS_HELP);
    }
    range.ok()
}

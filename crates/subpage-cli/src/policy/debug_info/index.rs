//! Indices that say which units to read: `.debug_names`, `.gdb_index`, `.debug_pubnames` and
//! `.debug_aranges`.
//!
//! They are hints: what is wrong with one makes it useless, and no more.

use std::collections::BTreeSet;

use gimli::{DebugAranges, DebugGnuPubNames, DebugNames, DebugPubNames};

use super::super::notation::NotAPlace;
use super::sections::Section;
use super::units::Reader;

/// Longest index in bytes that is read: 256 MiB.
const MAX_INDEX_BYTES: u64 = 256 << 20;

/// Most units that are taken from an index; more are as good as all.
const MAX_UNITS: usize = 256;

/// The starts of the units that may have the variable of that name, or at one of these addresses. Fails
/// at a limit only.
pub(super) fn units_of(
    reader: &mut Reader,
    name: &str,
    addresses: &[u64],
) -> Result<Vec<u64>, NotAPlace> {
    let mut units = BTreeSet::new();
    // `counter.0` is the variable `counter` of a function, told apart by its compiler.
    let plain = name.split('.').next().unwrap_or(name);
    by_names(reader, &[name, plain], &mut units)?;
    by_gdb_index(reader, plain, &mut units)?;
    by_public_names(reader, &[name, plain], &mut units)?;
    by_addresses(reader, addresses, &mut units)?;
    if units.len() > MAX_UNITS || units.is_empty() {
        return Ok(Vec::new());
    }
    // What is no start of a unit would be read as one.
    let starts = reader.starts()?;
    Ok(units.into_iter().filter(|unit| starts.binary_search(unit).is_ok()).collect())
}

/// An index, if it is there and can be read.
fn whole(reader: &Reader, section: Section) -> Option<Vec<u8>> {
    let length = reader.sections.length(section);
    if length == 0 {
        return None;
    }
    reader.sections.read(section, 0, length, MAX_INDEX_BYTES).ok()
}

fn by_names(
    reader: &mut Reader,
    names: &[&str],
    units: &mut BTreeSet<u64>,
) -> Result<(), NotAPlace> {
    let Some(bytes) = whole(reader, Section::Names) else { return Ok(()) };
    let mut headers = DebugNames::new(&bytes, reader.sections.endian).headers();
    while let Ok(Some(header)) = headers.next() {
        reader.work.charge(1)?;
        let Ok(index) = header.index() else { continue };
        let forms = index.abbreviations().abbreviations().len();
        for name in names {
            let Ok(mut hashes) = index.find_by_hash(gimli::case_folding_djb_hash(name)) else {
                break;
            };
            while let Ok(Some(place)) = hashes.next() {
                reader.work.charge(1)?;
                let text = index.name_string_offset(place).ok();
                let text = text.and_then(|at| reader.sections.text(Section::Str, at.0 as u64).ok());
                if text.is_none_or(|text| text != name.as_bytes()) {
                    continue;
                }
                let Ok(mut entries) = index.name_entries(place) else { continue };
                while let Ok(Some(entry)) = entries.next() {
                    reader.work.charge(1 + forms + entry.attrs.len())?;
                    let unit = entry.compile_unit(&index).ok().flatten();
                    let unit = unit.or_else(|| index.default_compile_unit().ok().flatten());
                    units.extend(unit.map(|unit| unit.0 as u64));
                }
            }
        }
    }
    Ok(())
}

/// Of the format's versions 7 to 9, "Index Section Format" in GDB's manual.
fn by_gdb_index(
    reader: &mut Reader,
    name: &str,
    units: &mut BTreeSet<u64>,
) -> Result<(), NotAPlace> {
    let section = Section::GdbIndex;
    if reader.sections.length(section) == 0 {
        return Ok(());
    }
    let word = |reader: &Reader, at: u64| reader.sections.number(section, at, 4).ok();
    let mut head = [0; 7];
    for (at, place) in (0..).step_by(4).zip(&mut head) {
        let Some(word) = word(reader, at) else { return Ok(()) };
        *place = word;
    }
    let [version, list, types, _, symbols, after, after_shortcut] = head;
    let pool = match version {
        7 | 8 => after,
        9 => after_shortcut,
        _ => return Ok(()),
    };
    let slots = after.saturating_sub(symbols) / 8;
    if !slots.is_power_of_two() || types < list {
        return Ok(());
    }
    let hash = name.bytes().fold(0_u32, |hash, byte| {
        let byte = u32::from(byte.to_ascii_lowercase());
        hash.wrapping_mul(67).wrapping_add(byte).wrapping_sub(113)
    });
    let hash = u64::from(hash);
    let step = (hash.wrapping_mul(17) & (slots - 1)) | 1;
    let mut slot = hash & (slots - 1);
    for _ in 0..slots {
        reader.work.charge(1)?;
        let at = symbols + slot * 8;
        let (Some(text), Some(vector)) = (word(reader, at), word(reader, at + 4)) else { break };
        if (text, vector) == (0, 0) {
            break;
        }
        let found = reader.sections.text(section, pool + text);
        if found.is_ok_and(|found| found == name.as_bytes()) {
            let Some(count) = word(reader, pool + vector) else { break };
            for index in 1..=count {
                reader.work.charge(1)?;
                let Some(value) = word(reader, pool + vector + 4 * index) else { break };
                let unit = (value & 0xff_ffff) * 16;
                if unit < types - list
                    && let Ok(start) = reader.sections.number(section, list + unit, 8)
                {
                    units.insert(start);
                }
            }
            break;
        }
        slot = (slot + step) & (slots - 1);
    }
    Ok(())
}

fn by_public_names(
    reader: &mut Reader,
    names: &[&str],
    units: &mut BTreeSet<u64>,
) -> Result<(), NotAPlace> {
    let endian = reader.sections.endian;
    let is_wanted = |text: &[u8]| names.iter().any(|name| name.as_bytes() == text);
    if let Some(bytes) = whole(reader, Section::PubNames) {
        reader.work.charge(bytes.len() / 8)?;
        let mut items = DebugPubNames::new(&bytes, endian).items();
        while let Ok(Some(item)) = items.next() {
            if is_wanted(item.name().slice()) {
                units.insert(item.unit_header_offset().0 as u64);
            }
        }
    }
    if let Some(bytes) = whole(reader, Section::GnuPubNames) {
        reader.work.charge(bytes.len() / 8)?;
        let mut items = DebugGnuPubNames::new(&bytes, endian).items();
        while let Ok(Some(item)) = items.next() {
            if is_wanted(item.name().slice()) {
                units.insert(item.unit_header_offset().0 as u64);
            }
        }
    }
    Ok(())
}

fn by_addresses(
    reader: &mut Reader,
    addresses: &[u64],
    units: &mut BTreeSet<u64>,
) -> Result<(), NotAPlace> {
    let Some(bytes) = whole(reader, Section::Aranges) else { return Ok(()) };
    reader.work.charge(bytes.len() / 8)?;
    let mut headers = DebugAranges::new(&bytes, reader.sections.endian).headers();
    while let Ok(Some(header)) = headers.next() {
        let mut entries = header.entries();
        while let Ok(Some(entry)) = entries.next() {
            let holds =
                |address: &u64| entry.range().begin <= *address && *address < entry.range().end;
            if addresses.iter().any(holds) {
                units.insert(header.debug_info_offset().0 as u64);
            }
        }
    }
    Ok(())
}

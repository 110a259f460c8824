//! Names from an image.

use super::{
    ENTRY_BYTES, HAS_TASKS, HAS_USERS, HEADER_BYTES, IS_LINKED, MAGIC, MAX_BYTES, MAX_NAME_BYTES,
    NamesError,
};
use crate::address::START_KERNEL_MAP;
use crate::kallsyms::Kallsyms;
use crate::task::{Current, TaskPlaces};

/// The table for a kernel whose image has this [fingerprint](super::fingerprint). Fails if it would be
/// longer than what is read.
pub fn write(
    kallsyms: &Kallsyms,
    tasks: Option<&TaskPlaces>,
    image: u64,
) -> Result<Vec<u8>, NamesError> {
    // Each function, and behind it the place where there is none, if that is not the next one's.
    let mut functions: Vec<(u32, &str)> = Vec::new();
    let mut end = None;
    let mut before = None;
    for symbol in kallsyms.iter() {
        // Of several names of one place the first is taken, as the kernel does.
        if before.replace(symbol.address) == Some(symbol.address) {
            continue;
        }
        let offset = symbol.address.as_u64().checked_sub(START_KERNEL_MAP);
        let offset = offset.and_then(|offset| u32::try_from(offset).ok());
        let length = symbol.length.and_then(|length| u32::try_from(length).ok());
        let (Some(first), Some(length)) = (offset, length) else { continue };
        let is_code = matches!(symbol.kind, 'T' | 't' | 'W' | 'w');
        if !is_code || symbol.name.len() > MAX_NAME_BYTES {
            continue;
        }
        if let Some(end) = end.filter(|end| *end < first) {
            functions.push((end, ""));
        }
        functions.push((first, symbol.name));
        end = first.checked_add(length);
    }
    functions.extend(end.map(|end| (end, "")));
    let text: usize = functions.iter().map(|(_, name)| name.len()).sum();
    let bytes = HEADER_BYTES + functions.len() * ENTRY_BYTES + text;
    if bytes > MAX_BYTES {
        return Err(NamesError::TooLong(bytes));
    }
    let mut table = Vec::with_capacity(bytes);
    table.extend(MAGIC);
    table.extend(image.to_le_bytes());
    for number in [functions.len(), text] {
        table.extend(low(number as u64).to_le_bytes());
    }
    table.extend(places(tasks));
    let mut start = 0;
    for (address, name) in &functions {
        table.extend(address.to_le_bytes());
        table.extend(low(start).to_le_bytes());
        start += name.len() as u64;
    }
    table.extend(functions.iter().flat_map(|(_, name)| name.bytes()));
    Ok(table)
}

/// The rest of the header. Offsets beyond 32 bits are none that a kernel has.
fn places(tasks: Option<&TaskPlaces>) -> Vec<u8> {
    let Some(tasks) = tasks else { return vec![0; HEADER_BYTES - 24] };
    let (place, linked) = match tasks.current {
        Current::PerProcessor(place) => (place, 0),
        Current::Linked(place) => (place, IS_LINKED),
    };
    let users = if tasks.uid.is_some() { HAS_USERS } else { 0 };
    let (credentials, user) = tasks.uid.unwrap_or_default();
    let mut bytes = (HAS_TASKS | users | linked).to_le_bytes().to_vec();
    for offset in [tasks.pid, tasks.tgid, tasks.name, tasks.leader, credentials, user, 0] {
        bytes.extend(low(offset).to_le_bytes());
    }
    bytes.extend(place.to_le_bytes());
    bytes
}

fn low(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

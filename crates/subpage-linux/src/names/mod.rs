//! Names of one kernel for those who cannot open its image: a hypervisor that has no allocator to spare
//! for it, or no file.
//!
//! [`write`](fn@write) makes them from an image, [`KernelNames`] reads them. They are one table, all numbers
//! little-endian:
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 8 | `SPNAMES` and 1, the version |
//! | 8 | 8 | which image they are of ([`fingerprint`]) |
//! | 16 | 4 | entries |
//! | 20 | 4 | bytes of text |
//! | 24 | 4 | flags: 1 the places of tasks are known, 2 that of users, 4 the current task moves with the kernel |
//! | 28 | 24 | offsets of `pid`, `tgid`, `comm`, `group_leader`, `cred` in a task, of `uid` in `cred`, 4 each |
//! | 52 | 4 | 0 |
//! | 56 | 8 | where a processor has its current task |
//! | 64 | 8 × entries | address minus [`START_KERNEL_MAP`], ascending, and where the name begins in the text |
//! | behind | | the text: names one behind the other, printable ASCII |
//!
//! A name ends where the next one begins. From an entry without a name on, up to the next entry, there is no
//! function.

#[cfg(feature = "std")]
mod write;

use thiserror::Error;

use crate::address::{RuntimeAddress, START_KERNEL_MAP};
use crate::task::{Current, TaskPlaces};
#[cfg(feature = "std")]
pub use write::write;

/// Most bytes of a table: 4 MiB; a distribution's kernel has one or two.
pub const MAX_BYTES: usize = 4 << 20;

/// How a table begins.
pub const MAGIC: [u8; 8] = *b"SPNAMES\x01";

const HEADER_BYTES: usize = 64;
const ENTRY_BYTES: usize = 8;
const HAS_TASKS: u32 = 1;
const HAS_USERS: u32 = 2;
const IS_LINKED: u32 = 4;

/// Longest name in bytes (the kernel's KSYM_NAME_LEN, its end not counted).
const MAX_NAME_BYTES: usize = 511;

/// Why bytes are no names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NamesError {
    /// They begin otherwise.
    #[error("it does not begin as `subpage compile --names` writes it")]
    Magic,
    /// More than [`MAX_BYTES`].
    #[error("it has {0} bytes; at most {MAX_BYTES} are read")]
    TooLong(usize),
    /// Its length is not what it says.
    #[error("it has {bytes} bytes and says that it has {told}")]
    Length {
        /// What there is.
        bytes: usize,
        /// What its header says.
        told: u64,
    },
    /// An entry cannot be.
    #[error("its entry {0} is damaged")]
    Entry(usize),
}

/// The names, checked.
#[derive(Debug, Clone, Copy)]
pub struct KernelNames<'a> {
    image: u64,
    entries: &'a [[u8; ENTRY_BYTES]],
    text: &'a str,
    tasks: Option<TaskPlaces>,
}

impl<'a> KernelNames<'a> {
    /// Reads a table; each entry is looked at once, and nothing is taken at its word.
    pub fn read(bytes: &'a [u8]) -> Result<Self, NamesError> {
        if bytes.len() > MAX_BYTES {
            return Err(NamesError::TooLong(bytes.len()));
        }
        let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(NamesError::Magic)?;
        if !header.starts_with(&MAGIC) {
            return Err(NamesError::Magic);
        }
        let (count, text_bytes) = (number(header, 16), number(header, 20));
        let table_bytes = u64::from(count) * ENTRY_BYTES as u64;
        let told = HEADER_BYTES as u64 + table_bytes + u64::from(text_bytes);
        if told != bytes.len() as u64 {
            return Err(NamesError::Length { bytes: bytes.len(), told });
        }
        // It is no longer than the bytes that are there.
        let (table, text) = rest.split_at(rest.len() - text_bytes as usize);
        let (entries, _) = table.as_chunks::<ENTRY_BYTES>();
        let mut names = Self { image: long(header, 8), entries, text: "", tasks: tasks(header) };
        let printable = text.iter().position(|byte| !byte.is_ascii_graphic());
        names.text = match (printable, core::str::from_utf8(text)) {
            (None, Ok(text)) => text,
            _ => return Err(NamesError::Entry(count as usize)),
        };
        let mut before = None;
        for at in 0..entries.len() {
            let (address, start) = names.entry(at).ok_or(NamesError::Entry(at))?;
            let name = names.name(at).ok_or(NamesError::Entry(at))?;
            if before.is_some_and(|before| before >= address)
                || name.len() > MAX_NAME_BYTES
                || at == 0 && start != 0
            {
                return Err(NamesError::Entry(at));
            }
            before = Some(address);
        }
        Ok(names)
    }

    /// Whether they are those of an image, by its [`fingerprint`].
    pub const fn are_of(&self, image: u64) -> bool {
        self.image == image
    }

    /// How many entries there are.
    pub const fn count(&self) -> usize {
        self.entries.len()
    }

    /// The places of tasks.
    pub const fn tasks(&self) -> Option<&TaskPlaces> {
        self.tasks.as_ref()
    }

    /// The function that holds an address of a kernel that was not moved, and how far behind its beginning
    /// the address lies.
    pub fn function_at(&self, address: RuntimeAddress) -> Option<(&'a str, u64)> {
        let offset = address.as_u64().checked_sub(START_KERNEL_MAP)?;
        let offset = u32::try_from(offset).ok()?;
        let behind = self.entries.partition_point(|entry| first_word(*entry) <= offset);
        let at = behind.checked_sub(1)?;
        let (start, _) = self.entry(at)?;
        let name = self.name(at).filter(|name| !name.is_empty())?;
        Some((name, u64::from(offset - start)))
    }

    fn entry(&self, at: usize) -> Option<(u32, usize)> {
        let entry = *self.entries.get(at)?;
        let [_, _, _, _, start @ ..] = entry;
        Some((first_word(entry), u32::from_le_bytes(start) as usize))
    }

    fn name(&self, at: usize) -> Option<&'a str> {
        let (_, start) = self.entry(at)?;
        let end = self.entry(at + 1).map_or(self.text.len(), |(_, start)| start);
        self.text.get(start..end)
    }
}

/// What tells one image from another: its length, and the bytes at its beginning and end, of which the
/// kernel's build makes the last four a checksum of all. Not for secrets.
pub fn fingerprint(image: &[u8]) -> u64 {
    const PART: usize = 1 << 16;
    let part = image.len().min(PART);
    let length = (image.len() as u64).to_le_bytes();
    // FNV-1a, 64 bits.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in length.iter().chain(&image[..part]).chain(&image[image.len() - part..]) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash
}

fn tasks(header: &[u8; HEADER_BYTES]) -> Option<TaskPlaces> {
    let flags = number(header, 24);
    let [pid, tgid, name, leader, credentials, user] =
        [28, 32, 36, 40, 44, 48].map(|at| u64::from(number(header, at)));
    let place = long(header, 56);
    let current =
        if flags & IS_LINKED != 0 { Current::Linked(place) } else { Current::PerProcessor(place) };
    let uid = (flags & HAS_USERS != 0).then_some((credentials, user));
    (flags & HAS_TASKS != 0).then_some(TaskPlaces { current, pid, tgid, name, leader, uid })
}

/// The first four bytes of an entry.
const fn first_word(entry: [u8; ENTRY_BYTES]) -> u32 {
    let [a, b, c, d, ..] = entry;
    u32::from_le_bytes([a, b, c, d])
}

/// Four bytes of the header.
fn number(header: &[u8; HEADER_BYTES], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&header[at..at + 4]);
    u32::from_le_bytes(bytes)
}

/// Eight bytes of the header.
fn long(header: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from(number(header, at)) | u64::from(number(header, at + 4)) << 32
}

#[cfg(test)]
mod tests;

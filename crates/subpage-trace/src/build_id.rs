//! The number that a linker gives each build of a program.

use object::Object;

use crate::varint;

/// Most bytes of a build's number; linkers give 8 to 20.
pub const MAX_BUILD_ID_BYTES: usize = 64;

/// The number of a build (`.note.gnu.build-id`): 1 to [`MAX_BUILD_ID_BYTES`] bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildId(Vec<u8>);

impl BuildId {
    /// A number of these bytes; `None` if it is empty or too long.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (1..=MAX_BUILD_ID_BYTES).contains(&bytes.len()).then(|| Self(bytes.to_vec()))
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// That of an ELF file, if its linker gave it one.
    pub(crate) fn of_elf<'data>(file: &impl Object<'data>) -> Option<Self> {
        Self::new(file.build_id().ok()??)
    }

    /// Writes a number that may be unknown.
    pub(crate) fn put(this: Option<&Self>, out: &mut Vec<u8>) {
        let bytes = this.map_or(&[][..], Self::bytes);
        varint::put(out, bytes.len() as u64);
        out.extend(bytes);
    }

    /// Reads what [`Self::put`] wrote.
    pub(crate) fn take(content: &mut &[u8]) -> Result<Option<Self>, &'static str> {
        let length = varint::take(content).ok_or("a build's number is cut off")?;
        if length > MAX_BUILD_ID_BYTES as u64 {
            return Err("a build's number is longer than 64 bytes");
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let (bytes, rest) =
            content.split_at_checked(length).ok_or("a build's number is cut off")?;
        *content = rest;
        Ok(Self::new(bytes))
    }
}

//! A requester of the series' interface whose memory changes while it is read.

use subpage::uapi::{Fault, HEADER_BYTES, RequestMemory};

/// A request, and what another thread puts in its place once the first part has been read.
pub(crate) struct Request {
    bytes: Vec<u8>,
    after_first_read: Option<Vec<u8>>,
}

impl Request {
    pub(crate) fn new(gfn_base: u64, npages: u32, flags: u32, maps: &[u32]) -> Self {
        let header = [npages.to_le_bytes(), flags.to_le_bytes()].into_iter().flatten();
        let maps = maps.iter().flat_map(|map| map.to_le_bytes());
        let bytes = gfn_base.to_le_bytes().into_iter().chain(header).chain(maps).collect();
        Self { bytes, after_first_read: None }
    }

    pub(crate) fn becoming(self, other: Self) -> Self {
        Self { after_first_read: Some(other.bytes), ..self }
    }

    pub(crate) fn maps(&self) -> Vec<u32> {
        let words = self.bytes[HEADER_BYTES..].chunks_exact(4);
        words.map(|word| u32::from_le_bytes(word.try_into().expect("four bytes"))).collect()
    }
}

impl RequestMemory for Request {
    fn read(&mut self, offset: usize, buffer: &mut [u8]) -> Result<(), Fault> {
        buffer.copy_from_slice(self.bytes.get(offset..offset + buffer.len()).ok_or(Fault)?);
        if let Some(bytes) = self.after_first_read.take() {
            self.bytes = bytes;
        }
        Ok(())
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<(), Fault> {
        let target = self.bytes.get_mut(offset..offset + bytes.len()).ok_or(Fault)?;
        target.copy_from_slice(bytes);
        Ok(())
    }
}

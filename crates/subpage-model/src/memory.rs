//! Guest memory contents, for accesses that carry data.

use std::collections::HashMap;

use subpage::address::{Hpa, PAGE_BYTES};

/// Host memory as the processor's loads and stores see it.
///
/// The processor has translated and checked an access before it calls either method, and a call
/// never crosses a 4 KiB page.
pub trait GuestMemory {
    /// Copies the bytes at `hpa` into `bytes`.
    fn read(&self, hpa: Hpa, bytes: &mut [u8]);

    /// Stores `bytes` at `hpa`.
    fn write(&mut self, hpa: Hpa, bytes: &[u8]);
}

const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == PAGE_BYTES);

/// Memory that holds only the pages that were written; all others read as zero.
///
/// It grows by one page of 4 KiB per host page written, so what bounds it is what the EPT maps.
#[derive(Debug, Clone, Default)]
pub struct SparseMemory {
    pages: HashMap<u64, Box<[u8; PAGE]>>,
}

impl SparseMemory {
    /// Memory full of zeros.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many pages are held.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }
}

/// Page number and offset of a run of bytes.
///
/// # Panics
/// If the run leaves its page.
#[allow(clippy::cast_possible_truncation)]
fn locate(hpa: Hpa, length: usize) -> (u64, usize) {
    let offset = (hpa.as_u64() % PAGE_BYTES) as usize;
    assert!(length <= PAGE - offset, "a run of bytes crosses a page");
    (hpa.as_u64() / PAGE_BYTES, offset)
}

impl GuestMemory for SparseMemory {
    fn read(&self, hpa: Hpa, bytes: &mut [u8]) {
        let (page, offset) = locate(hpa, bytes.len());
        match self.pages.get(&page) {
            Some(page) => bytes.copy_from_slice(&page[offset..offset + bytes.len()]),
            None => bytes.fill(0),
        }
    }

    fn write(&mut self, hpa: Hpa, bytes: &[u8]) {
        let (page, offset) = locate(hpa, bytes.len());
        let page = self.pages.entry(page).or_insert_with(|| Box::new([0; PAGE]));
        page[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

/// No contents: for traces, which have addresses but no data. Everything reads as zero.
impl GuestMemory for () {
    fn read(&self, _: Hpa, bytes: &mut [u8]) {
        bytes.fill(0);
    }

    fn write(&mut self, _: Hpa, _: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_everything_else_is_zero() {
        let mut memory = SparseMemory::new();
        memory.write(Hpa::new(0x1FFE), &[1, 2]);
        memory.write(Hpa::new(0x2000), &[3]);
        let mut bytes = [9; 4];
        memory.read(Hpa::new(0x1FFC), &mut bytes);
        assert_eq!(bytes, [0, 0, 1, 2]);
        memory.read(Hpa::new(0x2000), &mut bytes);
        assert_eq!(bytes, [3, 0, 0, 0]);
        memory.read(Hpa::MAX, &mut bytes[..1]);
        assert_eq!((bytes[0], memory.pages()), (0, 2));
    }

    #[test]
    #[should_panic(expected = "crosses a page")]
    fn a_run_across_pages_is_a_broken_caller() {
        SparseMemory::new().write(Hpa::new(0x1FFF), &[1, 2]);
    }
}

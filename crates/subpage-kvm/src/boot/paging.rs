//! Page tables: linear = physical, for 4 GiB and all memory above.
//!
//! Of 2 MiB pages, because not every processor has larger ones.

use subpage::address::{ByteRange, PAGE_BYTES};

use super::part::{COMMAND_LINE, PAGE_TABLES, write};
use super::{Part, Placed};
use crate::memory::Ram;

const POINTERS: u64 = PAGE_TABLES + PAGE_BYTES;
const DIRECTORIES: u64 = POINTERS + PAGE_BYTES;
/// Page directories that find room before the command line.
const LOW_ROOM: u64 = (COMMAND_LINE - DIRECTORIES) / PAGE_BYTES;
const GIB: u64 = 1 << 30;
const LARGE_PAGE: u64 = 2 << 20;

/// Present, writable.
const TABLE: u64 = 0x3;
/// Present, writable, accessed, dirty, large.
const PAGE: u64 = 0xe3;

/// Where the tables go.
#[derive(Debug, Clone, Copy)]
pub(super) struct BootTables {
    directories: u64,
    count: u64,
}

impl BootTables {
    /// One directory a GiB: behind the upper levels if they fit there, else at the end of low memory.
    pub(super) fn plan(ram: &Ram) -> Self {
        let end =
            |region: &crate::memory::Region| ByteRange::of_pages(region.pages).last().as_u64() + 1;
        let memory_end = ram.regions().last().map_or(0, end);
        let count = memory_end.div_ceil(GIB).max(4);
        let directories = if count <= LOW_ROOM {
            DIRECTORIES
        } else {
            ram.regions().first().map_or(0, end) - count * PAGE_BYTES
        };
        Self { directories, count }
    }

    /// What they take.
    pub(super) fn parts(self) -> Vec<Placed> {
        let bytes = self.count * PAGE_BYTES;
        match self.high() {
            None => vec![Placed::fixed(Part::PageTables, PAGE_TABLES, 2 * PAGE_BYTES + bytes)],
            Some(high) => vec![Placed::fixed(Part::PageTables, PAGE_TABLES, 2 * PAGE_BYTES), high],
        }
    }

    /// The directories, if they are at the end of low memory.
    pub(super) fn high(self) -> Option<Placed> {
        let bytes = self.count * PAGE_BYTES;
        (self.directories != DIRECTORIES)
            .then(|| Placed::fixed(Part::PageTables, self.directories, bytes))
    }

    pub(super) fn write(self, ram: &Ram) {
        write(ram, PAGE_TABLES, &table(|entry| if entry == 0 { POINTERS | TABLE } else { 0 }));
        write(
            ram,
            POINTERS,
            &table(|entry| match entry {
                entry if entry < self.count => (self.directories + entry * PAGE_BYTES) | TABLE,
                _ => 0,
            }),
        );
        for directory in 0..self.count {
            let page = |entry| (directory * GIB + entry * LARGE_PAGE) | PAGE;
            write(ram, self.directories + directory * PAGE_BYTES, &table(page));
        }
    }
}

fn table(entry: impl Fn(u64) -> u64) -> Vec<u8> {
    (0..512).flat_map(|index| entry(index).to_le_bytes()).collect()
}

//! The guest's page tables: the first 1 GiB mapped to itself, for the supervisor and the user.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{Bytes, LARGE_PAGE, PAGE, frames};
use crate::processor::registers;

/// Bit 0: present.
pub const PRESENT: u64 = 1 << 0;
/// Bit 1: writable.
pub const WRITE: u64 = 1 << 1;
/// Bit 2: for the user too.
pub const USER: u64 = 1 << 2;
/// Bit 5: accessed.
pub const ACCESSED: u64 = 1 << 5;
/// Bit 6: dirty.
pub const DIRTY: u64 = 1 << 6;
/// Bit 7: an entry of level 2 or 3 maps a page.
pub const LARGE: u64 = 1 << 7;

/// One table.
#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

impl Table {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 512])
    }

    fn address(&self) -> u64 {
        core::ptr::from_ref(self) as u64
    }
}

static ROOT: Table = Table::new();
static POINTERS: Table = Table::new();
static DIRECTORY: Table = Table::new();

/// Fills the tables; returns the root's address, for CR3.
pub fn initialise() -> u64 {
    let rights = PRESENT | WRITE | USER;
    for (index, entry) in DIRECTORY.0.iter().enumerate() {
        entry.store((index as u64 * LARGE_PAGE) | rights | LARGE, Ordering::Relaxed);
    }
    POINTERS.0[0].store(DIRECTORY.address() | rights, Ordering::Relaxed);
    ROOT.0[0].store(POINTERS.address() | rights, Ordering::Relaxed);
    ROOT.address()
}

/// Address of the root that [`initialise`] filled.
pub fn root() -> u64 {
    ROOT.address()
}

/// An address space of a test: the first 1 GiB as everywhere, and 2 MiB at [`Space::WINDOW`] mapped
/// by a table whose entries the test sets.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// Level 4.
    pub root: Bytes,
    /// Level 3, of the window.
    pub pointers: Bytes,
    /// Level 2, of the window.
    pub directory: Bytes,
    /// Level 1, of the window.
    pub table: Bytes,
}

impl Space {
    /// Linear address of the window: entry 1 of the root, 0 of all others.
    pub const WINDOW: u64 = 1 << 39;

    /// Builds it in four fresh pages; no page of the window is mapped.
    pub fn new() -> Self {
        let [root, pointers, directory, table] = core::array::from_fn(|_| frames::page());
        let rights = PRESENT | WRITE | USER;
        root.write(0, POINTERS.address() | rights);
        root.write(8, pointers.address() | rights);
        pointers.write(0, directory.address() | rights);
        directory.write(0, table.address() | rights);
        Self { root, pointers, directory, table }
    }

    /// Maps page `index` of the window.
    pub fn map(&self, index: u64, page: Bytes, rights: u64) {
        self.table.write(index * 8, page.address() | PRESENT | rights);
    }

    /// Runs `body` with these page tables.
    pub fn run<R>(&self, body: impl FnOnce() -> R) -> R {
        registers::set_cr3(self.root.address());
        let result = body();
        registers::set_cr3(root());
        result
    }

    /// The page at `index` of the window, by its linear address. To be used only while these page
    /// tables are [in use](Self::run), and where a page is mapped.
    pub const fn page(index: u64) -> Bytes {
        Self::pages(index, 1)
    }

    /// As [`page`](Self::page), for several pages.
    pub const fn pages(first: u64, count: u64) -> Bytes {
        Bytes::taken(Self::linear(first), count * PAGE)
    }

    /// Linear address of page `index` of the window.
    pub const fn linear(index: u64) -> u64 {
        Self::WINDOW + index * PAGE
    }
}

impl Default for Space {
    fn default() -> Self {
        Self::new()
    }
}

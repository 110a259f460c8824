//! Two pages of the hypervisor's address space that can be pointed at any two guest pages, so that
//! a store across a page end is one store.
//!
//! Unsafe because it edits the hypervisor's own page tables.
#![allow(unsafe_code)]

use alloc::boxed::Box;

use subpage::address::{Hpa, PAGE_BYTES};

use crate::boot::MAX_PROCESSORS;
use crate::processor::control;

/// Where the windows lie: the second 512 GiB, which nothing else uses.
const BASE: u64 = 1 << 39;

/// Pages from one processor's window to the next: two for the window, two that stay unmapped.
const STRIDE: u64 = 4;

const PRESENT_WRITABLE: u64 = 3;
const NO_EXECUTE: u64 = 1 << 63;
const PAGE_TABLE_ENTRIES: usize = 512;

const _: () = assert!(STRIDE as usize * MAX_PROCESSORS <= PAGE_TABLE_ENTRIES);

#[repr(C, align(4096))]
struct PageTable([u64; PAGE_TABLE_ENTRIES]);

/// All windows: one page table.
#[derive(Debug)]
pub struct Windows {
    table: *mut u64,
}

impl Windows {
    /// Links the page table for the windows into the address space of all processors.
    ///
    /// # Safety
    /// Once, while only one processor runs; memory is mapped to itself by 4-level paging, with
    /// nothing in the second entry of the top table.
    pub unsafe fn install() -> Self {
        let table = new_table();
        let directory = new_table();
        let pointers = new_table();
        // SAFETY: both are tables made above, of 512 entries.
        unsafe { directory.write_volatile(table as u64 | PRESENT_WRITABLE) };
        // SAFETY: likewise.
        unsafe { pointers.write_volatile(directory as u64 | PRESENT_WRITABLE) };
        let top = (control::cr3() & !(PAGE_BYTES - 1)) as usize as *mut u64;
        // SAFETY: the top table is mapped at its address, by the contract its second entry is free,
        // and absent entries are not cached.
        unsafe { top.wrapping_add(1).write_volatile(pointers as u64 | PRESENT_WRITABLE) };
        Self { table }
    }

    /// The window of a processor.
    ///
    /// # Safety
    /// Each processor's is asked for once, and used on that processor.
    pub unsafe fn of(&self, processor: usize) -> Window {
        assert!(processor < MAX_PROCESSORS, "processor {processor} has no window");
        let page = processor * STRIDE as usize;
        Window {
            // SAFETY: the table has `STRIDE` entries for each processor.
            entries: unsafe { self.table.add(page) },
            base: BASE + page as u64 * PAGE_BYTES,
        }
    }
}

fn new_table() -> *mut u64 {
    Box::leak(Box::new(PageTable([0; PAGE_TABLE_ENTRIES]))).0.as_mut_ptr()
}

/// One processor's window: two pages side by side.
#[derive(Debug)]
pub struct Window {
    entries: *mut u64,
    base: u64,
}

// SAFETY: the page-table entries belong to this window alone, whichever thread of control uses it.
unsafe impl Send for Window {}

impl Window {
    /// Points the window at one or two host pages and returns the address of its first byte.
    ///
    /// # Panics
    /// If an address is not that of a page.
    pub fn open(&mut self, first: Hpa, second: Option<Hpa>) -> *mut u8 {
        for (number, page) in [Some(first), second].into_iter().enumerate() {
            let entry = page.map_or(0, |hpa| {
                assert!(hpa.is_aligned(PAGE_BYTES), "{hpa:?} is no page");
                hpa.as_u64() | PRESENT_WRITABLE | NO_EXECUTE
            });
            // SAFETY: the window's own entries.
            unsafe { self.entries.wrapping_add(number).write_volatile(entry) };
            control::invalidate_page(self.base + number as u64 * PAGE_BYTES);
        }
        self.base as usize as *mut u8
    }

    /// Copies bytes from the window, from `offset` on.
    ///
    /// # Panics
    /// If they lie beyond its two pages. The pages must be open.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) {
        assert!(offset + buffer.len() as u64 <= 2 * PAGE_BYTES, "beyond the window");
        for (address, byte) in (self.base + offset..).zip(buffer) {
            // SAFETY: inside the open window; volatile, since the guest writes meanwhile.
            *byte = unsafe { (address as usize as *const u8).read_volatile() };
        }
    }

    /// Points it at nothing.
    pub fn close(&mut self) {
        for number in 0..2 {
            // SAFETY: the window's own entries.
            unsafe { self.entries.wrapping_add(number).write_volatile(0) };
            control::invalidate_page(self.base + number as u64 * PAGE_BYTES);
        }
    }
}

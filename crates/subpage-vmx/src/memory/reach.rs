//! The hypervisor's view of physical memory above 4 GiB, at its own addresses.
//!
//! Unsafe because it edits the hypervisor's own page tables.
#![allow(unsafe_code)]

use alloc::boxed::Box;

use crate::processor::{control, cpuid};

const PRESENT_WRITABLE: u64 = 3;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const GIB: u64 = 1 << 30;
/// The first gibibyte that the boot code leaves out.
const FIRST: u64 = 4;
/// What one table of pointers maps: behind it are the windows.
const MOST: u64 = 512;

/// Nothing is mapped from here on.
pub const END: u64 = MOST * GIB;

#[repr(C, align(4096))]
struct PageTable([u64; 512]);

/// Maps memory above 4 GiB to itself, up to `end` or [`END`]; gives the first address that is not
/// mapped.
///
/// # Safety
/// While only one processor runs; memory is mapped to itself by 4-level paging, and the first entry of
/// the top table points at a table whose entries from the fifth on are free.
pub unsafe fn extend(end: u64) -> u64 {
    let gibibytes = end.div_ceil(GIB).clamp(FIRST, MOST);
    let top = (control::cr3() & !0xFFF) as usize as *const u64;
    // SAFETY: by the contract.
    let pointers = unsafe { top.read_volatile() } & 0x000F_FFFF_FFFF_F000;
    let pointers = pointers as usize as *mut u64;
    let gigabyte_pages = cpuid::leaf(0x8000_0001, 0).edx & 1 << 26 != 0;
    for gibibyte in FIRST..gibibytes {
        let first = gibibyte * GIB;
        let entry = if gigabyte_pages {
            first | LARGE | NO_EXECUTE | PRESENT_WRITABLE
        } else {
            let pages = core::array::from_fn(|page| {
                first | (page as u64) << 21 | LARGE | NO_EXECUTE | PRESENT_WRITABLE
            });
            let directory = Box::leak(Box::new(PageTable(pages)));
            core::ptr::from_mut(directory) as u64 | PRESENT_WRITABLE
        };
        // SAFETY: a free entry of the table; absent ones are not cached.
        unsafe { pointers.wrapping_add(gibibyte as usize).write_volatile(entry) };
    }
    gibibytes * GIB
}

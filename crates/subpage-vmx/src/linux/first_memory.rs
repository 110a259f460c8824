//! What a kernel finds in memory when it is entered: descriptors, the zero page, page tables, the
//! command line, a stack (Linux, Documentation/arch/x86/boot.rst, "64-bit boot protocol").

use core::ops::Range;

use alloc::vec::Vec;
use subpage_linux::boot::{MemoryKind, SetupHeader, TooManyRanges, ZERO_PAGE_BYTES, ZeroPage};

use crate::boot::Area;

const PAGE: usize = 0x1000;
const DESCRIPTORS: usize = 0;
const PARAMETERS: usize = PAGE;
const TOP_TABLE: usize = 2 * PAGE;
const POINTERS: usize = 3 * PAGE;
const DIRECTORIES: usize = 4 * PAGE;
const COMMAND_LINE: usize = 8 * PAGE;
const STACK: usize = 9 * PAGE;
const ROOT_POINTER: usize = DESCRIPTORS + 0x800;

/// Bytes of it all.
pub(super) const BYTES: u64 = 11 * PAGE as u64;

/// Longest command line that there is room for, with its NUL.
pub(super) const COMMAND_LINE_ROOM: usize = STACK - COMMAND_LINE;

/// Longest copy of ACPI's root pointer.
pub(super) const ROOT_POINTER_ROOM: usize = 64;

/// Selectors that the protocol demands.
pub(super) const CODE: u16 = 0x10;
/// Likewise.
pub(super) const DATA: u16 = 0x18;
/// Flat segments: 64-bit code and data, at their selectors.
const GDT: [u64; 4] = [0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF];

#[allow(clippy::cast_possible_truncation)] // 31.
const GDT_LIMIT: u32 = size_of_val(&GDT) as u32 - 1;

/// Where it stands, by what the first processor's registers hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Addresses {
    /// RSI.
    pub parameters: u64,
    /// CR3.
    pub top_table: u64,
    /// RSP.
    pub stack: u64,
    /// GDTR.
    pub descriptors: u64,
    /// Limit of GDTR.
    pub descriptors_limit: u32,
}

/// Where things are in a block at `base`.
pub(super) const fn addresses(base: u64) -> Addresses {
    Addresses {
        parameters: base + PARAMETERS as u64,
        top_table: base + TOP_TABLE as u64,
        stack: base + BYTES,
        descriptors: base + DESCRIPTORS as u64,
        descriptors_limit: GDT_LIMIT,
    }
}

/// What the block tells.
#[derive(Debug)]
pub(super) struct Told<'a> {
    /// The kernel's header.
    pub header: &'a SetupHeader,
    /// Where the kernel's loader begins.
    pub loaded_at: u32,
    /// Where the initrd is.
    pub initrd: Option<Range<u32>>,
    /// The kernel's command line, shorter than [`COMMAND_LINE_ROOM`].
    pub command_line: &'a str,
    /// The machine's memory, ascending.
    pub memory: &'a [Area],
    /// What of it is the hypervisor's.
    pub own: &'a [Range<u64>],
    /// A copy of ACPI's root pointer, if the boot loader has brought one.
    pub root_pointer: Option<&'a [u8]>,
}

/// The block that goes to `base`, below 4 GiB.
///
/// # Panics
/// If the command line, or the root pointer, is longer than there is room for.
pub(super) fn block(base: u32, told: &Told<'_>) -> Result<Vec<u8>, TooManyRanges> {
    let mut block = alloc::vec![0; usize::try_from(BYTES).expect("a few pages")];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    let address = |offset: usize| u64::from(base) + offset as u64;
    for (number, descriptor) in GDT.into_iter().enumerate() {
        put(DESCRIPTORS + number * 8, &descriptor.to_le_bytes());
    }
    // The first 4 GiB at their own addresses, in pages of 2 MiB.
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    put(TOP_TABLE, &(address(POINTERS) | PRESENT_WRITABLE).to_le_bytes());
    for number in 0..4 {
        let entry = address(DIRECTORIES + number * PAGE) | PRESENT_WRITABLE;
        put(POINTERS + number * 8, &entry.to_le_bytes());
    }
    for page in 0..2048 {
        let entry = (page as u64) << 21 | LARGE | PRESENT_WRITABLE;
        put(DIRECTORIES + page * 8, &entry.to_le_bytes());
    }
    assert!(told.command_line.len() < COMMAND_LINE_ROOM, "the command line has been checked");
    put(COMMAND_LINE, told.command_line.as_bytes());

    let mut page = ZeroPage::new(told.header, told.loaded_at);
    page.set_command_line(base + u32::try_from(COMMAND_LINE).expect("a few pages"));
    if let Some(initrd) = &told.initrd {
        page.set_initrd(initrd);
    }
    if let Some(pointer) = told.root_pointer {
        assert!(pointer.len() <= ROOT_POINTER_ROOM, "the root pointer has been checked");
        put(ROOT_POINTER, pointer);
        page.set_root_pointer(address(ROOT_POINTER));
    }
    for area in told.memory {
        add_area(&mut page, area, told.own)?;
    }
    const { assert!(ZERO_PAGE_BYTES == PAGE) };
    put(PARAMETERS, page.as_bytes());
    Ok(block)
}

/// Adds an area; what of it is the hypervisor's is reserved.
fn add_area(page: &mut ZeroPage, area: &Area, own: &[Range<u64>]) -> Result<(), TooManyRanges> {
    let kind = MemoryKind(area.kind);
    let Range { mut start, end } = area.range;
    while start < end {
        let covering = own.iter().find(|own| own.start <= start && start < own.end);
        let (stop, kind) = match covering.filter(|_| kind == MemoryKind::USABLE) {
            Some(own) => (own.end.min(end), MemoryKind::RESERVED),
            None if kind == MemoryKind::USABLE => {
                let next = own.iter().map(|own| own.start).filter(|&at| at > start).min();
                (next.unwrap_or(end).min(end), kind)
            }
            None => (end, kind),
        };
        page.add_memory(&(start..stop), kind)?;
        start = stop;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SetupHeader {
        let mut file = std::vec![0; 0x1A00];
        file[0x1F1] = 4;
        file[0x1F4..0x1F8].copy_from_slice(&0x100_u32.to_le_bytes());
        file[0x1FE..0x200].copy_from_slice(&[0x55, 0xAA]);
        file[0x201] = 0x6A;
        file[0x202..0x208].copy_from_slice(b"HdrS\x0F\x02");
        file[0x211] = 1;
        file[0x236] = 1;
        file[0x258..0x260].copy_from_slice(&0x100_0000_u64.to_le_bytes());
        file[0x260..0x264].copy_from_slice(&0x200_0000_u32.to_le_bytes());
        SetupHeader::read(&file).expect("a bzImage")
    }

    fn long(block: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(block[at..at + 8].try_into().expect("eight bytes"))
    }

    #[test]
    fn the_hypervisors_memory_is_reserved() {
        let header = header();
        let area = |range, kind| Area { range, kind };
        let told = Told {
            header: &header,
            loaded_at: 0x40_0000,
            initrd: Some(0x800_0000..0x800_1000),
            command_line: "console=ttyS0",
            memory: &[
                area(0..0x9_F000, 1),
                area(0x10_0000..0x2000_0000, 1),
                area(0x2000_0000..0x2001_0000, 3),
                area(0x1_0000_0000..0x1_4000_0000, 1),
            ],
            own: &[0x10_0000..0x34_5000, 0x1F00_0000..0x2000_0000],
            root_pointer: Some(b"RSD PTR "),
        };
        let block = block(0x1_0000, &told).expect("few ranges");
        let count = usize::from(block[PARAMETERS + 0x1E8]);
        let ranges: Vec<_> = (0..count)
            .map(|number| {
                let at = PARAMETERS + 0x2D0 + number * 20;
                (long(&block, at), long(&block, at + 8), block[at + 16])
            })
            .collect();
        assert_eq!(
            ranges,
            [
                (0, 0x9_F000, 1),
                (0x10_0000, 0x24_5000, 2),
                (0x34_5000, 0x1ECB_B000, 1),
                (0x1F00_0000, 0x100_0000, 2),
                (0x2000_0000, 0x1_0000, 3),
                (0x1_0000_0000, 0x4000_0000, 1),
            ]
        );
        assert_eq!(&block[COMMAND_LINE..COMMAND_LINE + 14], b"console=ttyS0\0");
        assert_eq!(long(&block, PARAMETERS + 0x70), 0x1_0800);
        assert_eq!(&block[0x800..0x808], b"RSD PTR ");
    }

    #[test]
    fn the_first_four_gibibytes_are_mapped_to_themselves() {
        let header = header();
        let told = Told {
            header: &header,
            loaded_at: 0,
            initrd: None,
            command_line: "",
            memory: &[],
            own: &[],
            root_pointer: None,
        };
        let base = 0x2_0000;
        let block = block(base, &told).expect("no ranges");
        let read = |address: u64| {
            long(&block, usize::try_from(address - u64::from(base)).expect("in the block"))
        };
        for address in [0, 0x100_0000, 0xFEE0_0000_u64] {
            let pointers = read(addresses(base.into()).top_table) & !0xFFF;
            let directory = read(pointers + (address >> 30) * 8) & !0xFFF;
            let entry = read(directory + (address >> 21 & 511) * 8);
            assert_eq!(entry & 0x83, 0x83);
            assert_eq!(entry & !0x1F_FFFF, address & !0x1F_FFFF);
        }
    }
}

//! The zero page (`struct boot_params`; Linux, Documentation/arch/x86/zero-page.rst).

use core::ops::Range;

use thiserror::Error;

use super::{HEADER_AT, HEADER_END, SetupHeader};

/// Bytes of the zero page.
pub const ZERO_PAGE_BYTES: usize = 4096;

/// Most ranges of memory that it can tell of.
pub const MAX_RANGES: usize = 128;

// Offsets of fields.
const RSDP: usize = 0x070;
const RANGES: usize = 0x1E8;
const VIDEO_MODE: usize = 0x1FA;
const LOADER: usize = 0x210;
const LOADED_AT: usize = 0x214;
const INITRD: usize = 0x218;
const INITRD_BYTES: usize = 0x21C;
const COMMAND_LINE: usize = 0x228;
const SETUP_DATA: usize = 0x250;
const RANGE_TABLE: usize = 0x2D0;
const RANGE_BYTES: usize = 20;

const _: () = assert!(RANGE_TABLE + MAX_RANGES * RANGE_BYTES <= ZERO_PAGE_BYTES);

/// What a range of memory is: ACPI's "Address Range Types" (E820).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryKind(pub u32);

impl MemoryKind {
    /// For the kernel.
    pub const USABLE: Self = Self(1);
    /// For nobody.
    pub const RESERVED: Self = Self(2);
}

/// More ranges than the page has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the memory has more than {MAX_RANGES} ranges")]
pub struct TooManyRanges;

/// A zero page, filled step by step.
#[derive(Debug, Clone)]
pub struct ZeroPage([u8; ZERO_PAGE_BYTES]);

impl ZeroPage {
    /// One with a kernel's header in it, of which the part that is loaded lies at `loaded_at` (below
    /// 4 GiB), from a loader without a number of its own.
    pub fn new(header: &SetupHeader, loaded_at: u32) -> Self {
        const UNDEFINED_LOADER: u8 = 0xFF;
        /// The mode that a kernel chooses itself.
        const NORMAL_MODE: u16 = 0xFFFF;
        let mut page = Self([0; ZERO_PAGE_BYTES]);
        page.0[HEADER_AT..HEADER_END].copy_from_slice(header.bytes());
        page.set(LOADER, &[UNDEFINED_LOADER]);
        page.set(VIDEO_MODE, &NORMAL_MODE.to_le_bytes());
        page.set(SETUP_DATA, &[0; 8]);
        page.set(LOADED_AT, &loaded_at.to_le_bytes());
        page.set_initrd(&(0..0));
        page
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Where the command line begins, which ends with a NUL.
    pub fn set_command_line(&mut self, address: u32) {
        self.set(COMMAND_LINE, &address.to_le_bytes());
    }

    /// Where the initrd is.
    pub fn set_initrd(&mut self, initrd: &Range<u32>) {
        self.set(INITRD, &initrd.start.to_le_bytes());
        self.set(INITRD_BYTES, &initrd.end.saturating_sub(initrd.start).to_le_bytes());
    }

    /// Where ACPI's root pointer is; a kernel that is not told looks where a BIOS has it.
    pub fn set_root_pointer(&mut self, address: u64) {
        self.set(RSDP, &address.to_le_bytes());
    }

    /// Adds a range of memory; they have to come in ascending order.
    pub fn add_memory(
        &mut self,
        range: &Range<u64>,
        kind: MemoryKind,
    ) -> Result<(), TooManyRanges> {
        let number = self.0[RANGES];
        if usize::from(number) == MAX_RANGES {
            return Err(TooManyRanges);
        }
        let at = RANGE_TABLE + usize::from(number) * RANGE_BYTES;
        self.set(at, &range.start.to_le_bytes());
        self.set(at + 8, &range.end.saturating_sub(range.start).to_le_bytes());
        self.set(at + 16, &kind.0.to_le_bytes());
        self.0[RANGES] = number + 1;
        Ok(())
    }

    /// The page as it stands in memory.
    pub const fn as_bytes(&self) -> &[u8; ZERO_PAGE_BYTES] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::super::header::tests::image;
    use super::*;

    #[test]
    fn every_field_is_in_its_place() {
        let file = image();
        let header = SetupHeader::read(&file).expect("a bzImage");
        let mut page = ZeroPage::new(&header, 0x40_0000);
        page.set_command_line(0x1_8000);
        page.set_initrd(&(0x800_0000..0x800_0D38));
        page.set_root_pointer(0xE_0000);
        page.add_memory(&(0..0x9_F000), MemoryKind::USABLE).expect("room");
        page.add_memory(&(0x10_0000..0x40_0000), MemoryKind::RESERVED).expect("room");
        let bytes = page.as_bytes();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
        assert_eq!(bytes[0x202..0x206], *b"HdrS");
        assert_eq!(word(0x260), 0x2C8_2000, "init_size");
        assert_eq!((bytes[0x210], word(0x214)), (0xFF, 0x40_0000));
        assert_eq!((word(0x218), word(0x21C)), (0x800_0000, 0xD38));
        assert_eq!((word(0x228), long(0x070)), (0x1_8000, 0xE_0000));
        assert_eq!(bytes[0x1E8], 2);
        assert_eq!((long(0x2D0), long(0x2D8), word(0x2E0)), (0, 0x9_F000, 1));
        assert_eq!((long(0x2E4), long(0x2EC), word(0x2F4)), (0x10_0000, 0x30_0000, 2));
    }

    #[test]
    fn there_is_room_for_so_many_ranges() {
        let header = SetupHeader::read(&image()).expect("a bzImage");
        let mut page = ZeroPage::new(&header, 0);
        for number in 0..MAX_RANGES as u64 {
            page.add_memory(&(number..number + 1), MemoryKind::USABLE).expect("room");
        }
        assert_eq!(page.add_memory(&(128..129), MemoryKind::USABLE), Err(TooManyRanges));
    }
}

//! The Multiboot2 information block: command line, memory, modules.
//!
//! Read by code of our own and not by the crate `multiboot2`, which follows pointers through the
//! block and asserts: a damaged block has to end in a line on the serial port.

use core::ops::Range;

use arrayvec::ArrayVec;
use thiserror::Error;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// EAX at the entry: loaded by Multiboot2.
pub const MAGIC: u32 = 0x36D7_6289;

/// Largest block that is believed, in bytes.
pub const LARGEST_BLOCK: u32 = 1 << 20;

/// Most usable memory areas, and most modules, that are looked at.
pub const MOST: usize = 32;

/// Most memory areas of all kinds: as many as a Linux kernel can be told of.
pub const MOST_AREAS: usize = 128;

/// A file that the boot loader has put into memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module<'a> {
    /// First word of its command line: `guest`, `policy`.
    pub name: &'a str,
    /// Where it lies.
    pub range: Range<u64>,
}

/// A range of physical memory, as firmware tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Area {
    /// Not empty.
    pub range: Range<u64>,
    /// What it is: ACPI's "Address Range Types"; 1 is usable.
    pub kind: u32,
}

/// A screen of characters, two bytes each, in the memory that the PC has for it: A0000H to BFFFFH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextScreen {
    /// Physical address of the first character.
    pub address: u32,
    /// Characters of a row; rows follow each other without a gap.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

impl TextScreen {
    const MEMORY: Range<u64> = 0xA_0000..0xC_0000;
    /// Type of a framebuffer that holds characters (Multiboot2, "Framebuffer info").
    const TEXT: u8 = 2;

    /// The screen of a tag; `None` if it shows pixels, or does not lie in its memory.
    fn of(tag: &FramebufferTag) -> Option<Self> {
        let (columns, rows) = (tag.width.get(), tag.height.get());
        let (address, pitch) = (tag.address.get(), tag.pitch.get());
        let bytes = u64::from(pitch) * u64::from(rows);
        let end = address.checked_add(bytes)?;
        let is_text = tag.kind == Self::TEXT && columns.checked_mul(2) == Some(pitch);
        let is_there = address >= Self::MEMORY.start && end <= Self::MEMORY.end;
        if !(is_text && is_there && bytes > 0 && address % 2 == 0) {
            return None;
        }
        let (columns, rows) = (columns.try_into().ok()?, rows.try_into().ok()?);
        Some(Self { address: address.try_into().ok()?, columns, rows })
    }

    /// Whether a range of physical memory has one of its cells.
    pub fn overlaps(&self, range: &Range<u64>) -> bool {
        let start = u64::from(self.address);
        let end = start + u64::from(self.columns) * u64::from(self.rows) * 2;
        start < range.end && range.start < end
    }
}

/// What the boot loader tells, checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Information<'a> {
    /// The hypervisor's command line.
    pub command_line: &'a str,
    /// Usable memory as the loader lists it; no area is empty, none wraps.
    pub memory: ArrayVec<Range<u64>, MOST>,
    /// All areas, usable or not.
    pub areas: ArrayVec<Area, MOST_AREAS>,
    /// A copy of ACPI's root pointer; that of a newer version, if there are two.
    pub root_pointer: Option<&'a [u8]>,
    /// The screen, if it shows text.
    pub screen: Option<TextScreen>,
    /// The modules.
    pub modules: ArrayVec<Module<'a>, MOST>,
}

/// Why the block cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InformationError {
    /// A size is impossible.
    #[error("the Multiboot2 information is damaged at byte {0}")]
    Damaged(usize),
    /// A text is not UTF-8.
    #[error("the Multiboot2 information has a text that is not UTF-8 at byte {0}")]
    NotText(usize),
    /// There is no memory map.
    #[error("the Multiboot2 information has no memory map (tag 6)")]
    NoMemoryMap,
    /// More areas or modules than are looked at.
    #[error(
        "the Multiboot2 information lists more than {MOST} usable memory areas or modules, or more than \
         {MOST_AREAS} areas"
    )]
    TooMany,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Tag {
    kind: U32,
    size: U32,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ModuleTag {
    start: U32,
    end: U32,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct AreaEntry {
    base: U64,
    bytes: U64,
    kind: U32,
    reserved: U32,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct FramebufferTag {
    address: U64,
    pitch: U32,
    width: U32,
    height: U32,
    bits: u8,
    kind: u8,
}

const TAG_END: u32 = 0;
const TAG_COMMAND_LINE: u32 = 1;
const TAG_MODULE: u32 = 3;
const TAG_MEMORY_MAP: u32 = 6;
const TAG_FRAMEBUFFER: u32 = 8;
const TAG_ROOT_POINTER_1: u32 = 14;
const TAG_ROOT_POINTER_2: u32 = 15;
/// [`Area::kind`] of memory.
pub const USABLE: u32 = 1;

impl<'a> Information<'a> {
    /// Reads a block; `block` begins with its header (Multiboot2, "Boot information format").
    pub fn read(block: &'a [u8]) -> Result<Self, InformationError> {
        let mut found = Self::default();
        let mut has_map = false;
        let mut at = 8;
        loop {
            let rest = block.get(at..).ok_or(InformationError::Damaged(at))?;
            let (tag, _) = Tag::ref_from_prefix(rest).map_err(|_| InformationError::Damaged(at))?;
            let size = tag.size.get() as usize;
            let body = rest.get(8..size).ok_or(InformationError::Damaged(at))?;
            match tag.kind.get() {
                TAG_END => break,
                TAG_COMMAND_LINE => found.command_line = text(body, at)?,
                TAG_MODULE => found.add_module(body, at)?,
                TAG_MEMORY_MAP => {
                    has_map = true;
                    found.add_areas(body, at)?;
                }
                // A screen that is not understood is none: nothing else depends on it.
                TAG_FRAMEBUFFER => {
                    let tag = FramebufferTag::ref_from_prefix(body).ok();
                    found.screen = tag.and_then(|(tag, _)| TextScreen::of(tag));
                }
                TAG_ROOT_POINTER_1 if found.root_pointer.is_some() => {}
                TAG_ROOT_POINTER_1 | TAG_ROOT_POINTER_2 => found.root_pointer = Some(body),
                _ => {}
            }
            at += size.checked_next_multiple_of(8).ok_or(InformationError::Damaged(at))?;
        }
        if has_map { Ok(found) } else { Err(InformationError::NoMemoryMap) }
    }

    fn add_module(&mut self, body: &'a [u8], at: usize) -> Result<(), InformationError> {
        let damaged = InformationError::Damaged(at);
        let (tag, name) = ModuleTag::ref_from_prefix(body).map_err(|_| damaged)?;
        let range = u64::from(tag.start.get())..u64::from(tag.end.get());
        if range.end < range.start {
            return Err(damaged);
        }
        let name = text(name, at)?.split_ascii_whitespace().next().unwrap_or("");
        let module = Module { name, range };
        self.modules.try_push(module).map_err(|_| InformationError::TooMany)
    }

    fn add_areas(&mut self, body: &[u8], at: usize) -> Result<(), InformationError> {
        let damaged = InformationError::Damaged(at);
        let (header, entries) = Tag::ref_from_prefix(body).map_err(|_| damaged)?;
        // The first word of this tag's body is the size of an entry, which may grow.
        let entry_bytes = header.kind.get() as usize;
        if entry_bytes < size_of::<AreaEntry>() {
            return Err(damaged);
        }
        for entry in entries.chunks_exact(entry_bytes) {
            let (area, _) = AreaEntry::ref_from_prefix(entry).map_err(|_| damaged)?;
            let (base, bytes) = (area.base.get(), area.bytes.get());
            if bytes == 0 {
                continue;
            }
            let range = base..base.checked_add(bytes).ok_or(damaged)?;
            let kind = area.kind.get();
            if kind == USABLE {
                self.memory.try_push(range.clone()).map_err(|_| InformationError::TooMany)?;
            }
            let area = Area { range, kind };
            self.areas.try_push(area).map_err(|_| InformationError::TooMany)?;
        }
        Ok(())
    }
}

/// A text that ends with a zero byte.
fn text(bytes: &[u8], at: usize) -> Result<&str, InformationError> {
    let length = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    core::str::from_utf8(&bytes[..length]).map_err(|_| InformationError::NotText(at))
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    fn tag(kind: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(kind.to_le_bytes());
        bytes.extend(u32::try_from(body.len() + 8).expect("small").to_le_bytes());
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    fn area(base: u64, bytes: u64, kind: u32) -> Vec<u8> {
        let words = [base.to_le_bytes(), bytes.to_le_bytes(), u64::from(kind).to_le_bytes()];
        words.concat()
    }

    fn screen(address: u64, pitch: u32, width: u32, height: u32, kind: u8) -> Vec<u8> {
        let words = [pitch, width, height].map(u32::to_le_bytes);
        [&address.to_le_bytes()[..], &words.concat(), &[16, kind, 0, 0]].concat()
    }

    fn block() -> Vec<u8> {
        let mut map = [24_u32.to_le_bytes(), 0_u32.to_le_bytes()].concat();
        map.extend(area(0, 0x9F000, 1));
        map.extend(area(0x9F000, 0x1000, 2));
        map.extend(area(0x10_0000, 0x700_0000, 1));
        let module = [0x80_0000_u32.to_le_bytes(), 0x80_1000_u32.to_le_bytes()].concat();
        let mut bytes = [0_u8; 8].to_vec();
        bytes.extend(tag(1, b"subpage cpus=2\0"));
        bytes.extend(tag(3, &[module.as_slice(), b"guest a b\0"].concat()));
        bytes.extend(tag(0xBEEF, &[1, 2, 3]));
        bytes.extend(tag(8, &screen(0xB_8000, 160, 80, 25, 2)));
        bytes.extend(tag(6, &map));
        bytes.extend(tag(15, b"RSD PTR 2"));
        bytes.extend(tag(14, b"RSD PTR 1"));
        bytes.extend(tag(0, &[]));
        bytes
    }

    #[test]
    fn a_block_tells_all() {
        let block = block();
        let information = Information::read(&block).expect("well formed");
        assert_eq!(information.command_line, "subpage cpus=2");
        assert_eq!(information.memory.as_slice(), [0..0x9F000, 0x10_0000..0x710_0000]);
        let kinds: Vec<_> = information.areas.iter().map(|area| area.kind).collect();
        assert_eq!(kinds, [1, 2, 1]);
        assert_eq!(information.root_pointer, Some(&b"RSD PTR 2"[..]));
        let screen = TextScreen { address: 0xB_8000, columns: 80, rows: 25 };
        assert_eq!(information.screen, Some(screen));
        let module = Module { name: "guest", range: 0x80_0000..0x80_1000 };
        assert_eq!(information.modules.as_slice(), [module]);
    }

    #[test]
    fn a_screen_is_text_in_the_memory_of_screens() {
        let of = |body: &[u8]| {
            let (tag, _) = FramebufferTag::ref_from_prefix(body).expect("long enough");
            TextScreen::of(tag)
        };
        assert!(of(&screen(0xB_8000, 160, 80, 25, 2)).is_some());
        for other in [
            // Pixels, another pitch, none, too many rows, elsewhere, beyond all addresses.
            screen(0xB_8000, 160, 80, 25, 1),
            screen(0xB_8000, 320, 80, 25, 2),
            screen(0xB_8000, 0, 0, 25, 2),
            screen(0xB_8000, 160, 80, 205, 2),
            screen(0x10_0000, 160, 80, 25, 2),
            screen(0xB_8001, 160, 80, 25, 2),
            screen(u64::MAX - 1, 160, 80, 25, 2),
            screen(0xA_0000, u32::MAX - 1, u32::MAX / 2, u32::MAX, 2),
        ] {
            assert_eq!(of(&other), None);
        }
        let screen = of(&screen(0xB_8000, 160, 80, 25, 2)).expect("a screen");
        for (range, overlaps) in [
            (0..0xB_8000, false),
            (0..0xB_8001, true),
            (0xB_8F9F..0xB_8FA0, true),
            (0xB_8FA0..0x10_0000, false),
        ] {
            assert_eq!(screen.overlaps(&range), overlaps, "{range:x?}");
        }
    }

    #[test]
    fn a_block_cut_anywhere_is_refused_and_damage_never_panics() {
        let block = block();
        for length in 0..block.len() - 8 {
            assert!(Information::read(&block[..length]).is_err(), "cut to {length} bytes");
        }
        for at in 0..block.len() {
            for value in [0, 1, 7, 0x7F, 0xFF] {
                let mut damaged = block.clone();
                damaged[at] = value;
                let _ = Information::read(&damaged);
            }
        }
    }
}

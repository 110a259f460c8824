//! The parts that a start puts into guest memory, none over another.

use std::fmt;

use subpage::address::{ByteRange, Gpa};
use vm_memory::{Bytes as _, GuestAddress};

use super::BootError;
use crate::memory::Ram;

/// GDT and task-state segment.
pub(super) const DESCRIPTORS: u64 = 0x500;
/// The task-state segment among them.
pub(super) const TASK_STATE: u64 = 0x600;
/// Bytes of a 64-bit task-state segment without an I/O permission map.
pub(super) const TASK_STATE_BYTES: u16 = 104;
/// `struct boot_params`.
pub(super) const ZERO_PAGE: u64 = 0x7000;
/// The stack's lowest byte.
pub(super) const STACK: u64 = 0x8000;
/// What RSP begins with: aligned as the ABI wants it, with zeros where a return address would be.
pub(super) const STACK_TOP: u64 = 0x8ff0;
/// Page-table root; the next level is the page behind it.
pub(super) const PAGE_TABLES: u64 = 0x9000;
/// Command line with its NUL.
pub(super) const COMMAND_LINE: u64 = 0x20000;
/// Bytes of room for it.
pub(super) const COMMAND_LINE_ROOM: u64 = 0x10000;
/// Tables of the MultiProcessor Specification, where the extended BIOS data area would be.
pub(super) const MP_TABLE: u64 = 0x9fc00;
/// Tables of ACPI, where kernels search for the pointer to them: in what is a PC's BIOS.
pub(super) const ACPI_TABLES: u64 = 0xe_0000;
/// Where a PC's memory begins that has no holes.
pub(super) const HIGH_MEMORY: u64 = 0x10_0000;

/// What a range of guest memory holds at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// GDT and TSS.
    Descriptors,
    /// The zero page.
    ZeroPage,
    /// The boot stack.
    Stack,
    /// Page tables.
    PageTables,
    /// Command line.
    CommandLine,
    /// MultiProcessor tables.
    MpTable,
    /// Tables of ACPI.
    AcpiTables,
    /// A load segment of an ELF image, by its program header's index.
    Segment(u16),
    /// A flat image.
    Flat,
    /// A Multiboot kernel that is loaded by its header's addresses.
    MultibootImage,
    /// What a Multiboot kernel is told.
    MultibootInformation,
    /// A bzImage's kernel and the memory behind it that it needs before it looks at the E820 map.
    Kernel,
    /// The initrd.
    Initrd,
}

impl fmt::Display for Part {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Descriptors => "the GDT and TSS",
            Self::ZeroPage => "the zero page",
            Self::Stack => "the boot stack",
            Self::PageTables => "the page tables",
            Self::CommandLine => "the command line",
            Self::MpTable => "the MP table",
            Self::AcpiTables => "the ACPI tables",
            Self::Segment(index) => return write!(out, "segment {index} of the image"),
            Self::Flat => "the flat image",
            Self::MultibootImage => "the image",
            Self::MultibootInformation => "the Multiboot information",
            Self::Kernel => "the kernel",
            Self::Initrd => "the initrd",
        };
        out.write_str(name)
    }
}

/// A part and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// What it is.
    pub part: Part,
    /// Its bytes.
    pub range: ByteRange,
}

impl Placed {
    /// A part of the boot contract, whose place is known to be an address.
    ///
    /// # Panics
    /// If it has no bytes or leaves 48 bits.
    pub(super) fn fixed(part: Part, first: u64, bytes: u64) -> Self {
        let range = ByteRange::new(Gpa::new(first), bytes).expect("a place in low memory");
        Self { part, range }
    }

    /// The address behind its last byte.
    pub(super) const fn end(self) -> u64 {
        self.range.last().as_u64() + 1
    }

    /// Whether all of it is memory.
    pub(super) fn check_memory(self, ram: &Ram) -> Result<(), BootError> {
        if ram.holds(self.range) {
            return Ok(());
        }
        let region =
            |at: usize| ram.regions().get(at).map(|region| ByteRange::of_pages(region.pages));
        let low = region(0).map_or(0, |range| range.last().as_u64() + 1);
        let high = region(1).map(|range| (range.first().as_u64(), range.last().as_u64() + 1));
        Err(BootError::NotMemory { placed: self, bytes: ram.bytes(), low, high })
    }
}

impl fmt::Display for Placed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} ({:#x}..{:#x})", self.part, self.range.first().as_u64(), self.end())
    }
}

/// Refuses parts of which two share a byte.
pub(super) fn check_apart(parts: &[Placed]) -> Result<(), BootError> {
    let mut sorted = parts.to_vec();
    sorted.sort_by_key(|placed| placed.range.first());
    for pair in sorted.windows(2) {
        if pair[0].range.intersection(pair[1].range).is_some() {
            return Err(BootError::Overlap { first: pair[0], second: pair[1] });
        }
    }
    Ok(())
}

/// Writes bytes of a part that [`Placed::check_memory`] has passed.
///
/// # Panics
/// If they are no memory.
pub(super) fn write(ram: &Ram, at: u64, bytes: &[u8]) {
    ram.direct().write_slice(bytes, GuestAddress(at)).expect("checked to be memory");
}

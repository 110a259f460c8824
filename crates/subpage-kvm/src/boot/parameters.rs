//! The zero page: what a guest is told about its command line, initrd and memory.

use linux_loader::loader::bootparam::{LOADED_HIGH, boot_e820_entry, boot_params, setup_header};
use subpage::address::ByteRange;
use vm_memory::ByteValued as _;

use super::part::{
    ACPI_TABLES, COMMAND_LINE, COMMAND_LINE_ROOM, HIGH_MEMORY, MP_TABLE, ZERO_PAGE, write,
};
use super::{Part, Placed};
use crate::memory::Ram;

/// Offset of the setup header, in a bzImage and in the zero page.
pub(super) const HEADER_AT: u16 = 0x1f1;
/// Where it must end in the zero page.
pub(super) const HEADER_END: u16 = 0x290;
/// "HdrS".
pub(super) const HEADER_MAGIC: u32 = 0x5372_6448;
/// At the end of a boot sector, and in each setup header.
pub(super) const BOOT_FLAG: u16 = 0xaa55;

/// Protocol version that an image without a header is told.
const VERSION: u16 = 0x020f;
/// A loader without a number of its own.
const UNDEFINED_LOADER: u8 = 0xff;
/// The video mode that a kernel chooses itself.
const NORMAL_MODE: u16 = 0xffff;
/// In `loadflags`: the kernel was moved at random (`KASLR_FLAG` of Linux).
const KASLR: u8 = 1 << 1;
/// What Linux for x86 takes as a command line, and as the last byte of an initrd.
const LINUX_COMMAND_LINE: u32 = 2047;
const LINUX_INITRD_MAX: u32 = 0x7fff_ffff;

const USABLE: u32 = 1;
const RESERVED: u32 = 2;

/// The zero page has one size for all, and the header has its place in it.
const _: () = assert!(size_of::<boot_params>() == 4096);
const _: () = assert!(HEADER_AT as usize + size_of::<setup_header>() <= HEADER_END as usize);

/// What an image's setup header says.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    header: [u8; (HEADER_END - HEADER_AT) as usize],
    relocate: bool,
    /// The kernel was moved at random, and may do so with more.
    pub(super) is_moved: bool,
    /// Bytes of command line, without NUL.
    pub(super) command_line_most: u64,
    /// Before which the initrd must end.
    pub(super) initrd_end: u64,
}

impl Setup {
    /// Of a bzImage: the bytes of its header, the rest zero.
    pub(super) fn of_kernel(
        bytes: [u8; (HEADER_END - HEADER_AT) as usize],
        header: &setup_header,
    ) -> Self {
        Self {
            header: bytes,
            relocate: true,
            is_moved: false,
            command_line_most: u64::from(header.cmdline_size).min(COMMAND_LINE_ROOM - 1),
            initrd_end: u64::from(header.initrd_addr_max) + 1,
        }
    }

    /// Of an image that has none: what Linux takes, should it be one.
    pub(super) fn without_header() -> Self {
        let header = setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            version: VERSION,
            loadflags: LOADED_HIGH,
            initrd_addr_max: LINUX_INITRD_MAX,
            cmdline_size: LINUX_COMMAND_LINE,
            ..setup_header::default()
        };
        let mut bytes = [0; (HEADER_END - HEADER_AT) as usize];
        bytes[..size_of::<setup_header>()].copy_from_slice(header.as_slice());
        Self {
            header: bytes,
            relocate: false,
            is_moved: false,
            command_line_most: LINUX_COMMAND_LINE.into(),
            initrd_end: u64::from(LINUX_INITRD_MAX) + 1,
        }
    }
}

pub(super) fn zero_page() -> Placed {
    Placed::fixed(Part::ZeroPage, ZERO_PAGE, size_of::<boot_params>() as u64)
}

/// Place of a command line that is known to fit.
pub(super) fn command_line(text: &str) -> Placed {
    Placed::fixed(Part::CommandLine, COMMAND_LINE, text.len() as u64 + 1)
}

pub(super) fn write_command_line(ram: &Ram, text: &str) {
    write(ram, COMMAND_LINE, text.as_bytes());
    write(ram, COMMAND_LINE + text.len() as u64, &[0]);
}

/// Writes the zero page.
pub(super) fn write_zero_page(
    ram: &Ram,
    setup: &Setup,
    kernel: ByteRange,
    initrd: Option<ByteRange>,
    reserved: Option<ByteRange>,
) {
    let mut page = boot_params::default();
    page.as_mut_slice()[HEADER_AT.into()..HEADER_END.into()].copy_from_slice(&setup.header);
    let low = |address: u64| u32::try_from(address).expect("below 4 GiB");
    page.hdr.type_of_loader = UNDEFINED_LOADER;
    page.hdr.vid_mode = NORMAL_MODE;
    page.hdr.cmd_line_ptr = low(COMMAND_LINE);
    page.hdr.setup_data = 0;
    page.acpi_rsdp_addr = ACPI_TABLES;
    if setup.is_moved {
        page.hdr.loadflags |= KASLR;
    }
    if setup.relocate {
        // Of 32-bit entries only; a kernel above 4 GiB has none.
        page.hdr.code32_start = u32::try_from(kernel.first().as_u64()).unwrap_or(0);
    }
    let initrd = initrd.map_or((0, 0), |range| (low(range.first().as_u64()), low(range.bytes())));
    (page.hdr.ramdisk_image, page.hdr.ramdisk_size) = initrd;
    let map = memory_map(ram, reserved);
    page.e820_entries = u8::try_from(map.len()).expect("a handful");
    let table =
        map.iter().map(|&(addr, end, r#type)| boot_e820_entry { addr, size: end - addr, r#type });
    let mut entries = page.e820_table;
    for (entry, from) in entries.iter_mut().zip(table) {
        *entry = from;
    }
    page.e820_table = entries;
    write(ram, ZERO_PAGE, page.as_slice());
}

/// First byte, end and type of each range that the guest is told of, ascending. `reserved` is the end
/// of low memory.
pub(super) fn memory_map(ram: &Ram, reserved: Option<ByteRange>) -> Vec<(u64, u64, u32)> {
    let mut map = vec![(0, MP_TABLE, USABLE), (MP_TABLE, HIGH_MEMORY, RESERVED)];
    for region in ram.regions() {
        let range = ByteRange::of_pages(region.pages);
        let (first, end) = (range.first().as_u64(), range.last().as_u64() + 1);
        let taken = reserved.and_then(|reserved| reserved.intersection(range));
        let usable_end = taken.map_or(end, |taken| taken.first().as_u64());
        map.push((first.max(HIGH_MEMORY), usable_end, USABLE));
        if taken.is_some() {
            map.push((usable_end, end, RESERVED));
        }
    }
    map
}

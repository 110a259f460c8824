//! bzImages: what their setup header asks for (the kernel's `Documentation/arch/x86/boot.rst`).

use linux_loader::loader::bootparam::{LOADED_HIGH, XLF_KERNEL_64, setup_header};
use subpage::address::{ByteRange, Gpa};
use thiserror::Error;
use vm_memory::ByteValued as _;

use super::kernel::{self, Unpacked};
use super::load::{Image, ImageKind, Piece, Request};
use super::parameters::{HEADER_AT, HEADER_END, HEADER_MAGIC, Setup};
use super::part::HIGH_MEMORY;
use super::source::Source;
use super::{BootError, Format, Part, Placed};

/// Least version of the protocol: the first one whose header says whether there is a 64-bit entry.
const VERSION: u16 = 0x020c;
/// The setup header's end as of that version: behind `init_size`.
const LEAST_HEADER_END: u16 = 0x264;
/// Offset of the byte that says where the setup header ends, counted from the next one.
const JUMP_AT: u64 = 0x201;
const SECTOR: u64 = 512;
/// Offset of the 64-bit entry behind the first loaded byte.
const ENTRY_64: u64 = 0x200;

/// Why a bzImage cannot be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BzImageError {
    /// The file ends inside the setup header, or the header says it ends where it cannot.
    #[error("the bzImage is damaged: its setup header ends at {end:#x}, it has {bytes} bytes")]
    Header {
        /// Where the header ends, by its own account.
        end: u16,
        /// Bytes of the file.
        bytes: u64,
    },
    /// Too old.
    #[error(
        "the bzImage has boot protocol {}.{}, 2.12 (Linux 3.8) is needed; take a newer kernel",
        version >> 8,
        version & 0xff
    )]
    Version {
        /// Major and minor number, a byte each.
        version: u16,
    },
    /// No 64-bit entry, or a kernel for low memory.
    #[error("the bzImage has no 64-bit entry point; take an x86-64 kernel")]
    No64BitEntry,
    /// The file ends before the kernel does.
    #[error("the bzImage is cut off: setup and kernel take {needed} bytes, it has {bytes}")]
    CutOff {
        /// Bytes that the header counts.
        needed: u64,
        /// Bytes of the file.
        bytes: u64,
    },
    /// The place is none.
    #[error("the bzImage asks for {bytes} bytes at {address:#x}, which are beyond 48 bits")]
    Beyond {
        /// Preferred address.
        address: u64,
        /// Bytes from there.
        bytes: u64,
    },
}

/// What the bzImage says; nothing is written.
pub(super) fn plan(source: Source, request: &Request<'_>) -> Result<Image, BootError> {
    let mut jump = [0];
    source.read(JUMP_AT, &mut jump)?;
    let end = 0x202 + u16::from(jump[0]);
    let mut bytes = [0; (HEADER_END - HEADER_AT) as usize];
    let known = bytes.get_mut(..usize::from(end.saturating_sub(HEADER_AT)));
    let known = known.filter(|known| {
        end >= LEAST_HEADER_END && source.has(u64::from(HEADER_AT), known.len() as u64)
    });
    let placed = match known {
        None => Err(BzImageError::Header { end, bytes: source.bytes() }),
        Some(known) => {
            source.read(u64::from(HEADER_AT), known)?;
            let mut header = setup_header::default();
            let structure = header.as_mut_slice();
            structure.copy_from_slice(&bytes[..size_of::<setup_header>()]);
            place(&header, source.bytes()).map(|piece| (header, piece))
        }
    };
    let (header, piece) =
        placed.map_err(|error| BootError::BzImage { path: source.path(), error })?;
    let setup = Setup::of_kernel(bytes, &header);
    let own_loader = match kernel::plan(&source, &header, setup.clone(), request)? {
        Unpacked::Kernel(image) => return Ok(*image),
        Unpacked::Not(reason) => Some(reason),
        Unpacked::None => None,
    };
    Ok(Image {
        kind: ImageKind { format: Format::LinuxBzImage, kernel: None, own_loader },
        source,
        entry: piece.placed.range.first().as_u64() + ENTRY_64,
        setup,
        pieces: vec![piece],
    })
}

fn place(header: &setup_header, bytes: u64) -> Result<Piece, BzImageError> {
    debug_assert!({ header.header } == HEADER_MAGIC, "sniffed as one");
    let version = header.version;
    if version < VERSION {
        return Err(BzImageError::Version { version });
    }
    if header.xloadflags & XLF_KERNEL_64 == 0 || header.loadflags & LOADED_HIGH == 0 {
        return Err(BzImageError::No64BitEntry);
    }
    let sectors = if header.setup_sects == 0 { 4 } else { header.setup_sects };
    let offset = (u64::from(sectors) + 1) * SECTOR;
    // The size counts units of 16 bytes. A file may have more: signatures lie behind the kernel.
    // It is rounded up, and builds differ in whether they fill the last unit.
    let counted = (u64::from(header.syssize) * 16).saturating_sub(15);
    let needed = offset + counted.max(ENTRY_64 + 1);
    if bytes < needed {
        return Err(BzImageError::CutOff { needed, bytes });
    }
    let file_bytes = bytes - offset;
    // A kernel below its preferred address moves itself there, so no other one is tried.
    let address = match header.pref_address {
        0 => HIGH_MEMORY.next_multiple_of(alignment(header)),
        preferred => preferred,
    };
    let bytes = file_bytes.max(u64::from(header.init_size));
    let range = Gpa::try_new(address).and_then(|first| ByteRange::new(first, bytes));
    let range = range.map_err(|_| BzImageError::Beyond { address, bytes })?;
    Ok(Piece { placed: Placed { part: Part::Kernel, range }, offset, file_bytes, zeros: 0 })
}

/// Alignment of a kernel that can be loaded anywhere; 1 for others.
fn alignment(header: &setup_header) -> u64 {
    match header.relocatable_kernel {
        0 => 1,
        _ => u64::from(header.kernel_alignment).max(1),
    }
}

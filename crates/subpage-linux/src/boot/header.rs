//! The setup header of a bzImage.

use thiserror::Error;

use super::{HEADER_AT, HEADER_END};

/// Least version of the protocol: the first one whose header says whether there is a 64-bit entry.
const LEAST_VERSION: u16 = 0x020C;
/// The header's end as of that version: behind `init_size`.
const LEAST_END: usize = 0x264;
const SECTOR: u64 = 512;
/// Offset of the 64-bit entry behind the first loaded byte.
const ENTRY_64: u64 = 0x200;

// Offsets of fields in the file.
const SETUP_SECTORS: usize = 0x1F1;
const SIZE: usize = 0x1F4;
const BOOT_FLAG: usize = 0x1FE;
const JUMP: usize = 0x201;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const LOAD_FLAGS: usize = 0x211;
const INITRD_MOST: usize = 0x22C;
const ALIGNMENT: usize = 0x230;
const RELOCATABLE: usize = 0x234;
const EXTENDED_LOAD_FLAGS: usize = 0x236;
const COMMAND_LINE_MOST: usize = 0x238;
const PREFERRED_ADDRESS: usize = 0x258;
const RUN_BYTES: usize = 0x260;

/// Why a file is no bzImage that can be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// It is none.
    #[error("it is no bzImage, which has \"HdrS\" at byte 514")]
    NotOne,
    /// The file ends inside the header, or the header says it ends where it cannot.
    #[error("the bzImage is damaged: its setup header ends at {end:#x}, it has {bytes} bytes")]
    Damaged {
        /// Where the header ends, by its own account.
        end: usize,
        /// Bytes of the file.
        bytes: usize,
    },
    /// Too old.
    #[error(
        "the bzImage has boot protocol {}.{}, 2.12 (Linux 3.8) is needed; take a newer kernel",
        version >> 8,
        version & 0xFF
    )]
    TooOld {
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
        bytes: usize,
    },
    /// The place is none.
    #[error("the bzImage asks for {bytes:#x} bytes at {address:#x}, which cannot be")]
    Nowhere {
        /// Preferred address.
        address: u64,
        /// Bytes from there.
        bytes: u64,
    },
}

/// A setup header that has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetupHeader {
    /// From [`HEADER_AT`] on; zeros behind its end.
    bytes: [u8; HEADER_END - HEADER_AT],
    /// Bytes of the file before the part that is loaded.
    setup_bytes: u64,
}

impl SetupHeader {
    /// Reads and checks the header of a file.
    pub fn read(file: &[u8]) -> Result<Self, HeaderError> {
        let is_one = file.get(MAGIC..MAGIC + 4) == Some(b"HdrS")
            && file.get(BOOT_FLAG..BOOT_FLAG + 2) == Some(&[0x55, 0xAA]);
        if !is_one {
            return Err(HeaderError::NotOne);
        }
        let end = MAGIC + usize::from(file[JUMP]);
        let damaged = HeaderError::Damaged { end, bytes: file.len() };
        let known = file.get(HEADER_AT..end).filter(|_| (LEAST_END..=HEADER_END).contains(&end));
        let known = known.ok_or(damaged)?;
        let mut bytes = [0; HEADER_END - HEADER_AT];
        bytes[..known.len()].copy_from_slice(known);
        let sectors = match file[SETUP_SECTORS] {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let header = Self { bytes, setup_bytes: (sectors + 1) * SECTOR };
        header.check(file.len())?;
        Ok(header)
    }

    fn check(&self, bytes: usize) -> Result<(), HeaderError> {
        const KERNEL_64: u8 = 1;
        const LOADED_HIGH: u8 = 1;
        let version = u16::from_le_bytes(self.field(VERSION));
        if version < LEAST_VERSION {
            return Err(HeaderError::TooOld { version });
        }
        let [extended] = self.field(EXTENDED_LOAD_FLAGS);
        let [flags] = self.field(LOAD_FLAGS);
        if extended & KERNEL_64 == 0 || flags & LOADED_HIGH == 0 {
            return Err(HeaderError::No64BitEntry);
        }
        // The size counts units of 16 bytes, rounded up; signatures may lie behind the kernel.
        let counted = (u64::from(self.word(SIZE)) * 16).saturating_sub(15);
        let needed = self.setup_bytes + counted.max(ENTRY_64 + 1);
        if (bytes as u64) < needed {
            return Err(HeaderError::CutOff { needed, bytes });
        }
        let (address, bytes) = (self.preferred_address(), self.run_bytes());
        let end = address.checked_add(bytes);
        if address == 0 || bytes == 0 || end.is_none_or(|end| end > 1 << 48) {
            return Err(HeaderError::Nowhere { address, bytes });
        }
        Ok(())
    }

    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        let at = at - HEADER_AT;
        self.bytes[at..at + N].try_into().expect("fields end before the least end of a header")
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.field(at))
    }

    /// The header as it stands in the file, from byte 1F1H on; zeros behind its end.
    pub(super) const fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes of the file before the part that is loaded.
    pub const fn setup_bytes(&self) -> u64 {
        self.setup_bytes
    }

    /// Offset of the 64-bit entry in the part that is loaded.
    #[allow(clippy::unused_self)] // One for all versions, so far.
    pub const fn entry(&self) -> u64 {
        ENTRY_64
    }

    /// Where the kernel was linked for (`pref_address`).
    pub fn preferred_address(&self) -> u64 {
        u64::from_le_bytes(self.field(PREFERRED_ADDRESS))
    }

    /// How many bytes from there the kernel writes before it looks at the memory map (`init_size`).
    pub fn run_bytes(&self) -> u64 {
        self.word(RUN_BYTES).into()
    }

    /// What a place of the kernel is a multiple of; `None` if it runs at its preferred address only.
    pub fn alignment(&self) -> Option<u64> {
        let [relocatable] = self.field(RELOCATABLE);
        (relocatable != 0).then(|| u64::from(self.word(ALIGNMENT)).max(1))
    }

    /// Longest command line in bytes, without its NUL.
    pub fn command_line_most(&self) -> u64 {
        self.word(COMMAND_LINE_MOST).into()
    }

    /// Before which an initrd has to end.
    pub fn initrd_end(&self) -> u64 {
        u64::from(self.word(INITRD_MOST)) + 1
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A bzImage of Linux 6.1 as far as its header goes: five sectors, then 4 KiB of kernel.
    pub(crate) fn image() -> [u8; 0xA00 + 0x1000] {
        let mut file = [0; 0xA00 + 0x1000];
        file[SETUP_SECTORS] = 4;
        for (at, bytes) in [
            (SIZE, &0x100_u32.to_le_bytes()[..]),
            (BOOT_FLAG, &[0x55, 0xAA]),
            (JUMP, &[0x6A]),
            (MAGIC, b"HdrS"),
            (VERSION, &[0x0F, 2]),
            (LOAD_FLAGS, &[1]),
            (INITRD_MOST, &0x7FFF_FFFF_u32.to_le_bytes()),
            (ALIGNMENT, &0x20_0000_u32.to_le_bytes()),
            (RELOCATABLE, &[1]),
            (EXTENDED_LOAD_FLAGS, &[0x3F]),
            (COMMAND_LINE_MOST, &2047_u32.to_le_bytes()),
            (PREFERRED_ADDRESS, &0x100_0000_u64.to_le_bytes()),
            (RUN_BYTES, &0x2C8_2000_u32.to_le_bytes()),
        ] {
            file[at..at + bytes.len()].copy_from_slice(bytes);
        }
        file
    }

    #[test]
    fn a_header_tells_all() {
        let header = SetupHeader::read(&image()).expect("a bzImage");
        assert_eq!(header.setup_bytes(), 0xA00);
        assert_eq!(header.preferred_address(), 0x100_0000);
        assert_eq!(header.run_bytes(), 0x2C8_2000);
        assert_eq!(header.alignment(), Some(0x20_0000));
        assert_eq!(header.command_line_most(), 2047);
        assert_eq!(header.initrd_end(), 0x8000_0000);
    }

    #[test]
    fn what_cannot_be_started_is_refused() {
        let with = |at: usize, byte: u8| {
            let mut file = image();
            file[at] = byte;
            SetupHeader::read(&file).expect_err("refused")
        };
        assert_eq!(with(MAGIC, b'h'), HeaderError::NotOne);
        assert_eq!(with(BOOT_FLAG, 0), HeaderError::NotOne);
        assert_eq!(with(JUMP, 0x10), HeaderError::Damaged { end: 0x212, bytes: 0x1A00 });
        assert_eq!(with(JUMP, 0xFF), HeaderError::Damaged { end: 0x301, bytes: 0x1A00 });
        assert_eq!(with(VERSION, 0x0B), HeaderError::TooOld { version: 0x020B });
        assert_eq!(with(EXTENDED_LOAD_FLAGS, 0), HeaderError::No64BitEntry);
        assert_eq!(with(LOAD_FLAGS, 0), HeaderError::No64BitEntry);
        assert!(matches!(with(SIZE + 1, 2), HeaderError::CutOff { .. }));
        assert!(matches!(with(PREFERRED_ADDRESS + 7, 1), HeaderError::Nowhere { .. }));
    }

    #[test]
    fn a_file_cut_anywhere_is_refused_and_damage_never_panics() {
        let file = image();
        for length in 0..0xA00 + 0x1000 - 15 {
            assert!(SetupHeader::read(&file[..length]).is_err(), "cut to {length} bytes");
        }
        for at in HEADER_AT..HEADER_END {
            for value in [0, 1, 0x7F, 0xFF] {
                let mut damaged = file;
                damaged[at] = value;
                let _ = SetupHeader::read(&damaged);
            }
        }
    }
}

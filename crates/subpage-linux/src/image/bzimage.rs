//! Where a bzImage's kernel lies, by its setup header (Linux, Documentation/arch/x86/boot.rst).

use super::ImageError;

/// Bytes of a file that tell whether it is one.
pub(super) const HEAD_BYTES: usize = 0x250;

const SETUP_SECTORS: usize = 0x1f1;
const BOOT_FLAG: usize = 0x1fe;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// The first version of the protocol with the place of the payload.
const FIRST_WITH_PAYLOAD: u16 = 0x0208;
const SECTOR: u64 = 512;

pub(super) fn is_one(head: &[u8]) -> bool {
    head.len() >= HEAD_BYTES
        && head[MAGIC..MAGIC + 4] == *b"HdrS"
        && head[BOOT_FLAG..BOOT_FLAG + 2] == [0x55, 0xaa]
}

/// The compressed kernel; the caller has asked [`is_one`].
pub(super) fn payload(file: &[u8]) -> Result<&[u8], ImageError> {
    let version = u16::from_le_bytes([file[VERSION], file[VERSION + 1]]);
    let word = |at: usize| {
        u64::from(u32::from_le_bytes([file[at], file[at + 1], file[at + 2], file[at + 3]]))
    };
    let (offset, length) = (word(PAYLOAD_OFFSET), word(PAYLOAD_LENGTH));
    if version < FIRST_WITH_PAYLOAD {
        return Err(ImageError::OldBzImage { version });
    }
    if length == 0 {
        return Err(ImageError::NoPayload);
    }
    let sectors = match file[SETUP_SECTORS] {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let start = (sectors + 1) * SECTOR + offset;
    let end = start + length;
    let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
    range
        .and_then(|(start, end)| file.get(start..end))
        .ok_or(ImageError::CutOff { end, bytes: file.len() as u64 })
}

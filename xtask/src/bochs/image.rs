//! From an ELF file to the bytes that stand in memory.

use anyhow::{Context as _, Result, ensure};
use object::{
    LittleEndian as Endian,
    elf::{FileHeader64, PT_LOAD},
    read::elf::{FileHeader as _, ProgramHeader as _},
};

/// The loadable segments of `elf` at their physical addresses, from `base` on; gaps are zeros.
///
/// Memory that only the running program uses (`.bss`) is left out, but has to end within `limit`
/// bytes, too.
pub(crate) fn flat(elf: &[u8], base: u64, limit: u64) -> Result<Vec<u8>> {
    let header = FileHeader64::<Endian>::parse(elf).context("no ELF file of 64 bits")?;
    let segments = header.program_headers(Endian, elf).context("no program headers")?;
    let mut image = Vec::new();
    for segment in segments.iter().filter(|segment| segment.p_type(Endian) == PT_LOAD) {
        let address = segment.p_paddr(Endian);
        let size = segment.p_memsz(Endian);
        if size == 0 {
            continue;
        }
        let start = address
            .checked_sub(base)
            .with_context(|| format!("a segment at {address:#x} lies below {base:#x}"))?;
        let end = start.saturating_add(size);
        ensure!(
            end <= limit,
            "a segment at {address:#x} ends {end:#x} bytes behind {base:#x}; there is room for \
             {limit:#x}"
        );
        let data = segment.data(Endian, elf).ok().context("a segment lies outside of the file")?;
        // The end is at most the limit, which is a length of memory.
        let start = usize::try_from(start)?;
        let end = start + data.len();
        ensure!(data.len() as u64 <= size, "a segment at {address:#x} is larger in the file");
        if image.len() < end {
            image.resize(end, 0);
        }
        image[start..end].copy_from_slice(data);
    }
    ensure!(!image.is_empty(), "nothing in it is to be loaded");
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with the program headers `(p_paddr, p_memsz, data)`.
    fn elf(segments: &[(u64, u64, &[u8])]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        file.extend(2_u16.to_le_bytes());
        file.extend(62_u16.to_le_bytes());
        file.extend(1_u32.to_le_bytes());
        file.extend(0_u64.to_le_bytes()); // e_entry
        file.extend(64_u64.to_le_bytes()); // e_phoff
        file.extend(0_u64.to_le_bytes()); // e_shoff
        file.extend(0_u32.to_le_bytes());
        for half in [64, 56, u16::try_from(segments.len()).expect("a few"), 64, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        let mut offset = file.len() + segments.len() * 56;
        for (address, size, data) in segments {
            file.extend(1_u32.to_le_bytes());
            file.extend(7_u32.to_le_bytes());
            for word in [offset as u64, !*address, *address, data.len() as u64, *size, 1] {
                file.extend(word.to_le_bytes());
            }
            offset += data.len();
        }
        for (.., data) in segments {
            file.extend(*data);
        }
        file
    }

    #[test]
    fn segments_stand_where_they_belong() {
        let file = elf(&[(0x10_0004, 2, b"cd"), (0x10_0000, 2, b"ab"), (0x10_0008, 64, b"")]);
        assert_eq!(flat(&file, 0x10_0000, 0x1000).expect("it fits"), b"ab\0\0cd\0\0");
    }

    #[test]
    fn too_large_is_told_with_all_memory_counted() {
        let file = elf(&[(0x10_0000, 0x1001, b"ab")]);
        let error = flat(&file, 0x10_0000, 0x1000).expect_err("one byte too many");
        assert!(error.to_string().contains("room for 0x1000"), "{error}");
        let file = elf(&[(u64::MAX, 2, b"ab")]);
        assert!(flat(&file, 0x10_0000, 0x1000).is_err());
    }

    #[test]
    fn damaged_files_are_refused() {
        for file in [b"".to_vec(), b"\x7fELF".to_vec(), elf(&[]), elf(&[(0xf_ffff, 1, b"a")])] {
            assert!(flat(&file, 0x10_0000, 0x1000).is_err());
        }
        let mut cut = elf(&[(0x10_0000, 2, b"ab")]);
        cut.pop();
        assert!(flat(&cut, 0x10_0000, 0x1000).is_err());
        let larger = elf(&[(0x10_0000, 1, b"ab")]);
        assert!(flat(&larger, 0x10_0000, 0x1000).is_err());
    }
}

//! How a kernel comes: as ELF, or packed into a bzImage.

use core::fmt;

/// What a kernel's file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packaging {
    /// An ELF file.
    Vmlinux,
    /// An ELF file in a program that unpacks and starts it.
    BzImage {
        /// How it is packed.
        compression: Compression,
        /// Whether the list of addresses to relocate comes with it, so that it can move itself
        /// (CONFIG_RANDOMIZE_BASE).
        relocatable: bool,
    },
}

/// How a bzImage's kernel is packed (CONFIG_KERNEL_GZIP and so on).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// bzip2; not unpacked here.
    Bzip2,
    /// LZMA as the `.lzma` file format.
    Lzma,
    /// XZ with the filter for x86 code.
    Xz,
    /// LZO; not unpacked here.
    Lzo,
    /// LZ4's legacy frame.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// By the first bytes.
    pub(super) fn of(payload: &[u8]) -> Option<Self> {
        const SIGNS: [(&[u8], Compression); 8] = [
            (b"\x7fELF", Compression::None),
            (b"\x1f\x8b\x08", Compression::Gzip),
            (b"BZh", Compression::Bzip2),
            // Its properties as every encoder chooses them, and the least byte of the dictionary's size.
            (b"\x5d\0\0", Compression::Lzma),
            (b"\xfd7zXZ\0", Compression::Xz),
            (b"\x89LZO\0\r\n\x1a\n", Compression::Lzo),
            (b"\x02\x21\x4c\x18", Compression::Lz4),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
        ];
        SIGNS.iter().find(|(sign, _)| payload.starts_with(sign)).map(|(_, found)| *found)
    }

    /// A command that unpacks it.
    pub(super) const fn by_hand(self) -> &'static str {
        match self {
            Self::None => "cat",
            Self::Gzip => "gzip -dc",
            Self::Bzip2 => "bzip2 -dc",
            Self::Lzma => "xz --format=lzma -dc",
            Self::Xz => "xz -dc",
            Self::Lzo => "lzop -dc",
            Self::Lz4 => "lz4 -dc",
            Self::Zstd => "zstd -dc",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "no compression",
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "LZMA",
            Self::Xz => "XZ",
            Self::Lzo => "LZO",
            Self::Lz4 => "LZ4",
            Self::Zstd => "Zstandard",
        })
    }
}

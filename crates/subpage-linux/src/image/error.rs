//! Why a file is no kernel that can be read.

use std::io;

use thiserror::Error;

use super::Compression;
use crate::address::LinkAddress;

/// Why a file cannot be read as a kernel.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The system does not give it.
    #[error("the kernel cannot be read: {0}")]
    Read(#[source] io::Error),
    /// It is a directory, a pipe or a device.
    #[error("the kernel is not a regular file")]
    NotAFile,
    /// It has too many bytes.
    #[error("the kernel has more than {} MiB", most >> 20)]
    TooLong {
        /// The limit in bytes.
        most: u64,
    },
    /// Neither a bzImage nor ELF.
    #[error("it is neither a bzImage nor an ELF file")]
    Neither,
    /// A setup header that says nothing about a compressed kernel.
    #[error(
        "the bzImage does not say where its kernel is: its boot protocol is {}.{}, 2.8 (Linux 2.6.26) is \
         needed",
        version >> 8,
        version & 0xff
    )]
    OldBzImage {
        /// Major and minor number, a byte each.
        version: u16,
    },
    /// Its header says that there is no compressed kernel.
    #[error("the bzImage says that it has no kernel in it that could be unpacked")]
    NoPayload,
    /// The compressed kernel is said to lie where the file has no bytes.
    #[error(
        "the bzImage is damaged or cut off: its kernel ends at byte {end}, the file has {bytes}"
    )]
    CutOff {
        /// End of the compressed kernel, from the file's beginning.
        end: u64,
        /// Bytes of the file.
        bytes: u64,
    },
    /// The first bytes of the compressed kernel are not known.
    #[error(
        "the bzImage's kernel is compressed by a method that is not known; take the vmlinux of this build"
    )]
    UnknownCompression,
    /// No decoder here.
    #[error(
        "the bzImage's kernel is compressed by {compression}, which cannot be unpacked here: unpack it with \
         `{}`, and take the vmlinux",
        compression.by_hand()
    )]
    NoDecoder {
        /// The method.
        compression: Compression,
    },
    /// The decoder refuses it.
    #[error("the bzImage's kernel ({compression}) cannot be unpacked: {reason}")]
    Unpack {
        /// The method.
        compression: Compression,
        /// The decoder's reason.
        reason: String,
    },
    /// The kernel is too long once it is unpacked.
    #[error("the bzImage's kernel ({compression}) has more than 512 MiB")]
    TooLongUnpacked {
        /// The method.
        compression: Compression,
    },
    /// Its lists of words to be moved name one that it does not have.
    #[error("the bzImage is damaged: it has no word at {address} that its relocations name")]
    Relocation {
        /// Where the word would be.
        address: LinkAddress,
    },
    /// It cannot be moved, or not so far.
    #[error("the kernel cannot be moved by {bytes:#x} bytes")]
    Slide {
        /// The distance.
        bytes: u64,
    },
    /// It is ELF, and not for 64-bit x86.
    #[error("the ELF file is not an executable for 64-bit x86")]
    OtherMachine,
    /// It is damaged ELF.
    #[error("the ELF file is damaged or cut off: {reason}")]
    Elf {
        /// What does not fit.
        reason: String,
    },
    /// An ELF file of something else.
    #[error("the ELF file is not a Linux kernel: it has no line `Linux version`")]
    NotLinux,
}

impl ImageError {
    pub(super) const fn read(error: io::Error) -> Self {
        Self::Read(error)
    }

    /// Whether the file may well be something else than a kernel, rather than a kernel that is
    /// damaged.
    pub const fn is_something_else(&self) -> bool {
        matches!(self, Self::Neither | Self::OtherMachine | Self::NotLinux | Self::NotAFile)
    }
}

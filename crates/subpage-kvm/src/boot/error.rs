//! Why a guest cannot be started.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::{BzImageError, ElfError, Format, MAX_PROCESSORS, MultibootError, Placed};
use crate::memory::{Remedy, Size};

/// Why a guest cannot be started.
///
/// Guest memory is unchanged, except after [`BootError::Read`], which may come when a part of the
/// image is in memory already: start it anew or drop it.
#[derive(Debug, Error)]
pub enum BootError {
    /// The file does not open.
    #[error("cannot open `{}`", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// It is a directory.
    #[error("`{}` is a directory; name the guest's file", path.display())]
    Directory {
        /// The file.
        path: PathBuf,
    },
    /// It is a pipe, socket or device: of no known length, and not to be read twice.
    #[error("`{}` is not a regular file; copy it to one", path.display())]
    NotRegular {
        /// The file.
        path: PathBuf,
    },
    /// It has no bytes.
    #[error("`{}` is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Bytes that the file had a moment ago do not come.
    #[error("cannot read {bytes} bytes at {offset:#x} of `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Offset of the first one.
        offset: u64,
        /// How many were wanted.
        bytes: u64,
        /// What the host said.
        source: io::Error,
    },
    /// The first bytes are no format's.
    #[error(
        "`{}` is neither an ELF file, a Multiboot kernel nor a bzImage; if it is a flat binary, give \
         its load address",
        path.display()
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// A load address for an image that brings its own.
    #[error(
        "`{}` says itself where it is loaded ({format}); leave the load address away",
        path.display()
    )]
    LoadAddress {
        /// The file.
        path: PathBuf,
        /// What it is.
        format: Format,
    },
    /// The load address is none.
    #[error("the load address {address:#x} with {bytes} bytes behind it is beyond 48 bits")]
    LoadBeyond {
        /// The address.
        address: u64,
        /// Bytes of the image.
        bytes: u64,
    },
    /// The ELF file cannot be a guest.
    #[error("`{}`: {error}", path.display())]
    Elf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: ElfError,
    },
    /// The bzImage cannot be started.
    #[error("`{}`: {error}", path.display())]
    BzImage {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: BzImageError,
    },
    /// The Multiboot kernel cannot be started.
    #[error("`{}`: {error}", path.display())]
    Multiboot {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: MultibootError,
    },
    /// A part needs bytes that are no guest memory.
    #[error(
        "{placed} does not lie in the guest's memory of {} (0x0..{low:#x}{}): {}; {}",
        Size(*bytes),
        and_above(*high),
        Remedy::of(placed.range),
        advice(placed)
    )]
    NotMemory {
        /// The part.
        placed: Placed,
        /// The guest's memory.
        bytes: u64,
        /// Its end below 4 GiB.
        low: u64,
        /// Its range above, end excluded.
        high: Option<(u64, u64)>,
    },
    /// Two parts share bytes.
    #[error("{first} overlaps {second}; link the image to 0x100000 or above, parts apart")]
    Overlap {
        /// The part that begins lower.
        first: Placed,
        /// The other one.
        second: Placed,
    },
    /// There is no gap for the initrd.
    #[error(
        "the initrd `{}` of {} finds no room between {from:#x} and {to:#x} beside the image; give the \
         guest more memory",
        path.display(),
        Size(*bytes)
    )]
    InitrdTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// Where it may begin.
        from: u64,
        /// Before which it must end.
        to: u64,
    },
    /// The command line has more bytes than the image takes.
    #[error("the command line has {bytes} bytes, this guest takes {most}; shorten it")]
    CommandLineTooLong {
        /// Its bytes without a NUL.
        bytes: u64,
        /// How many may be.
        most: u64,
    },
    /// The command line would end early.
    #[error("the command line has a NUL at byte {at}; take it out")]
    CommandLineNul {
        /// Where.
        at: usize,
    },
    /// The MP table has no way to say so.
    #[error("{cpus} processors are asked for; 1 to {MAX_PROCESSORS} are possible")]
    Processors {
        /// What was asked for.
        cpus: u32,
    },
}

fn advice(placed: &Placed) -> &'static str {
    match Remedy::of(placed.range) {
        Remedy::Memory(_) => "give the guest more memory or link it elsewhere",
        Remedy::Devices | Remedy::Beyond => "link it elsewhere",
    }
}

fn and_above(high: Option<(u64, u64)>) -> String {
    high.map_or_else(String::new, |(first, end)| format!(" and {first:#x}..{end:#x}"))
}

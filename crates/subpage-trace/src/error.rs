//! What can be wrong with a trace file.

use std::io;

use crate::write::{ADDRESS_LIMIT, MAX_WRITE_SIZE};

/// Why a trace could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The underlying reader or writer failed.
    #[error("cannot access the trace at byte {offset}")]
    Io {
        /// Bytes read or written before the failure.
        offset: u64,
        /// The failure.
        source: io::Error,
    },
    /// The file does not begin with the magic bytes.
    #[error("not a trace: the file does not begin with the bytes of a .sptrace file")]
    NotATrace,
    /// The file is of a version that this reader does not know.
    #[error("trace format version {found} is not known here; this reader knows version {known}")]
    Version {
        /// Version in the file.
        found: u32,
        /// Version of this reader.
        known: u32,
    },
    /// The header is damaged or breaks a limit.
    #[error("the trace header is not usable: {what}")]
    Header {
        /// The rule that is broken.
        what: &'static str,
    },
    /// The file ends before its end frame.
    #[error(
        "the trace is cut off at byte {offset}, in block {block}; \
         the {writes} writes before that block are readable; record it again"
    )]
    Truncated {
        /// Block that is missing or incomplete, counted from 0.
        block: u64,
        /// Length of the file.
        offset: u64,
        /// Writes in the complete blocks.
        writes: u64,
    },
    /// Stored bytes and their checksum differ.
    #[error(
        "block {block} at byte {offset} is damaged: its checksum does not match; \
         the {writes} writes before it are readable"
    )]
    Checksum {
        /// Block, counted from 0.
        block: u64,
        /// Where the block begins in the file.
        offset: u64,
        /// Writes in the blocks before it.
        writes: u64,
    },
    /// The checksum is right and the content breaks a rule of the format.
    #[error("block {block} at byte {offset} breaks the format: {what}")]
    Malformed {
        /// Block, counted from 0.
        block: u64,
        /// Where the block begins in the file.
        offset: u64,
        /// The rule that is broken.
        what: &'static str,
    },
    /// A write that a trace cannot hold was given to the writer.
    #[error(
        "cannot record a write of {length} bytes at {address:#x}: \
         a write has 1 to {MAX_WRITE_SIZE} bytes and lies below {ADDRESS_LIMIT:#x}"
    )]
    BadWrite {
        /// First byte.
        address: u64,
        /// Length in bytes.
        length: u64,
    },
    /// An earlier call failed and what was written since is not known.
    #[error("the trace writer has failed before and cannot continue")]
    Poisoned,
}

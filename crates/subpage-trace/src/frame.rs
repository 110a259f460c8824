//! The outer layer of a trace file: magic, header, frames and their checksums.

use std::io::Read;

use crate::error::TraceError;

/// First bytes of every trace. The byte above 127 and the line ends show up a transfer as text.
pub const MAGIC: [u8; 8] = *b"\x89SPTR\r\n\n";
/// Version of traces of one process.
pub(crate) const ONE_PROCESS: u32 = 1;
/// Version of traces of several processes.
pub(crate) const SEVERAL_PROCESSES: u32 = 2;
/// Version of traces that name their code, of one process or several.
pub(crate) const NAMED_CODE: u32 = 3;
/// Version of traces that tell which build was recorded.
pub(crate) const KNOWN_BUILD: u32 = 4;
/// The newest version: of traces of machines. All versions are read.
pub const VERSION: u32 = 5;
/// The most writes in one block.
pub const MAX_BLOCK_WRITES: usize = 1 << 14;
/// The most bytes a block has after decompression: 24 a write, as a write takes at most 22 and
/// the block's last run 3.
pub const MAX_BLOCK_BYTES: usize = MAX_BLOCK_WRITES * 24;
/// Bytes of a frame before its payload.
pub(crate) const FRAME_HEAD: usize = 20;

/// How the payload of a block is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Plain,
    Lz4,
}

/// What a frame announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Writes of one process, by its number.
    Block {
        method: Method,
        process: u16,
        writes: u32,
        length: u32,
        stored: u32,
    },
    End {
        writes: u64,
    },
}

impl Frame {
    /// The first 16 bytes of the frame.
    pub(crate) fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        match self {
            Self::Block { method, process, writes, length, stored } => {
                bytes[0] = 1;
                bytes[1] = u8::from(method == Method::Lz4);
                bytes[2..4].copy_from_slice(&process.to_le_bytes());
                bytes[4..8].copy_from_slice(&writes.to_le_bytes());
                bytes[8..12].copy_from_slice(&length.to_le_bytes());
                bytes[12..16].copy_from_slice(&stored.to_le_bytes());
            }
            Self::End { writes } => {
                bytes[0] = 2;
                bytes[8..16].copy_from_slice(&writes.to_le_bytes());
            }
        }
        bytes
    }

    /// Inverse of [`Self::encode`]; the error is the rule that is broken.
    pub(crate) fn decode(bytes: &[u8; 16]) -> Result<Self, &'static str> {
        let word = |i: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[i..i + 4]);
            u32::from_le_bytes(word)
        };
        let process = u16::from_le_bytes([bytes[2], bytes[3]]);
        match (bytes[0], bytes[1]) {
            (1, method @ (0 | 1)) => {
                let method = if method == 1 { Method::Lz4 } else { Method::Plain };
                let (writes, length, stored) = (word(4), word(8), word(12));
                if writes == 0 || writes as usize > MAX_BLOCK_WRITES {
                    return Err("a block holds 1 to 16,384 writes");
                }
                if length as usize > MAX_BLOCK_BYTES {
                    return Err("a block has at most 393,216 bytes");
                }
                if stored > length || (method == Method::Plain && stored != length) {
                    return Err("the stored length does not fit the block length");
                }
                Ok(Self::Block { method, process, writes, length, stored })
            }
            (1, _) => Err("unknown compression method"),
            (2, 0) if word(4) == 0 && process == 0 => {
                Ok(Self::End { writes: u64::from(word(8)) | (u64::from(word(12)) << 32) })
            }
            (2, _) => Err("reserved bytes are not zero"),
            _ => Err("unknown kind of frame"),
        }
    }

    /// CRC-32 of the frame's number in the file, its first 16 bytes and its payload.
    ///
    /// With the number in it, blocks that change places are noticed.
    pub(crate) fn checksum(number: u64, head: &[u8; 16], payload: &[u8]) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&number.to_le_bytes());
        crc.update(head);
        crc.update(payload);
        crc.finalize()
    }
}

/// A reader that knows how far it is.
pub(crate) struct Counted<R> {
    inner: R,
    pub(crate) offset: u64,
}

impl<R: Read> Counted<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, offset: 0 }
    }

    /// Reads until `buffer` is full or the file ends; gives the bytes read.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, TraceError> {
        let mut done = 0;
        while done < buffer.len() {
            match self.inner.read(&mut buffer[done..]) {
                Ok(0) => break,
                Ok(read) => {
                    done += read;
                    self.offset += read as u64;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(TraceError::Io { offset: self.offset, source });
                }
            }
        }
        Ok(done)
    }

    /// Appends `length` bytes, or fewer if the file ends. Memory follows the bytes that are
    /// there, not the length that is claimed.
    pub(crate) fn append(&mut self, out: &mut Vec<u8>, length: u64) -> Result<u64, TraceError> {
        let offset = self.offset;
        let read = self.inner.by_ref().take(length).read_to_end(out);
        let read = read.map_err(|source| TraceError::Io { offset, source })? as u64;
        self.offset += read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip_and_strangers_are_refused() {
        let frames = [
            Frame::End { writes: 0 },
            Frame::End { writes: u64::MAX },
            Frame::Block { method: Method::Plain, process: 0, writes: 1, length: 0, stored: 0 },
            Frame::Block {
                method: Method::Lz4,
                process: 0x8001,
                writes: 16384,
                length: 393_216,
                stored: 9,
            },
        ];
        for frame in frames {
            let bytes = frame.encode();
            assert_eq!(Frame::decode(&bytes), Ok(frame));
            for process in 2..4 {
                let mut other = bytes;
                other[process] ^= 1;
                let is_end = matches!(frame, Frame::End { .. });
                assert_eq!(Frame::decode(&other).is_err(), is_end);
                assert_ne!(Frame::decode(&other), Ok(frame));
            }
            for kind in (0..=255).filter(|&kind| kind != bytes[0]) {
                let mut other = bytes;
                other[0] = kind;
                assert_ne!(Frame::decode(&other), Ok(frame));
            }
        }
        let block = |method, writes, length, stored| {
            let frame = Frame::Block { method, process: 0, writes, length, stored };
            Frame::decode(&frame.encode())
        };
        assert!(block(Method::Plain, 0, 1, 1).is_err());
        assert!(block(Method::Plain, 16385, 1, 1).is_err());
        assert!(block(Method::Plain, 1, 2, 1).is_err());
        assert!(block(Method::Lz4, 1, 1, 2).is_err());
        assert!(block(Method::Lz4, 1, 393_217, 2).is_err());
    }
}

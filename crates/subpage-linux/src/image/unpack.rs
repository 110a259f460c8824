//! Unpacking, with a bound on what comes out.

use super::{Compression, ImageError};

/// The kernel in a payload. The word at the payload's end that gives its length is not trusted and not
/// needed.
#[cfg(feature = "unpack")]
pub(super) fn unpack(payload: &[u8], compression: Compression) -> Result<Vec<u8>, ImageError> {
    let unpacked = match compression {
        Compression::None => Ok(Some(payload.to_vec())),
        Compression::Gzip => gzip(payload),
        Compression::Lzma => lzma(payload),
        Compression::Xz => xz(payload),
        Compression::Lz4 => super::lz4::unpack(payload),
        Compression::Zstd => zstd(payload),
        Compression::Bzip2 | Compression::Lzo => return Err(ImageError::NoDecoder { compression }),
    };
    let unpacked = unpacked.map_err(|reason| ImageError::Unpack { compression, reason })?;
    unpacked.ok_or(ImageError::TooLongUnpacked { compression })
}

#[cfg(not(feature = "unpack"))]
pub(super) fn unpack(payload: &[u8], compression: Compression) -> Result<Vec<u8>, ImageError> {
    match compression {
        Compression::None => Ok(payload.to_vec()),
        _ => Err(ImageError::NoDecoder { compression }),
    }
}

#[cfg(feature = "unpack")]
mod decoders {
    use std::io::Read;

    use miniz_oxide::inflate::{TINFLStatus, decompress_to_vec_with_limit};

    use super::super::MAX_UNPACKED_BYTES;

    /// What was unpacked, `None` if that is more than the limit, or the decoder's reason.
    type Unpacked = Result<Option<Vec<u8>>, String>;

    /// Most memory of an LZMA decoder, in KiB: 256 MiB. The kernel's build takes a dictionary of 128 MiB
    /// at most.
    const LZMA_MEMORY_KIB: u32 = 256 << 10;

    /// Largest window of a Zstandard frame in bytes. The kernel's build takes 128 MiB at most.
    const ZSTD_WINDOW_BYTES: u64 = 256 << 20;

    pub(in super::super) fn xz(payload: &[u8]) -> Unpacked {
        drain(lzma_rust2::XzReader::new_mem_limit(payload, false, LZMA_MEMORY_KIB))
    }

    pub(in super::super) fn lzma(payload: &[u8]) -> Unpacked {
        let reader = lzma_rust2::LzmaReader::new_mem_limit(payload, LZMA_MEMORY_KIB, None);
        drain(reader.map_err(|error| error.to_string())?)
    }

    pub(in super::super) fn zstd(payload: &[u8]) -> Unpacked {
        let reader = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(
            payload,
            ZSTD_WINDOW_BYTES,
        );
        drain(reader.map_err(|error| error.to_string())?)
    }

    /// RFC 1952, section 2.3: a header with optional parts, then DEFLATE.
    pub(in super::super) fn gzip(payload: &[u8]) -> Unpacked {
        let body = deflate_of(payload).ok_or("its gzip header is damaged")?;
        match decompress_to_vec_with_limit(body, MAX_UNPACKED_BYTES) {
            Ok(unpacked) => Ok(Some(unpacked)),
            Err(error) if error.status == TINFLStatus::HasMoreOutput => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }

    fn deflate_of(payload: &[u8]) -> Option<&[u8]> {
        const HEADER_CHECKSUM: u8 = 1 << 1;
        const EXTRA: u8 = 1 << 2;
        const NAME: u8 = 1 << 3;
        const COMMENT: u8 = 1 << 4;
        let flags = *payload.get(3)?;
        let mut rest = payload.get(10..)?;
        if flags & EXTRA != 0 {
            let (length, behind) = rest.split_first_chunk()?;
            rest = behind.get(usize::from(u16::from_le_bytes(*length))..)?;
        }
        for text in [NAME, COMMENT] {
            if flags & text != 0 {
                rest = &rest[memchr::memchr(0, rest)? + 1..];
            }
        }
        if flags & HEADER_CHECKSUM != 0 {
            rest = rest.get(2..)?;
        }
        Some(rest)
    }

    fn drain(reader: impl Read) -> Unpacked {
        let mut unpacked = Vec::new();
        let read = reader.take(MAX_UNPACKED_BYTES as u64 + 1).read_to_end(&mut unpacked);
        read.map_err(|error| error.to_string())?;
        Ok((unpacked.len() <= MAX_UNPACKED_BYTES).then_some(unpacked))
    }
}

#[cfg(feature = "unpack")]
use decoders::{gzip, lzma, xz, zstd};

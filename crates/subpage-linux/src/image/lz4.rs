//! LZ4's legacy frame: blocks of 8 MiB, each with its length before it (lz4_Frame_format.md, "Legacy
//! frame").

use super::MAX_UNPACKED_BYTES;

/// Bytes of every block but the last once it is unpacked.
const BLOCK_BYTES: usize = 8 << 20;

/// Longest block: what the format's encoders can make of [`BLOCK_BYTES`].
const MAX_PACKED_BYTES: usize = BLOCK_BYTES + BLOCK_BYTES / 255 + 16;

const MAGIC_BYTES: usize = 4;

/// Unpacks blocks to the end of `payload`, which the magic begins; `None`: more than the limit.
pub(super) fn unpack(payload: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let mut rest = &payload[MAGIC_BYTES..];
    let mut unpacked = Vec::new();
    let mut block = vec![0; BLOCK_BYTES];
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        // Behind the last block the kernel's build has the length of the whole, which may be whole blocks.
        if behind.is_empty() && !unpacked.is_empty() {
            break;
        }
        let length = u32::from_le_bytes(*length) as usize;
        let packed = behind.get(..length).filter(|_| length <= MAX_PACKED_BYTES);
        let Some(packed) = packed else {
            return Err(format!("a block has {length} bytes, and {} follow", behind.len()));
        };
        let bytes = lz4_flex::block::decompress_into(packed, &mut block)
            .map_err(|error| error.to_string())?;
        if unpacked.len() + bytes > MAX_UNPACKED_BYTES {
            return Ok(None);
        }
        unpacked.extend_from_slice(&block[..bytes]);
        rest = &behind[length..];
        if bytes < BLOCK_BYTES {
            break;
        }
    }
    Ok(Some(unpacked))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The length of the whole stands behind the last block.
    #[test]
    fn a_kernel_of_whole_blocks_has_an_end() {
        let block = lz4_flex::block::compress(&vec![7; BLOCK_BYTES]);
        for blocks in [1_u32, 2] {
            let mut payload = vec![0; MAGIC_BYTES];
            for _ in 0..blocks {
                payload.extend(u32::try_from(block.len()).expect("short").to_le_bytes());
                payload.extend(&block);
            }
            payload.extend((blocks << 23).to_le_bytes());
            let unpacked = unpack(&payload).expect("blocks").expect("small");
            assert_eq!(unpacked.len(), BLOCK_BYTES * blocks as usize);
            assert!(unpacked.iter().all(|byte| *byte == 7));
        }
        assert!(unpack(&[0, 0, 0, 0, 9, 0, 0, 0]).is_err(), "no block at all");
    }
}

//! What is kept of a trace for which there is no room.
//!
//! The header stands before the frames, so the frames have to move behind it when a recording is over, also
//! on a full disk. Then a small part at their end is given up for room to begin with, and what has moved is
//! given back to the disk as it goes.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek as _, SeekFrom, Write as _};

use rustix::fs::{FallocateFlags, fallocate};

use crate::frame::{FRAME_HEAD, Frame};

/// What is given up and moved at once: an eighth of all, within these bounds.
const LEAST_STEP: u64 = 64 << 10;
const MOST_STEP: u64 = 4 << 20;

/// Whether an output failed because there is no room for more.
pub(crate) fn is_full(error: &io::Error) -> bool {
    use ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// Writes a header and moves the whole frames at the beginning of `from` behind it, as many as there is room
/// for, and then the end of a trace. Gives the writes in them, and the length of all in bytes.
///
/// Fails if there is no room for any.
pub(crate) fn move_behind(head: &[u8], from: &mut File, to: &mut File) -> io::Result<(u64, u64)> {
    let begin = head.len() as u64;
    let length = from.seek(SeekFrom::End(0))?;
    let step = (length / 8).clamp(LEAST_STEP, MOST_STEP);
    from.set_len(length.saturating_sub(begin + step).max(length / 2))?;
    from.rewind()?;
    to.write_all(head)?;
    let (mut frame, mut moved, mut freed) = (Vec::new(), 0, 0);
    // Where the trace could end, and after how many frames and writes.
    let mut ends = vec![(begin, 0_u64)];
    while let Some(writes) = next_block(from, &mut frame)? {
        match to.write_all(&frame) {
            Ok(()) => {}
            Err(error) if is_full(&error) => break,
            Err(error) => return Err(error),
        }
        moved += frame.len() as u64;
        let all = ends.last().map_or(0, |(_, all)| *all);
        ends.push((begin + moved, all + writes));
        if moved - freed >= step {
            // Not every file system can; then less of it will fit.
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let _ = fallocate(&*from, hole, freed, moved - freed);
            freed = moved;
        }
    }
    // What is left makes room for the end.
    from.set_len(0)?;
    while ends.len() > 1 {
        let (at, writes) = ends[ends.len() - 1];
        to.set_len(at)?;
        to.seek(SeekFrom::Start(at))?;
        let head = Frame::End { writes }.encode();
        let number = ends.len() as u64 - 1;
        let end = [&head[..], &Frame::checksum(number, &head, &[]).to_le_bytes()].concat();
        match to.write_all(&end) {
            Ok(()) => return Ok((writes, at + end.len() as u64)),
            Err(error) if is_full(&error) => ends.pop(),
            Err(error) => return Err(error),
        };
    }
    Err(ErrorKind::StorageFull.into())
}

/// Reads the next frame, if it is a block and whole; gives the writes in it.
fn next_block(from: &mut File, frame: &mut Vec<u8>) -> io::Result<Option<u64>> {
    frame.clear();
    Read::by_ref(from).take(FRAME_HEAD as u64).read_to_end(frame)?;
    let head = frame.first_chunk::<16>().filter(|_| frame.len() == FRAME_HEAD);
    let Some(Ok(Frame::Block { writes, stored, .. })) = head.map(Frame::decode) else {
        return Ok(None);
    };
    let read = Read::by_ref(from).take(stored.into()).read_to_end(frame)?;
    Ok((read == stored as usize).then(|| writes.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write::Write;
    use crate::writer::FrameWriter;
    use crate::{Header, TraceReader};

    const BLOCK: u64 = 16_384;

    fn write(number: u64) -> Write {
        let scattered = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
        Write { pc: 0x40_0000 + scattered % 4096, address: scattered, size: 8 }
    }

    fn spool(blocks: u64) -> File {
        let mut frames = FrameWriter::new(tempfile::tempfile().expect("a file"));
        for number in 0..blocks * BLOCK {
            frames.write(write(number)).expect("room");
        }
        frames.finish().expect("room")
    }

    /// The writes of a trace with these frames behind its header.
    fn kept(mut spool: File) -> (u64, u64) {
        let mut trace = tempfile::tempfile().expect("a file");
        let head = Header::default().encode();
        let (writes, bytes) = move_behind(&head, &mut spool, &mut trace).expect("some fit");
        let length = trace.metadata().expect("a file").len();
        assert_eq!(length, bytes);
        trace.rewind().expect("a file");
        let read: Vec<_> = TraceReader::new(trace)
            .expect("a trace")
            .writes()
            .collect::<Result<_, _>>()
            .expect("a whole trace");
        assert!(read.iter().copied().eq((0..writes).map(write)));
        assert_eq!(read.len() as u64, writes);
        (writes, length)
    }

    #[test]
    fn most_of_the_frames_are_kept_and_make_a_whole_trace() {
        let all = 40;
        let (writes, _) = kept(spool(all));
        assert!(writes >= (all / 2) * BLOCK && writes < all * BLOCK, "{writes}");
    }

    #[test]
    fn a_frame_that_is_cut_off_is_left_out() {
        let spool = spool(6);
        let length = spool.metadata().expect("a file").len();
        spool.set_len(length - 100).expect("shorter");
        let (writes, _) = kept(spool);
        assert!(writes > 0 && writes % BLOCK == 0);
    }

    #[test]
    fn without_a_frame_there_is_nothing_to_keep() {
        let mut trace = tempfile::tempfile().expect("a file");
        let error = move_behind(b"", &mut spool(0), &mut trace).expect_err("nothing");
        assert!(is_full(&error));
    }
}

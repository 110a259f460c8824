//! Writing a trace.

use std::collections::BTreeMap;
use std::io;

use crate::block::BlockEncoder;
use crate::error::TraceError;
use crate::frame::{Frame, MAX_BLOCK_WRITES, Method};
use crate::header::Header;
use crate::write::Write;

/// Writes of a process that are gathered before they get a block of their own. A block of one write
/// costs some 25 bytes, and processes that run at once take turns with every line of lackey's text.
const GATHERED: usize = 512;

/// Writes a trace front to back; memory does not grow with its length.
///
/// The writes of each process keep their order. Those of different processes do not: they are gathered
/// in blocks of one process each. Without [`Self::finish`] the trace has no end frame and reads as cut off.
pub struct TraceWriter<W: io::Write> {
    frames: FrameWriter<W>,
    processes: usize,
}

impl<W: io::Write> TraceWriter<W> {
    /// Begins a trace.
    ///
    /// # Errors
    /// [`TraceError::Io`] if the output fails.
    ///
    /// # Panics
    /// If the header breaks a rule of the format: more than [`MAX_PROCESSES`] processes or
    /// [`MAX_NAMES`] names of all of them together, a [`Header::main`] that is none of them, names at
    /// the main process in [`Header::processes`], a parent that does not stand before its child.
    ///
    /// [`MAX_PROCESSES`]: crate::MAX_PROCESSES
    /// [`MAX_NAMES`]: crate::MAX_NAMES
    pub fn new(mut out: W, header: &Header) -> Result<Self, TraceError> {
        let bytes = header.encode();
        out.write_all(&bytes).map_err(|source| TraceError::Io { offset: 0, source })?;
        let mut frames = FrameWriter::new(out);
        frames.offset = bytes.len() as u64;
        Ok(Self { frames, processes: header.processes.len().max(1) })
    }

    /// Adds a write.
    ///
    /// # Errors
    /// [`TraceError::BadWrite`] for a write that [`Write::is_valid`] refuses; the trace continues
    /// without it. After any other error every later call fails.
    pub fn write(&mut self, write: Write) -> Result<(), TraceError> {
        self.frames.write(write)
    }

    /// Adds writes of one process, in their order; faster than one by one.
    ///
    /// # Errors
    /// As [`Self::write`]; the writes before a bad one are in the trace.
    pub fn write_all(&mut self, writes: &[Write]) -> Result<(), TraceError> {
        self.frames.write_all(writes)
    }

    /// The process that the next writes are of, by its place in [`Header::processes`]; 0 at first.
    ///
    /// # Panics
    /// If the header has no such process.
    pub fn set_process(&mut self, number: u16) {
        assert!(usize::from(number) < self.processes, "the header has no process {number}");
        self.frames.set_process(number);
    }

    /// Writes added so far.
    pub fn writes(&self) -> u64 {
        self.frames.writes
    }

    /// Bytes given to the output so far.
    pub fn bytes(&self) -> u64 {
        self.frames.offset
    }

    /// Ends the trace and gives the output back, flushed.
    ///
    /// # Errors
    /// [`TraceError::Io`] if the output fails, [`TraceError::Poisoned`] if it has failed before.
    pub fn finish(self) -> Result<W, TraceError> {
        self.frames.finish()
    }
}

/// Writes the frames of a trace, which follow its header.
pub(crate) struct FrameWriter<W: io::Write> {
    out: W,
    encoder: BlockEncoder,
    in_block: usize,
    number: u64,
    /// That of the next writes.
    process: u16,
    /// That of the block which the encoder holds.
    block_of: u16,
    /// Writes of the others, by their number; less than [`GATHERED`] of each.
    gathered: BTreeMap<u16, Vec<Write>>,
    content: Vec<u8>,
    frame: Vec<u8>,
    poisoned: bool,
    pub(crate) writes: u64,
    pub(crate) offset: u64,
}

impl<W: io::Write> FrameWriter<W> {
    pub(crate) fn new(out: W) -> Self {
        Self {
            out,
            encoder: BlockEncoder::new(),
            in_block: 0,
            number: 0,
            process: 0,
            block_of: 0,
            gathered: BTreeMap::new(),
            content: Vec::new(),
            frame: Vec::new(),
            poisoned: false,
            writes: 0,
            offset: 0,
        }
    }

    pub(crate) fn write(&mut self, write: Write) -> Result<(), TraceError> {
        if self.poisoned {
            return Err(TraceError::Poisoned);
        }
        if !write.is_valid() {
            let length = u64::from(write.size);
            return Err(TraceError::BadWrite { address: write.address, length });
        }
        self.writes += 1;
        if self.process == self.block_of {
            return self.push(write);
        }
        let gathered = self.gathered.entry(self.process).or_default();
        gathered.push(write);
        if gathered.len() < GATHERED {
            return Ok(());
        }
        let gathered = std::mem::take(gathered);
        self.begin_block(self.process, gathered)
    }

    /// Adds writes of the same process.
    pub(crate) fn write_all(&mut self, mut writes: &[Write]) -> Result<(), TraceError> {
        while self.process == self.block_of && !self.poisoned && !writes.is_empty() {
            let room = MAX_BLOCK_WRITES - self.in_block;
            let (now, later) = writes.split_at(writes.len().min(room));
            for write in now {
                if !write.is_valid() {
                    let length = u64::from(write.size);
                    return Err(TraceError::BadWrite { address: write.address, length });
                }
                self.encoder.push(*write);
                self.in_block += 1;
                self.writes += 1;
            }
            if self.in_block == MAX_BLOCK_WRITES {
                self.end_block()?;
            }
            writes = later;
        }
        writes.iter().try_for_each(|write| self.write(*write))
    }

    /// Blocks hold writes of one process.
    pub(crate) fn set_process(&mut self, number: u16) {
        self.process = number;
    }

    fn push(&mut self, write: Write) -> Result<(), TraceError> {
        self.encoder.push(write);
        self.in_block += 1;
        if self.in_block == MAX_BLOCK_WRITES { self.end_block() } else { Ok(()) }
    }

    /// From here on the encoder holds writes of the process `number`.
    fn begin_block(&mut self, number: u16, writes: Vec<Write>) -> Result<(), TraceError> {
        self.end_block()?;
        self.block_of = number;
        writes.into_iter().try_for_each(|write| self.push(write))
    }

    fn end_block(&mut self) -> Result<(), TraceError> {
        if self.in_block == 0 {
            return Ok(());
        }
        self.encoder.take(&mut self.content);
        let packed = lz4_flex::block::compress(&self.content);
        let smaller = packed.len() < self.content.len();
        let (method, payload) =
            if smaller { (Method::Lz4, &packed) } else { (Method::Plain, &self.content) };
        let head = Frame::Block {
            method,
            process: self.block_of,
            writes: bounded(self.in_block),
            length: bounded(self.content.len()),
            stored: bounded(payload.len()),
        };
        assert_eq!(Frame::decode(&head.encode()), Ok(head), "the writer keeps to the limits");
        self.frame.clear();
        append(&mut self.frame, self.number, head, payload);
        self.in_block = 0;
        self.put_frame()
    }

    fn put_frame(&mut self) -> Result<(), TraceError> {
        self.number += 1;
        let offset = self.offset;
        self.out.write_all(&self.frame).map_err(|source| {
            self.poisoned = true;
            TraceError::Io { offset, source }
        })?;
        self.offset += self.frame.len() as u64;
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<W, TraceError> {
        if self.poisoned {
            return Err(TraceError::Poisoned);
        }
        for (number, gathered) in std::mem::take(&mut self.gathered) {
            if !gathered.is_empty() {
                self.begin_block(number, gathered)?;
            }
        }
        self.end_block()?;
        self.frame.clear();
        append(&mut self.frame, self.number, Frame::End { writes: self.writes }, &[]);
        self.put_frame()?;
        let offset = self.offset;
        self.out.flush().map_err(|source| TraceError::Io { offset, source })?;
        Ok(self.out)
    }
}

fn bounded(length: usize) -> u32 {
    u32::try_from(length).unwrap_or_else(|_| unreachable!("a block is far below 4 GiB"))
}

fn append(out: &mut Vec<u8>, number: u64, head: Frame, payload: &[u8]) {
    let head = head.encode();
    out.extend(head);
    out.extend(Frame::checksum(number, &head, payload).to_le_bytes());
    out.extend(payload);
}

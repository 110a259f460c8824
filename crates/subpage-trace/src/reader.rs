//! Reading a trace.

use std::io::Read;

use crate::block::BlockDecoder;
use crate::error::TraceError;
use crate::frame::{Counted, FRAME_HEAD, Frame, Method};
use crate::header::Header;
use crate::names::Names;
use crate::write::Write;

/// Reads a trace front to back.
///
/// Input is not trusted: whatever it claims, a reader holds at most about 64 MiB (a full table
/// of the longest names, less than 6 MiB without) and never panics. Give it a buffered input, or a large one: it reads in pieces of
/// 20 bytes and of whole blocks.
pub struct TraceReader<R> {
    input: Counted<R>,
    header: Header,
    /// Made for the first block whose checksum is right.
    decoder: Option<BlockDecoder>,
    stored: Vec<u8>,
    content: Vec<u8>,
    block: u64,
    writes: u64,
    process: u16,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Reading,
    Ended,
    Failed,
}

impl<R: Read> TraceReader<R> {
    /// Reads the header.
    pub fn new(input: R) -> Result<Self, TraceError> {
        let mut input = Counted::new(input);
        let header = Header::read(&mut input)?;
        Ok(Self {
            input,
            header,
            decoder: None,
            stored: Vec::new(),
            content: Vec::new(),
            block: 0,
            writes: 0,
            process: 0,
            state: State::Reading,
        })
    }

    /// Program and arguments that were recorded; empty where not known. Not trusted: escape it
    /// before it goes to a terminal.
    pub fn command(&self) -> &[String] {
        &self.header.command
    }

    /// Named ranges of the recorded program.
    pub fn names(&self) -> &Names {
        &self.header.names
    }

    /// Command and names together.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The process whose writes [`Self::next_block`] gave last, by its place in
    /// [`Header::processes`]; 0 in a trace of one process.
    pub fn process(&self) -> u16 {
        self.process
    }

    /// Bytes read so far, for a progress bar.
    pub fn bytes_read(&self) -> u64 {
        self.input.offset
    }

    /// Replaces `out` by the writes of the next block (1 to 16,384); false at the end of the
    /// trace. `out` is empty after an error and at the end.
    ///
    /// # Errors
    /// Damage, and a file that continues after its end. As a block builds on those before it,
    /// nothing is read after an error: later calls give false.
    pub fn next_block(&mut self, out: &mut Vec<Write>) -> Result<bool, TraceError> {
        if self.state != State::Reading {
            out.clear();
            return Ok(false);
        }
        self.state = State::Failed;
        let more = self.read_block(out);
        match more {
            Ok(true) => self.state = State::Reading,
            Ok(false) => {
                self.state = State::Ended;
                out.clear();
            }
            Err(_) => out.clear(),
        }
        more
    }

    /// Whether the end frame has been read and the trace is complete.
    pub fn is_complete(&self) -> bool {
        self.state == State::Ended
    }

    /// All writes one by one; nothing after the first error. In a trace of several processes those of
    /// all of them, and nothing says which is whose: [`Self::next_block`] and [`Self::process`] do.
    pub fn writes(self) -> Writes<R> {
        Writes { reader: self, block: Vec::new(), next: 0 }
    }

    fn read_block(&mut self, out: &mut Vec<Write>) -> Result<bool, TraceError> {
        let (block, start, writes_before) = (self.block, self.input.offset, self.writes);
        let malformed = |what| TraceError::Malformed { block, offset: start, what };
        let damaged = || TraceError::Checksum { block, offset: start, writes: writes_before };
        let mut bytes = [0; FRAME_HEAD];
        if self.input.fill(&mut bytes)? < FRAME_HEAD {
            return Err(self.truncated());
        }
        let mut head = [0; 16];
        head.copy_from_slice(&bytes[..16]);
        let checksum = u32::from_le_bytes([bytes[16], bytes[17], bytes[18], bytes[19]]);
        // The head says how much its checksum covers, so its own rules come first.
        match Frame::decode(&head).map_err(malformed)? {
            Frame::Block { method, process, writes, length, stored } => {
                if usize::from(process) >= self.header.processes.len().max(1) {
                    return Err(malformed("a block is of a process that the header does not have"));
                }
                self.stored.clear();
                let read = self.input.append(&mut self.stored, u64::from(stored))?;
                if read < u64::from(stored) {
                    return Err(self.truncated());
                }
                if Frame::checksum(block, &head, &self.stored) != checksum {
                    return Err(damaged());
                }
                let content = match method {
                    Method::Plain => &self.stored,
                    Method::Lz4 => {
                        let length = length as usize;
                        self.content.resize(length, 0);
                        let done =
                            lz4_flex::block::decompress_into(&self.stored, &mut self.content);
                        if done.ok() != Some(length) {
                            return Err(malformed("the block does not decompress to its length"));
                        }
                        &self.content
                    }
                };
                out.resize(writes as usize, Write::default());
                self.decoder
                    .get_or_insert_with(BlockDecoder::new)
                    .decode(content, out)
                    .map_err(malformed)?;
                self.process = process;
                self.block += 1;
                self.writes += u64::from(writes);
                Ok(true)
            }
            Frame::End { writes } => {
                if Frame::checksum(block, &head, &[]) != checksum {
                    return Err(damaged());
                }
                if writes != self.writes {
                    return Err(malformed("the end counts other writes than the blocks hold"));
                }
                if self.input.fill(&mut [0])? > 0 {
                    return Err(malformed("bytes follow the end of the trace"));
                }
                Ok(false)
            }
        }
    }

    fn truncated(&self) -> TraceError {
        let (block, offset, writes) = (self.block, self.input.offset, self.writes);
        TraceError::Truncated { block, offset, writes }
    }
}

/// The writes of a trace, of all its processes. See [`TraceReader::writes`].
pub struct Writes<R> {
    reader: TraceReader<R>,
    block: Vec<Write>,
    next: usize,
}

impl<R: Read> Iterator for Writes<R> {
    type Item = Result<Write, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next == self.block.len() {
            self.next = 0;
            match self.reader.next_block(&mut self.block) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(e) => return Some(Err(e)),
            }
        }
        let write = self.block[self.next];
        self.next += 1;
        Some(Ok(write))
    }
}

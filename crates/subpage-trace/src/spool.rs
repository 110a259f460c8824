//! A trace on its way to its final name.
//!
//! Heap and stack have their extents only when all writes are known, and the names stand before
//! the writes. So the frames are held in a file without a name, which is gone whatever ends this
//! process, and the whole is put together at the end.

use std::fs::{File, Permissions};
use std::io::{self, Read, Seek};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::destination::destination;
use crate::error::TraceError;
use crate::header::Header;
use crate::lackey::LackeyReader;
use crate::record::{Progress, RecordError, Told};
use crate::salvage;
use crate::write::Write;
use crate::writer::FrameWriter;

/// Writes between two calls of a progress function.
const PROGRESS: u64 = 1 << 16;

/// An empty file without a name next to the output.
pub(crate) struct Spool {
    output: PathBuf,
    folder: PathBuf,
    file: File,
}

/// All frames of a trace.
pub(crate) struct Filled {
    output: PathBuf,
    folder: PathBuf,
    file: File,
    writes: u64,
    is_full: bool,
}

/// A trace under its name.
pub(crate) struct Placed {
    /// Writes in it.
    pub(crate) writes: u64,
    /// Its length.
    pub(crate) bytes: u64,
    /// There was no room for more.
    pub(crate) is_full: bool,
}

impl Spool {
    /// Fails early, before a long recording, if `output` cannot be written.
    pub(crate) fn new(output: &Path) -> Result<Self, RecordError> {
        let failed = |source| RecordError::Output { path: output.to_owned(), source };
        let target = destination(output).map_err(failed)?;
        if target.file_name().is_none() {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        }
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new(".")).to_owned();
        let file = tempfile::tempfile_in(&folder).map_err(failed)?;
        Ok(Self { output: target, folder, file })
    }

    /// Moves all writes of a source into the file, and tells of its messages. Ends early if there is no room
    /// for more.
    pub(crate) fn fill(
        self,
        source: &mut impl Source,
        cancel: &AtomicBool,
        mut tell: impl FnMut(Told<'_>),
    ) -> Result<Filled, RecordError> {
        let failed = |source| RecordError::Output { path: self.output.clone(), source };
        let file = self.file.try_clone().map_err(failed)?;
        let mut frames = FrameWriter::new(self.file);
        let mut is_full = false;
        let mut next_report = 0;
        let mut writes = Vec::new();
        loop {
            writes.clear();
            let item = source.next(&mut writes);
            if frames.writes >= next_report {
                if cancel.load(Ordering::Relaxed) {
                    return Err(RecordError::Cancelled);
                }
                next_report = frames.writes + PROGRESS;
                let (writes, trace_bytes) = (frames.writes, frames.offset);
                let text_bytes = source.bytes();
                tell(Told::Progress(Progress { writes, text_bytes, trace_bytes }));
            }
            match item {
                Ok(Some(Next::Writes(process))) => {
                    frames.set_process(process);
                    match frames.write_all(&writes) {
                        Err(TraceError::Io { source, .. }) if salvage::is_full(&source) => {
                            is_full = true;
                            break;
                        }
                        written => written?,
                    }
                }
                Ok(Some(Next::Message(message))) => tell(Told::Message(&message)),
                Ok(None) => break,
                Err(source) => return Err(RecordError::Text { source }),
            }
        }
        let writes = frames.writes;
        if !is_full {
            match frames.finish() {
                Err(TraceError::Io { source, .. }) if salvage::is_full(&source) => is_full = true,
                finished => drop(finished?),
            }
        }
        Ok(Filled { output: self.output, folder: self.folder, file, writes, is_full })
    }
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Writes of the process of that number.
    Writes(u16),
    /// Something that Valgrind says.
    Message(String),
}

/// Where writes come from.
pub(crate) trait Source {
    /// Appends the next writes, or gives a message; `None` at the end.
    fn next(&mut self, writes: &mut Vec<Write>) -> io::Result<Option<Next>>;

    /// Bytes read so far.
    fn bytes(&self) -> u64;
}

impl<R: Read> Source for LackeyReader<R> {
    fn next(&mut self, writes: &mut Vec<Write>) -> io::Result<Option<Next>> {
        let Some(write) = self.next_write()? else { return Ok(None) };
        writes.push(write);
        Ok(Some(Next::Writes(0)))
    }

    fn bytes(&self) -> u64 {
        self.summary().bytes
    }
}

impl Filled {
    /// Whether there was no room for more, so that the recording has to end.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Puts header and frames under the final name, as many as there is room for.
    pub(crate) fn place(
        mut self,
        header: &Header,
        cancel: &AtomicBool,
    ) -> Result<Placed, RecordError> {
        let output = self.output.clone();
        let placed = self
            .complete(header, cancel)
            .map_err(|source| RecordError::Output { path: output, source })?;
        placed.ok_or(RecordError::Cancelled)
    }

    fn complete(&mut self, header: &Header, cancel: &AtomicBool) -> io::Result<Option<Placed>> {
        let mut whole = tempfile::Builder::new()
            .prefix(".subpage-")
            .suffix(".tmp")
            // Less what the umask takes away, as for any new file.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(&self.folder)?;
        let head = header.encode();
        let copied = if self.is_full { None } else { self.copy(&head, whole.as_file_mut())? };
        let (writes, bytes) = if let Some(bytes) = copied {
            (self.writes, bytes)
        } else {
            self.is_full = true;
            whole.as_file().set_len(0)?;
            whole.rewind()?;
            salvage::move_behind(&head, &mut self.file, whole.as_file_mut())?
        };
        whole.as_file().sync_all()?;
        if cancel.load(Ordering::Relaxed) {
            return Ok(None);
        }
        whole.persist(&self.output).map_err(|e| e.error)?;
        File::open(&self.folder)?.sync_all()?;
        Ok(Some(Placed { writes, bytes, is_full: self.is_full }))
    }

    /// Writes the header and copies all frames; gives the length of both, or `None` if there is no room for
    /// them.
    fn copy(&mut self, head: &[u8], to: &mut File) -> io::Result<Option<u64>> {
        self.file.rewind()?;
        let written = io::Write::write_all(to, head).and_then(|()| io::copy(&mut self.file, to));
        match written {
            Ok(bytes) => Ok(Some(head.len() as u64 + bytes)),
            Err(error) if salvage::is_full(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

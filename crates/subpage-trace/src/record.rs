//! Recording a program, or a text of lackey, into a file.

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::AtomicBool;

use crate::address_space::{AddressSpace, Extents};
use crate::elf::{ElfError, program_names};
use crate::error::TraceError;
use crate::header::Header;
use crate::lackey::{LackeyReader, LackeySummary};
use crate::names::Names;
use crate::spool::Spool;
use crate::valgrind::{Traced, find_program};

/// Why nothing was recorded. No file is left, and an older one of the same name is untouched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Valgrind cannot be found.
    #[error("cannot find `{program}`; recording needs Valgrind: install the package `valgrind`")]
    ValgrindMissing {
        /// What was to be run.
        program: String,
    },
    /// The program to record cannot be found or not be run.
    #[error("cannot find the program `{program}`, or it is no file that can be run")]
    ProgramMissing {
        /// As given.
        program: String,
    },
    /// Valgrind cannot be started.
    #[error("cannot start valgrind")]
    Start {
        /// The failure.
        source: io::Error,
    },
    /// The program ended, and not one access came.
    #[error("nothing was recorded: valgrind ended ({status}) before the program's first access")]
    Nothing {
        /// How it ended.
        status: ExitStatus,
    },
    /// The text of lackey cannot be read.
    #[error("cannot read the text of lackey")]
    Text {
        /// The failure.
        source: io::Error,
    },
    /// The text holds no access at all.
    #[error(
        "the text holds no access: it is not what \
         `valgrind --tool=lackey --trace-mem=yes` prints ({lines} lines read)"
    )]
    NoAccess {
        /// Lines read.
        lines: u64,
    },
    /// The trace cannot be encoded or written.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The file cannot be created, completed or put in place.
    #[error("cannot write `{}`", .path.display())]
    Output {
        /// The file to be.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// The flag to stop was set.
    #[error("stopped on request; nothing was written")]
    Cancelled,
}

/// What to record.
#[derive(Clone, Debug)]
pub struct Recording<'a> {
    /// The program: a path, or a name that `PATH` leads to.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Valgrind: a path, or a name that `PATH` leads to. Usually `valgrind`.
    pub valgrind: OsString,
    /// Set it from a signal handler to stop; looked at ten times a second and more.
    pub cancel: &'a AtomicBool,
}

/// How far a recording is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Writes recorded.
    pub writes: u64,
    /// Bytes of lackey's text read.
    pub text_bytes: u64,
    /// Bytes of the trace, without its header.
    pub trace_bytes: u64,
}

/// What was recorded.
#[derive(Debug)]
#[non_exhaustive]
pub struct Recorded {
    /// Writes in the trace.
    pub writes: u64,
    /// Length of the file in bytes.
    pub file_bytes: u64,
    /// What lackey's text held besides.
    pub text: LackeySummary,
    /// How many names the trace has.
    pub names: usize,
    /// Names that were too long or too many.
    pub names_left_out: usize,
    /// Why the program's own sections and objects have no names, if they have none.
    pub nameless: Option<ElfError>,
    /// How the program ended; `None` for a text.
    pub status: Option<ExitStatus>,
}

/// Runs a program under Valgrind and records its writes to `output`.
///
/// The program keeps its standard input, output and error. It is followed as one process with
/// all its threads; processes that it starts are not. What the kernel writes for it (the buffer
/// of a `read`) is no store of the program and is not in the trace. The file appears under its
/// name complete or not at all; until then the trace is held in a file without a name in the
/// same folder.
pub fn record(
    output: &Path,
    recording: &Recording<'_>,
    progress: impl FnMut(Progress),
) -> Result<Recorded, RecordError> {
    let program = find_program(&recording.program)?;
    let spool = Spool::new(output)?;
    let traced =
        Traced::start(&recording.valgrind, &program, &recording.arguments, recording.cancel)?;
    let mut extents = Extents::default();
    let mut text = LackeyReader::new(traced);
    let filled = spool.fill(&mut text, recording.cancel, progress, |write, traced| {
        extents.note(traced.space(), write);
    })?;
    let (mut traced, text) = text.into_parts();
    let status = traced.wait().map_err(|source| RecordError::Start { source })?;
    if text.accesses() == 0 {
        return Err(RecordError::Nothing { status });
    }
    let (program_names, nameless) = match names_of(traced.space()) {
        Ok(names) => (names, None),
        Err(e) => (Names::default(), Some(e)),
    };
    let areas = extents.names(traced.space());
    let mut left_out = program_names.left_out();
    let names = Names::new(program_names.iter().cloned().chain(areas));
    left_out += names.left_out();
    let words = std::iter::once(&recording.program).chain(&recording.arguments);
    let command = words.map(|word| word.to_string_lossy().into_owned()).collect();
    let count = names.len();
    let (writes, file_bytes) = filled.place(&Header { command, names }, recording.cancel)?;
    Ok(Recorded {
        writes,
        file_bytes,
        text,
        names: count,
        names_left_out: left_out,
        nameless,
        status: Some(status),
    })
}

fn names_of(space: &AddressSpace) -> Result<Names, ElfError> {
    let gone = || ElfError::Open(io::Error::other("the program ended before it was looked at"));
    let (path, placement) = space.program.as_ref().ok_or_else(gone)?;
    program_names(path, *placement)
}

/// Records the writes in a text that lackey printed earlier to `output`.
///
/// Such a text does not say where the program's data lay, so the trace has the command and the
/// names that `header` gives. The file appears as with [`record()`]. `cancel` is looked at whenever
/// text has arrived; an input that blocks is not interrupted.
pub fn import(
    output: &Path,
    text: impl Read,
    header: &Header,
    cancel: &AtomicBool,
    progress: impl FnMut(Progress),
) -> Result<Recorded, RecordError> {
    let spool = Spool::new(output)?;
    let mut text = LackeyReader::new(text);
    let filled = spool.fill(&mut text, cancel, progress, |_, _| {})?;
    let (_, text) = text.into_parts();
    if text.accesses() == 0 {
        return Err(RecordError::NoAccess { lines: text.lines });
    }
    let (writes, file_bytes) = filled.place(header, cancel)?;
    Ok(Recorded {
        writes,
        file_bytes,
        text,
        names: header.names.len(),
        names_left_out: header.names.left_out(),
        nameless: None,
        status: None,
    })
}

//! Recording a program, or a text of lackey, into a file.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::process::Signal;

use crate::elf::ElfError;
use crate::error::TraceError;
use crate::header::Header;
use crate::lackey::{LackeyReader, LackeySummary};
use crate::processes::Processes;
use crate::spool::Spool;
use crate::stores_tool::ToolError;
use crate::tool::{Tool, ToolChoice};
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
    /// What was asked for needs our own Valgrind tool, which cannot be had.
    #[error("the recorder's own tool is needed and cannot be used")]
    Tool(#[source] ToolError),
    /// An option of the machine that the recorder sets.
    #[error(
        "the recorder sets `{option}` of QEMU itself: without it, no two recordings would be the same"
    )]
    MachineOption {
        /// The option.
        option: String,
    },
    /// What was started is not QEMU, but has started it.
    #[error(
        "nothing was recorded: `{program}` runs QEMU as another process; let it end with `exec`, or name \
         QEMU itself"
    )]
    OtherProcess {
        /// As given.
        program: String,
    },
    /// The program, or Valgrind for it, cannot be started.
    #[error("cannot start valgrind or the machine")]
    Start {
        /// The failure.
        source: io::Error,
    },
    /// The program ended, and not one access came.
    #[error(
        "nothing was recorded: valgrind, or the machine, ended ({status}) before the program's first access"
    )]
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
    /// The flag to stop that [`import`] was given is set, or a signal came before the program was started.
    /// What was recorded up to a later signal is kept.
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
    /// Whether the processes that it starts are recorded as well.
    pub children: bool,
    /// Whether what the kernel writes for the program is recorded as well, with the pc 0. Only our own
    /// tool can.
    pub kernel_writes: bool,
    /// Which of Valgrind's tools records.
    pub tool: ToolChoice,
    /// Where our own tool is kept, in place of the user's cache directory.
    pub cache: Option<PathBuf>,
    /// Number of a signal that asks for the end, 0 for none; set it from a signal handler. Looked at ten
    /// times a second and more, and set back to 0. The first one is passed on to the program, unless
    /// it came from the program's terminal, and recording continues until the program has ended; the
    /// second one ends the program at once. What was recorded is kept.
    pub signal: &'a AtomicUsize,
}

/// Something that happens during a recording.
#[derive(Clone, Copy, Debug)]
pub enum Told<'a> {
    /// The tool that records; the first that is told.
    Tool(&'a Tool),
    /// How far it is.
    Progress(Progress),
    /// Valgrind says something; at most 100 lines are told. Not trusted.
    Message(&'a str),
}

/// How far a recording is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Writes recorded.
    pub writes: u64,
    /// Bytes of lackey's text, or of our own tool's packets, read.
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
    /// The tool that recorded; `None` for a text.
    pub tool: Option<Tool>,
    /// Whether all writes of the program itself came up to its end. Our own tool tells of it; one that was killed
    /// (SIGKILL) did not, and up to some 4,000 of the last writes are missing. `None` where it is not told:
    /// of lackey and of a text.
    pub is_whole: Option<bool>,
    /// Stores that the tool told of and that are not in the trace: packets that did not come, or, of a
    /// machine, stores of which QEMU has no physical address.
    pub missing: u64,
    /// Processes besides the main one whose end our own tool did not tell of: they were killed, or still
    /// ran when the recording ended. Their last writes, up to some 4,000 each, are missing.
    pub unfinished: usize,
    /// There was no room for more on the disk, or in a file: the trace ends early, and the program, or the
    /// machine, was ended.
    pub is_full: bool,
    /// The recording of a machine ended at its limit.
    pub is_limited: bool,
    /// How many names the trace has.
    pub names: usize,
    /// Names that were too long or too many. Once there are too many, those of further processes are
    /// not read and not counted.
    pub names_left_out: usize,
    /// Why the program's own sections and objects have no names, if they have none.
    pub nameless: Option<ElfError>,
    /// How the program ended; `None` for a text.
    pub status: Option<ExitStatus>,
    /// The processes whose writes are in the trace: one, unless the program replaced itself by exec, or
    /// its children were recorded.
    pub processes: usize,
    /// Processes whose writes are not, or not to their end: the program started them and they were not
    /// asked for, or there were too many. Counted up to [`MAX_PROCESSES`]. Where children are not asked
    /// for, only those that run a program of their own are counted: Valgrind is silent in a child that
    /// is a mere fork.
    ///
    /// [`MAX_PROCESSES`]: crate::MAX_PROCESSES
    pub processes_left_out: usize,
}

impl Recorded {
    /// Whether Valgrind could not go on, so that the trace ends before the program would have: it has
    /// failed itself, or the program ended by the SIGILL that it got for an instruction that Valgrind
    /// does not know.
    pub fn stops_early(&self) -> bool {
        let signal = self.status.and_then(|status| status.signal());
        let illegal = signal == Some(Signal::ILL.as_raw());
        self.text.failed || self.text.unknown_instructions > 0 && illegal
    }
}

/// Runs a program under Valgrind and records its writes to `output`.
///
/// The program keeps its standard input, output and error. It is followed with all its threads and
/// through every exec, and if it is asked for, so are the processes that it starts; the recording ends
/// with the program itself. What the kernel writes for it (the buffer of a `read`) is no store of the
/// program and is in the trace only if it is asked for. The file appears under its name complete or not at all; until then
/// the trace is held in a file without a name in the same folder.
pub fn record(
    output: &Path,
    recording: &Recording<'_>,
    mut tell: impl FnMut(Told<'_>),
) -> Result<Recorded, RecordError> {
    let Recording { program, arguments, children, .. } = recording;
    let file = find_program(program)?;
    let spool = Spool::new(output)?;
    let tool = Tool::choose(recording);
    // A Ctrl-C ends the compiler of our own tool as well, and is no reason to take another one.
    if recording.signal.load(Ordering::Relaxed) != 0 {
        return Err(RecordError::Cancelled);
    }
    let tool = tool?;
    tell(Told::Tool(&tool));
    let traced = Traced::start(recording, &file, &tool)?;
    let mut processes = Processes::new(traced, &file, *children);
    let never = AtomicBool::new(false);
    let filled = spool.fill(&mut processes, &never, tell)?;
    let (mut traced, mut told) = processes.finish();
    if filled.is_full() {
        // It may have ended by itself meanwhile.
        let _ = traced.ask_to_end();
    }
    let status = traced.wait().map_err(|source| RecordError::Start { source })?;
    let is_own = matches!(tool, Tool::Own { .. });
    if if is_own { told.packets == 0 } else { told.text.accesses() == 0 } {
        return Err(RecordError::Nothing { status });
    }
    let words = std::iter::once(program).chain(arguments);
    let command = words.map(|word| word.to_string_lossy().into_owned()).collect();
    let mut header = Header { command, ..Header::default() };
    if let Some(main) = told.processes.get_mut(usize::from(told.main)) {
        header.names = std::mem::take(&mut main.names);
        header.code = std::mem::take(&mut main.code);
        header.build = main.build.take();
    }
    let count = told.processes.len();
    if count > 1 {
        header.main = told.main;
        header.processes = told.processes;
    }
    let names = header.names.len();
    let placed = filled.place(&header, &never)?;
    Ok(Recorded {
        writes: placed.writes,
        file_bytes: placed.bytes,
        is_full: placed.is_full,
        text: told.text,
        is_whole: is_own.then_some(told.is_whole),
        missing: told.missing,
        unfinished: told.unfinished,
        is_limited: false,
        tool: Some(tool),
        names,
        names_left_out: told.names_left_out,
        nameless: told.nameless,
        status: Some(status),
        processes: count,
        processes_left_out: told.left_out,
    })
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
    mut progress: impl FnMut(Progress),
) -> Result<Recorded, RecordError> {
    let spool = Spool::new(output)?;
    let mut text = LackeyReader::new(text);
    let filled = spool.fill(&mut text, cancel, |told| {
        if let Told::Progress(now) = told {
            progress(now);
        }
    })?;
    let (_, text) = text.into_parts();
    if text.accesses() == 0 {
        return Err(RecordError::NoAccess { lines: text.lines });
    }
    let placed = filled.place(header, cancel)?;
    Ok(Recorded {
        writes: placed.writes,
        file_bytes: placed.bytes,
        is_full: placed.is_full,
        text,
        tool: None,
        is_whole: None,
        missing: 0,
        unfinished: 0,
        is_limited: false,
        names: header.names.len(),
        names_left_out: header.names.left_out(),
        nameless: None,
        status: None,
        processes: 1,
        processes_left_out: 0,
    })
}

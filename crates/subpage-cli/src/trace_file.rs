//! A trace as a guest.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use subpage::address::{ByteRange, Gpa};
use subpage_trace::{Code, Name, NameKind, Process, TraceError, TraceReader, Write};

use crate::failure::Failure;
use crate::new_file::is_stdin;
use crate::policy::{NamedRange, Names};

/// An open trace whose header has been read.
pub struct TraceFile {
    /// Its blocks.
    pub reader: TraceReader<BufReader<File>>,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its path as the user named it.
    pub name: String,
    /// The process whose writes are given.
    process: u16,
    /// Writes of the others so far.
    pub others: u64,
}

impl TraceFile {
    /// Opens a trace and reads its header. Gives the writes of the process with that number, else of the
    /// main one.
    pub fn open(path: &Path, process: Option<u16>) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let failed = |error: &(dyn std::error::Error + 'static)| {
            Failure::input(format_args!("cannot read the trace {name}"), error)
        };
        let at = if is_stdin(path) { Path::new("/dev/stdin") } else { path };
        let file = File::open(at).map_err(|error| failed(&error))?;
        let data = file.metadata().map_err(|error| failed(&error))?;
        let mut input = BufReader::with_capacity(1 << 18, file);
        if input.fill_buf().map_err(|error| failed(&error))?.is_empty() {
            return Err(Failure::Input(format!("cannot read the trace {name}: it is empty")));
        }
        let reader = TraceReader::new(input).map_err(|error| match error {
            TraceError::NotATrace if !data.is_file() => Failure::Input(format!(
                "cannot read the trace {name}: what comes from it does not begin with the bytes of a \
                 .sptrace file, and any other guest has to be a regular file: copy it to one"
            )),
            error => failed(&error),
        })?;
        let bytes = data.len();
        let header = reader.header();
        let count = header.processes.len().max(1);
        let process = process.unwrap_or(header.main);
        if usize::from(process) >= count {
            return Err(Failure::Input(format!(
                "the trace {name} has no process {process}: its {count} are numbered from 0, and \
                 `subpage plan {name} --processes` lists them"
            )));
        }
        Ok(Self { reader, bytes, name, process, others: 0 })
    }

    /// The next block of the process; `false` at the end.
    pub fn next_block(&mut self, out: &mut Vec<Write>) -> Result<bool, Failure> {
        loop {
            let next = self.reader.next_block(out).map_err(|error| {
                Failure::input(format_args!("cannot read the trace {}", self.name), &error)
            })?;
            if !next || self.reader.process() == self.process {
                return Ok(next);
            }
            self.others += out.len() as u64;
        }
    }

    /// The processes that it holds; none are told of in a trace of one.
    pub fn processes(&self) -> &[Process] {
        &self.reader.header().processes
    }

    /// Whether a whole machine was recorded, by physical addresses.
    pub fn is_machine(&self) -> bool {
        self.reader.header().is_machine
    }

    /// The command that lists the names of the process whose writes are given.
    pub fn names_command(&self) -> String {
        let (name, process) = (&self.name, self.process);
        if process == self.reader.header().main {
            format!("subpage plan {name} --names")
        } else {
            format!("subpage plan {name} --process {process} --names")
        }
    }

    /// Number of the process whose writes are given.
    pub fn process(&self) -> u16 {
        self.process
    }

    /// The process whose writes are given, as events name it; `None` in a trace of one.
    pub fn event_process(&self) -> Option<subpage_trap::Process> {
        let process = self.processes().get(usize::from(self.process))?;
        let program = process.command.split_ascii_whitespace().next().unwrap_or_default();
        let name = program.rsplit('/').next().unwrap_or_default().to_owned();
        Some(subpage_trap::Process { number: self.process, name })
    }

    /// What the trace says about the storing instructions of that process.
    pub fn code(&self) -> &Code {
        let header = self.reader.header();
        match self.processes().get(usize::from(self.process)) {
            Some(process) if self.process != header.main => &process.code,
            _ => &header.code,
        }
    }

    /// The names that it brings; with the file of the program that was recorded, fields and elements of
    /// them are known as well. A machine's are those of the kernel's file, if one is given.
    ///
    /// Fails if the file is of another program, kernel or build.
    pub fn names(&self, program: Option<&Path>) -> Result<Names, Failure> {
        let header = self.reader.header();
        let (names, build) = match self.processes().get(usize::from(self.process)) {
            Some(process) if self.process != header.main => (&process.names, &process.build),
            _ => (&header.names, &header.build),
        };
        let range = |name: &Name| NamedRange {
            name: name.name.clone(),
            start: name.start,
            length: name.length,
        };
        let all = Names::new(names.iter().map(range).collect());
        let Some(program) = program else { return Ok(all) };
        if header.is_machine {
            return all.with_kernel(program).map_err(|error| Failure::bad(&error));
        }
        let objects = names.iter().filter(|name| name.kind == NameKind::Object).map(range);
        all.with_program(objects, build.as_ref(), program).map_err(|error| Failure::bad(&error))
    }
}

/// The bytes of a recorded write.
///
/// # Panics
/// If the reader let a write pass that its format forbids.
pub fn bytes_of(write: &Write) -> ByteRange {
    ByteRange::new(Gpa::new(write.address), u64::from(write.size))
        .expect("the reader checks every write")
}

//! The header: what was recorded, and the names.

use std::io::Read;

use crate::build_id::BuildId;
use crate::code::{Code, Room};
use crate::error::TraceError;
use crate::frame::{
    Counted, KNOWN_BUILD, MAGIC, NAMED_CODE, ONE_PROCESS, SEVERAL_PROCESSES, VERSION,
};
use crate::names::{MAX_NAMES, Name, NameKind, Names};
use crate::varint;

/// The most words a recorded command line has.
pub const MAX_ARGUMENTS: usize = 4096;
/// The most bytes all words of a recorded command line have together.
pub const MAX_COMMAND_BYTES: usize = 1 << 17;
/// The most processes of a trace.
pub const MAX_PROCESSES: usize = 1024;
/// The most bytes (UTF-8) of the command line of one of several processes.
pub const MAX_PROCESS_BYTES: usize = 1024;
/// The most bytes of a header's content: full tables of the longest names and texts, the command, the
/// processes and the instructions.
const MAX_CONTENT: u32 = 40 << 20;

/// What a trace says about itself before the first write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Program and arguments that were recorded; empty where not known. Not trusted: escape it
    /// before it goes to a terminal.
    pub command: Vec<String>,
    /// Named ranges; of several processes, those of the main one.
    pub names: Names,
    /// Functions and source lines of the storing instructions; of several processes, those of the main
    /// one.
    pub code: Code,
    /// Which build was recorded, if it has a number; of several processes, that of the main one.
    pub build: Option<BuildId>,
    /// The processes whose writes the trace holds, at most [`MAX_PROCESSES`], in the order in which
    /// they began. Empty for a trace of one process.
    pub processes: Vec<Process>,
    /// Place of the main one among them: the program that was to be recorded, or what it became by
    /// its last exec. 0 in a trace of one process.
    pub main: u16,
    /// Whether a whole machine was recorded, by physical addresses, and not a program.
    pub is_machine: bool,
}

/// One of several processes of a trace: a program from its start, or its exec or fork, to its end or
/// next exec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Number that the system gave it.
    pub pid: u32,
    /// Place of the process that started it, or that it was before an exec.
    pub parent: Option<u16>,
    /// Its command line; longer ones than [`MAX_PROCESS_BYTES`] are cut. Not trusted.
    pub command: String,
    /// Named ranges. Those of the main process stand in [`Header::names`] and not here.
    pub names: Names,
    /// Functions and source lines. Those of the main process stand in [`Header::code`] and not here.
    pub code: Code,
    /// Which build it is of. That of the main process stands in [`Header::build`] and not here.
    pub build: Option<BuildId>,
}

impl Header {
    /// The whole header with magic, version, length and checksum.
    ///
    /// A command that is too long is cut, at a word if there are several.
    ///
    /// # Panics
    /// If the processes are more than [`MAX_PROCESSES`], all names together more than [`MAX_NAMES`], or
    /// all instructions or texts more than fit, if `main` is none of the processes or has names, code or a
    /// build among them, or if a parent does not stand before its child.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut content = Vec::new();
        let mut left = MAX_COMMAND_BYTES;
        let words: Vec<&str> = self
            .command
            .iter()
            .take(MAX_ARGUMENTS)
            .map_while(|word| {
                left = left.checked_sub(word.len())?;
                Some(word.as_str())
            })
            .collect();
        varint::put(&mut content, words.len() as u64);
        for word in words {
            put_text(&mut content, word);
        }
        put_names(&mut content, &self.names);
        let has_code = |process: &Process| !process.code.is_empty();
        let has_build = |process: &Process| process.build.is_some();
        let version = if self.is_machine {
            VERSION
        } else if self.build.is_some() || self.processes.iter().any(has_build) {
            KNOWN_BUILD
        } else if !self.code.is_empty() || self.processes.iter().any(has_code) {
            NAMED_CODE
        } else if self.processes.is_empty() {
            ONE_PROCESS
        } else {
            SEVERAL_PROCESSES
        };
        self.check_processes();
        if version >= SEVERAL_PROCESSES {
            varint::put(&mut content, self.processes.len() as u64);
            varint::put(&mut content, self.main.into());
            for process in &self.processes {
                varint::put(&mut content, process.pid.into());
                varint::put(&mut content, process.parent.map_or(0, |parent| u64::from(parent) + 1));
                let command = &process.command;
                let most = command.len().min(MAX_PROCESS_BYTES);
                let end = (0..=most).rev().find(|end| command.is_char_boundary(*end));
                put_text(&mut content, &command[..end.unwrap_or_default()]);
                put_names(&mut content, &process.names);
            }
        }
        if version >= NAMED_CODE {
            self.code.put(&mut content);
            self.processes.iter().for_each(|process| process.code.put(&mut content));
        }
        if version >= KNOWN_BUILD {
            let builds = self.processes.iter().map(|process| process.build.as_ref());
            for build in std::iter::once(self.build.as_ref()).chain(builds) {
                BuildId::put(build, &mut content);
            }
        }
        if version >= VERSION {
            varint::put(&mut content, self.is_machine.into());
        }
        let length = u32::try_from(content.len()).ok().filter(|&length| length <= MAX_CONTENT);
        let length = length.unwrap_or_else(|| unreachable!("names and command are bounded"));
        let mut bytes = MAGIC.to_vec();
        bytes.extend(version.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(content);
        let checksum = crc32fast::hash(&bytes);
        bytes.extend(checksum.to_le_bytes());
        bytes
    }

    /// The rules that a reader checks, and that the types do not.
    fn check_processes(&self) {
        let (processes, main) = (&self.processes, usize::from(self.main));
        assert!(processes.len() <= MAX_PROCESSES, "there are too many processes");
        assert!(main < processes.len().max(1), "the main process is not there");
        let names =
            processes.iter().fold(self.names.len(), |sum, process| sum + process.names.len());
        assert!(names <= MAX_NAMES, "there are too many names");
        let mut code = std::iter::once(&self.code).chain(processes.iter().map(|it| &it.code));
        let room = code.try_fold(Room::ALL, Room::after);
        assert!(room.is_some(), "there are too many instructions or texts");
        for (index, process) in processes.iter().enumerate() {
            let earlier = process.parent.is_none_or(|parent| usize::from(parent) < index);
            assert!(earlier, "the parent of process {index} does not stand before it");
            let has_none =
                process.names.is_empty() && process.code.is_empty() && process.build.is_none();
            let elsewhere = index != main || has_none;
            assert!(elsewhere, "what the main process has stands in the header");
        }
    }

    /// Reads what [`Self::encode`] wrote.
    pub(crate) fn read<R: Read>(input: &mut Counted<R>) -> Result<Self, TraceError> {
        let mut magic = [0; 8];
        if input.fill(&mut magic)? < 8 || magic != MAGIC {
            return Err(TraceError::NotATrace);
        }
        let cut = |offset| TraceError::Truncated { block: 0, offset, writes: 0 };
        let mut word = [0; 4];
        let mut bytes = MAGIC.to_vec();
        if input.fill(&mut word)? < 4 {
            return Err(cut(input.offset));
        }
        let version = u32::from_le_bytes(word);
        if !(ONE_PROCESS..=VERSION).contains(&version) {
            return Err(TraceError::Version { found: version, known: VERSION });
        }
        bytes.extend(word);
        if input.fill(&mut word)? < 4 {
            return Err(cut(input.offset));
        }
        let length = u32::from_le_bytes(word);
        if length > MAX_CONTENT {
            return Err(TraceError::Header { what: "it is longer than 40 MiB" });
        }
        bytes.extend(word);
        if input.append(&mut bytes, u64::from(length))? < u64::from(length)
            || input.fill(&mut word)? < 4
        {
            return Err(cut(input.offset));
        }
        if crc32fast::hash(&bytes) != u32::from_le_bytes(word) {
            return Err(TraceError::Header { what: "its checksum does not match" });
        }
        decode(&bytes[16..], version).map_err(|what| TraceError::Header { what })
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    varint::put(out, text.len() as u64);
    out.extend(text.as_bytes());
}

pub(crate) fn take_text<'a>(content: &mut &'a [u8]) -> Result<&'a str, &'static str> {
    let length = varint::take(content).ok_or("a text is cut off")?;
    let length = usize::try_from(length).ok().filter(|&length| length <= content.len());
    let (text, rest) = content.split_at(length.ok_or("a text is cut off")?);
    *content = rest;
    std::str::from_utf8(text).map_err(|_| "a text is not UTF-8")
}

fn put_names(out: &mut Vec<u8>, names: &Names) {
    varint::put(out, names.len() as u64);
    for name in names {
        put_text(out, &name.name);
        out.push(name.kind.code());
        varint::put(out, name.start);
        varint::put(out, name.length);
    }
}

/// Names, of which `room` are still to come at most.
fn take_names(content: &mut &[u8], room: &mut usize) -> Result<Names, &'static str> {
    let count = varint::take(content).ok_or("the names are cut off")?;
    *room = usize::try_from(count)
        .ok()
        .and_then(|count| room.checked_sub(count))
        .ok_or("there are more than 65,536 names")?;
    let mut names = Vec::new();
    for _ in 0..count {
        let name = take_text(content)?.to_owned();
        let (&kind, rest) = content.split_first().ok_or("a name is cut off")?;
        *content = rest;
        let kind = NameKind::from_code(kind).ok_or("a name is of an unknown kind")?;
        let start = varint::take(content).ok_or("a name is cut off")?;
        let length = varint::take(content).ok_or("a name is cut off")?;
        let name = Name { name, start, length, kind };
        if !name.is_valid() {
            return Err("a name breaks its limits");
        }
        names.push(name);
    }
    Ok(Names::new(names))
}

fn take_processes(
    content: &mut &[u8],
    room: &mut usize,
    version: u32,
) -> Result<(Vec<Process>, u16), &'static str> {
    let mut number = |most: usize| {
        let number = varint::take(content).ok_or("a process is cut off")?;
        usize::try_from(number).ok().filter(|&n| n <= most).ok_or("a process breaks its limits")
    };
    let count = number(MAX_PROCESSES)?;
    // Only a trace that names its code has this part, and processes, without need.
    if count == 0 && version == SEVERAL_PROCESSES {
        return Err("there is no process");
    }
    let main = number(count.saturating_sub(1))?;
    let mut processes = Vec::new();
    for index in 0..count {
        let mut number = |most: u64| {
            let number = varint::take(content).ok_or("a process is cut off")?;
            u32::try_from(number)
                .ok()
                .filter(|&n| u64::from(n) <= most)
                .ok_or("a process breaks its limits")
        };
        let pid = number(u32::MAX.into())?;
        // Only an earlier one can have started it.
        let parent = number(index as u64)?;
        let command = take_text(content)?;
        if command.len() > MAX_PROCESS_BYTES {
            return Err("a process breaks its limits");
        }
        let names = take_names(content, room)?;
        if index == main && !names.is_empty() {
            return Err("the names of the main process stand with it");
        }
        processes.push(Process {
            pid,
            parent: parent.checked_sub(1).and_then(|parent| u16::try_from(parent).ok()),
            command: command.to_owned(),
            names,
            code: Code::default(),
            build: None,
        });
    }
    let main = u16::try_from(main).unwrap_or_else(|_| unreachable!("there are few processes"));
    Ok((processes, main))
}

fn decode(mut content: &[u8], version: u32) -> Result<Header, &'static str> {
    let content = &mut content;
    let count = varint::take(content).ok_or("the command is cut off")?;
    if count > MAX_ARGUMENTS as u64 {
        return Err("the command has more than 4,096 words");
    }
    let mut command = Vec::new();
    let mut bytes = 0;
    for _ in 0..count {
        let word = take_text(content)?;
        bytes += word.len();
        if bytes > MAX_COMMAND_BYTES {
            return Err("the command is longer than 128 KiB");
        }
        command.push(word.to_owned());
    }
    let mut room = MAX_NAMES;
    let names = take_names(content, &mut room)?;
    let (mut processes, main) = match version {
        ONE_PROCESS => (Vec::new(), 0),
        _ => take_processes(content, &mut room, version)?,
    };
    let mut code = Code::default();
    if version >= NAMED_CODE {
        let mut room = Room::ALL;
        code = Code::take(content, &mut room)?;
        for (index, process) in processes.iter_mut().enumerate() {
            process.code = Code::take(content, &mut room)?;
            if index == usize::from(main) && !process.code.is_empty() {
                return Err("the code of the main process stands with it");
            }
        }
    }
    let mut build = None;
    if version >= KNOWN_BUILD {
        build = BuildId::take(content)?;
        for (index, process) in processes.iter_mut().enumerate() {
            process.build = BuildId::take(content)?;
            if index == usize::from(main) && process.build.is_some() {
                return Err("the build of the main process stands with it");
            }
        }
    }
    let is_machine = version >= VERSION
        && match varint::take(content).ok_or("what was recorded is cut off")? {
            0 => false,
            1 => true,
            _ => return Err("what was recorded is neither a program nor a machine"),
        };
    if !content.is_empty() {
        return Err("bytes follow the end of the header");
    }
    Ok(Header { command, names, code, build, processes, main, is_machine })
}

#[cfg(test)]
mod tests;

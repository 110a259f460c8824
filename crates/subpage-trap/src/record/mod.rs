//! An event as programs keep, show and send it.

mod armed;
mod json;
#[cfg(feature = "schema")]
mod schema;
mod time;

use std::borrow::ToOwned;
use std::string::{String, ToString};
use std::vec::Vec;

pub use self::time::Timestamp;
pub use armed::Armed;
pub use json::VERSION;

use crate::{Address, Event};

/// An event with its number, and with what a program knows about it besides: names.
///
/// As JSON it is the object that `docs/events.md` describes; [`line`](Self::line) adds the fields `v`
/// and `type`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Number of this event, from 1, without gaps.
    pub seq: u64,
    /// Number of the write in the run, from 1; where only trapped writes are known, among those.
    pub write: u64,
    /// Name of the rule that decided; `None` if an access map did.
    pub rule_name: Option<String>,
    /// The function that holds the writing instruction, if known.
    pub function: Option<Function>,
    /// The line of the source that the writing instruction comes from, if known.
    pub source: Option<SourceLine>,
    /// The calls above the writing instruction, the nearest first, as far as they are certain. The
    /// function that wrote is not among them.
    pub call_trace: Vec<Function>,
    /// The process that wrote, where several were recorded.
    pub process: Option<Process>,
    /// The task of the guest's kernel that wrote, if known.
    pub task: Option<Task>,
    /// The instruction in words, Intel syntax, if it was found.
    pub text: Option<String>,
    /// What happened.
    pub event: Event<Vec<u8>>,
}

/// A place in a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// How many bytes behind its first one.
    pub offset: u64,
}

impl core::fmt::Display for Function {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}+{:#x}", self.name, self.offset)
    }
}

impl core::str::FromStr for Function {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, offset) = text.rsplit_once("+0x").ok_or(())?;
        let digits = Some(offset).filter(|digits| digits.bytes().all(|it| it.is_ascii_hexdigit()));
        let offset = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()).ok_or(())?;
        Ok(Self { name: name.to_owned(), offset })
    }
}

/// A line of a program's source.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SourceLine {
    /// Path of the file as the debug information has it. Not trusted.
    pub file: String,
    /// Number of the line, from 1.
    pub line: u32,
}

impl core::fmt::Display for SourceLine {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

impl core::str::FromStr for SourceLine {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (file, line) = text.rsplit_once(':').ok_or(())?;
        let line = Some(line).filter(|line| line.bytes().all(|byte| byte.is_ascii_digit()));
        let line = line.and_then(|line| line.parse().ok()).ok_or(())?;
        Ok(Self { file: file.to_owned(), line })
    }
}

/// One of several recorded processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number in the trace, from 0.
    pub number: u16,
    /// File name of its program. Not trusted.
    pub name: String,
}

impl core::fmt::Display for Process {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} {}", self.number, self.name)
    }
}

/// A task of a Linux kernel, as the kernel's own memory has it. Not trusted: a guest can forge it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Number of its process, in the first namespace: what `getpid` gives (the kernel's `tgid`).
    pub pid: u32,
    /// Its own number, in the first namespace: what `gettid` gives (the kernel's `pid`).
    pub tid: u32,
    /// Its name, at most 15 bytes (the kernel's `comm`).
    pub name: String,
    /// The user whose rights it has, in the first namespace.
    pub uid: Option<u32>,
}

impl core::fmt::Display for Task {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} {}", self.pid, self.name)?;
        match self.uid {
            Some(uid) => write!(f, " uid {uid}"),
            None => Ok(()),
        }
    }
}

impl Record {
    /// An event and its numbers; nothing else is known.
    pub fn new(seq: u64, write: u64, event: Event<Vec<u8>>) -> Self {
        Self {
            seq,
            write,
            rule_name: None,
            function: None,
            source: None,
            call_trace: Vec::new(),
            process: None,
            task: None,
            text: None,
            event,
        }
    }

    /// The rule's name for people; what stands in its place for an access map.
    pub fn rule_or_map(&self) -> &str {
        self.rule_name.as_deref().unwrap_or("(access map)")
    }

    /// The address of the instruction for people, behind a `~` if it was found by decoding backwards.
    pub fn pc_text(&self) -> Option<String> {
        let origin = self.event.origin;
        let near = if origin.rip_exact { "" } else { "~" };
        origin.rip.map(|rip| near.to_string() + &Address(rip).to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::ToOwned;

    use subpage::address::{ByteRange, Gpa};
    use subpage::rules::Action;

    use super::*;
    use crate::Verdict;

    #[test]
    fn in_words() {
        let written = ByteRange::new(Gpa::new(0x1000), 8).expect("memory");
        let event = Event::bare(Verdict::Denied, Action::Deny, written);
        let mut record = Record::new(1, 1, event);
        assert_eq!((record.rule_or_map(), record.pc_text()), ("(access map)", None));
        record.rule_name = Some("helper path".to_owned());
        record.event.origin.rip = Some(0x40_1234);
        assert_eq!(record.rule_or_map(), "helper path");
        assert_eq!(record.pc_text().as_deref(), Some("0x401234"));
        record.event.origin.rip_exact = false;
        assert_eq!(record.pc_text().as_deref(), Some("~0x401234"));
        let function = Function { name: "setup".to_owned(), offset: 18 };
        assert_eq!(function.to_string(), "setup+0x12");
        let odd = Function { name: "a+0x1::b".to_owned(), offset: 0 };
        assert_eq!((odd.to_string().parse(), "setup+0x12".parse()), (Ok(odd), Ok(function)));
        for wrong in ["", "setup", "setup+12", "setup+0x", "setup+0x+1", "a+0x10000000000000000"] {
            assert!(wrong.parse::<Function>().is_err(), "{wrong}");
        }
        let mut task = Task { pid: 7, tid: 8, name: "sh".to_owned(), uid: Some(1000) };
        assert_eq!(task.to_string(), "7 sh uid 1000");
        task.uid = None;
        assert_eq!(task.to_string(), "7 sh");
        let source = SourceLine { file: "a:b/fork.c".to_owned(), line: 7 };
        assert_eq!(source.to_string(), "a:b/fork.c:7");
        assert_eq!("a:b/fork.c:7".parse(), Ok(source));
        for wrong in ["", "fork.c", "fork.c:", "fork.c:-1", "fork.c:+1", "fork.c:4294967296"] {
            assert!(wrong.parse::<SourceLine>().is_err(), "{wrong}");
        }
    }
}

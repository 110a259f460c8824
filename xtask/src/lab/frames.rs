//! What a host says on its second serial line: a command's output, framed by lines of its own.
//!
//! A frame carries a number that nobody in a guest can know, so that no output passes for one.

use std::{fs::File, io::Read as _};

use anyhow::{Context as _, Result};

use crate::cache::hexadecimal;

/// What marks the lines of one start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark(String);

/// A line as it was meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// The host is up, the command begins.
    Ready,
    /// The host does not get on: what failed.
    Failed(&'a str),
    /// A part of the job begins.
    Begins(&'a str),
    /// The part has ended.
    Ended { status: u8 },
    /// A test of the part begins.
    Starts(&'a str),
    /// It has ended, by the host's clock after so many seconds; what it printed stands before this.
    Result { status: u8, seconds: u64, test: &'a str },
    /// The job is over.
    Over { status: u8 },
    /// Part of what the command prints.
    Output(&'a str),
    /// No line, for another while.
    Silence,
}

impl Mark {
    pub(crate) fn random() -> Result<Self> {
        let mut bytes = [0; 16];
        File::open("/dev/urandom")
            .and_then(|mut file| file.read_exact(&mut bytes))
            .context("cannot read a random number")?;
        Ok(Self(format!("lab-{}", hexadecimal(&bytes))))
    }

    /// The word in front of each frame.
    pub(crate) fn word(&self) -> &str {
        &self.0
    }

    pub(crate) fn read<'a>(&self, line: &'a str) -> Line<'a> {
        self.frame(line).unwrap_or(Line::Output(line))
    }

    fn frame<'a>(&self, line: &'a str) -> Option<Line<'a>> {
        let rest = line.trim_end_matches('\r').strip_prefix(self.word())?.strip_prefix(' ')?;
        let (word, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        Some(match word {
            "ready" => Line::Ready,
            "failed" => Line::Failed(rest),
            "begins" => Line::Begins(rest),
            "ended" => Line::Ended { status: rest.parse().ok()? },
            "over" => Line::Over { status: rest.parse().ok()? },
            "starts" => Line::Starts(rest),
            "result" => {
                let mut words = rest.splitn(3, ' ');
                let (status, seconds) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
                Line::Result { status, seconds, test: words.next()? }
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_told_from_output() {
        let mark = Mark("lab-17".into());
        assert_eq!(mark.read("lab-17 ready"), Line::Ready);
        assert_eq!(mark.read("lab-17 failed kvm-amd\r"), Line::Failed("kvm-amd"));
        assert_eq!(mark.read("lab-17 begins kvm test"), Line::Begins("kvm test"));
        assert_eq!(mark.read("lab-17 ended 101"), Line::Ended { status: 101 });
        assert_eq!(mark.read("lab-17 over 0"), Line::Over { status: 0 });
        assert_eq!(mark.read("lab-17 starts a::b"), Line::Starts("a::b"));
        let result = Line::Result { status: 137, seconds: 12, test: "a::b" };
        assert_eq!(mark.read("lab-17 result 137 12 a::b"), result);
        for line in [
            "lab-18 over 0",
            "lab-17over 0",
            " lab-17 over 0",
            "lab-17 over 256",
            "lab-17 over",
            "lab-17 result 0 a::b",
            "lab-17 result 0 1",
            "lab-17 else",
            "",
        ] {
            assert_eq!(mark.read(line), Line::Output(line), "{line}");
        }
    }

    #[test]
    fn no_two_marks_are_the_same() {
        let mark = || Mark::random().expect("there are random numbers");
        assert_ne!(mark(), mark());
    }
}

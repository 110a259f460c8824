//! One run of `cargo xtask test`: where it writes, how long a part may take, whether to stop.

use std::{
    fmt::Write as _,
    io::{self, Write},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::execute::{self, Ending, Finished, Limits};

/// The status of a program that the user has stopped.
pub(crate) const INTERRUPTED: u8 = 130;

/// Raised by the signals that ask a program to stop.
///
/// Commands run in process groups of their own, out of reach of the terminal's Ctrl-C: whoever
/// runs one looks here and ends it.
#[derive(Clone, Default)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    pub(crate) fn install() -> io::Result<Self> {
        let interrupt = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&interrupt.0))?;
        }
        Ok(interrupt)
    }

    pub(crate) fn raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

pub(crate) struct Session<'a> {
    out: &'a mut dyn Write,
    interrupt: Interrupt,
    limit: Duration,
    deadline: Instant,
}

impl<'a> Session<'a> {
    /// `limit` is the time that each part may take.
    pub(crate) fn new(out: &'a mut dyn Write, interrupt: Interrupt, limit: Duration) -> Self {
        Self { out, interrupt, limit, deadline: Instant::now() + limit }
    }

    /// Prints a heading and gives the part below it the full time.
    pub(crate) fn begin(&mut self, heading: &str) -> io::Result<Instant> {
        let now = Instant::now();
        self.deadline = now + self.limit;
        writeln!(self.out, "== {heading}")?;
        self.out.flush()?;
        Ok(now)
    }

    pub(crate) fn say(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.out, "{line}")?;
        self.out.flush()
    }

    pub(crate) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// When the part that runs now has to be over.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(crate) fn interrupted(&self) -> bool {
        self.interrupt.raised()
    }

    /// Shows the command, runs it within what is left of the time, and says so if it had to be
    /// ended. `progress` may turn a line of output into one to print at once.
    ///
    /// Once interrupted, it starts nothing more.
    pub(crate) fn run(
        &mut self,
        command: Command,
        progress: &mut dyn FnMut(&str) -> Option<String>,
    ) -> Result<Finished> {
        if !self.interrupted() {
            self.say(&format!("   $ {}", shown(&command)))?;
        }
        self.run_unshown(command, progress)
    }

    /// Like [`Session::run`], for one of many commands of which none is worth a line.
    pub(crate) fn run_unshown(
        &mut self,
        command: Command,
        progress: &mut dyn FnMut(&str) -> Option<String>,
    ) -> Result<Finished> {
        if self.interrupted() {
            return Ok(Finished { output: String::new(), ending: Ending::Interrupted });
        }
        let interrupted = || self.interrupt.raised();
        let limits = Limits::new(self.deadline, &interrupted);
        let mut printed = Ok(());
        let finished = execute::run(command, &limits, &mut |line| {
            if let Some(line) = progress(line) {
                // A closed standard output is reported once the command has ended.
                let result = writeln!(self.out, "   {line}").and_then(|()| self.out.flush());
                printed = std::mem::replace(&mut printed, Ok(())).and(result);
            }
        })?;
        printed?;
        match finished.ending {
            Ending::Exited(_) => {}
            Ending::TimeLimit => self.say(&format!(
                "   time limit reached: killed, it did not end within {} (see --limit)",
                duration(self.limit)
            ))?,
            Ending::Runaway => self.say("   killed: it printed without end")?,
            Ending::LeftBehind => {
                self.say("   it left a process behind that kept its output open; killed")?;
            }
            Ending::Interrupted => self.say("   interrupted: killed")?,
        }
        Ok(finished)
    }

    /// Shows output whole, set off from our own lines; not to one who has turned away.
    pub(crate) fn show(&mut self, output: &str) -> io::Result<()> {
        if self.interrupted() {
            return Ok(());
        }
        for line in output.lines() {
            writeln!(self.out, "   | {line}")?;
        }
        self.out.flush()
    }
}

/// The command as one would type it, with the variables that are set for it.
fn shown(command: &Command) -> String {
    let mut line = String::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value
            && !QUIET_VARIABLES.iter().any(|quiet| name == *quiet)
        {
            write!(line, "{}={} ", name.display(), quoted(&value.to_string_lossy()))
                .expect("writing to a string cannot fail");
        }
    }
    let program = std::path::Path::new(command.get_program());
    line += &program.file_name().unwrap_or(command.get_program()).to_string_lossy();
    for argument in command.get_args() {
        line.push(' ');
        line += &quoted(&argument.to_string_lossy());
    }
    line
}

/// Set for every cargo command, of no interest to one who repeats it.
const QUIET_VARIABLES: [&str; 3] = ["CARGO_TERM_COLOR", "CARGO_TERM_QUIET", "CARGO_TERM_VERBOSE"];

fn quoted(word: &str) -> String {
    let plain = |character: char| character.is_alphanumeric() || "-_=./:,+@".contains(character);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// A duration for people: `3.4 s`, `2 min 05 s`.
pub(crate) fn duration(duration: Duration) -> String {
    if duration < Duration::from_secs(60) {
        format!("{:.1} s", duration.as_secs_f64())
    } else {
        format!("{} min {:02} s", duration.as_secs() / 60, duration.as_secs() % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_typed() {
        let mut command = Command::new("/opt/bin/cargo");
        command.args(["test", "--", "a b", "it's"]);
        command.env("RUSTFLAGS", "--cfg loom").env("CARGO_TERM_COLOR", "never").env_remove("HOME");
        assert_eq!(shown(&command), "RUSTFLAGS='--cfg loom' cargo test -- 'a b' 'it'\\''s'");
    }

    #[test]
    fn durations_are_readable() {
        assert_eq!(duration(Duration::from_millis(3440)), "3.4 s");
        assert_eq!(duration(Duration::from_secs(125)), "2 min 05 s");
    }

    #[test]
    fn an_interrupt_starts_nothing_more() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let interrupt = Interrupt::default();
        interrupt.0.store(true, Ordering::Relaxed);
        let mut out = Vec::new();
        let mut session = Session::new(&mut out, interrupt, Duration::from_secs(300));
        let mut command = Command::new("touch");
        command.arg(directory.path().join("started"));
        let finished = session.run(command, &mut |_| None).expect("nothing to go wrong");
        session.show("nobody looks").expect("a vector can be written");
        assert_eq!(finished.ending, Ending::Interrupted);
        assert!(!directory.path().join("started").exists());
        assert!(out.is_empty());
    }

    #[test]
    fn a_time_limit_is_said() {
        let mut out = Vec::new();
        let mut session = Session::new(&mut out, Interrupt::default(), Duration::ZERO);
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 100000"]);
        let finished = session.run(command, &mut |_| None).expect("sh runs");
        assert_eq!(finished.ending, Ending::TimeLimit);
        let text = String::from_utf8(out).expect("our text is UTF-8");
        assert!(text.contains("time limit reached: killed, it did not end within 0.0 s"), "{text}");
    }
}

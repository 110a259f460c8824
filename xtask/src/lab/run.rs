//! One run of a host: started, watched, and ended from here.

use std::{
    cell::RefCell,
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::frames::{Line, Mark};
use crate::{
    execute::{self, Ending, Limits},
    session::Interrupt,
};

/// Name of the file with what the host's kernel says, in the directory of a run.
pub(crate) const CONSOLE: &str = "console";

/// A host comes up in five to thirty seconds on an idle machine.
const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// How often the console is read.
const CONSOLE_INTERVAL: Duration = Duration::from_millis(500);

/// What the kernel says when it does not get on.
const LAST_WORDS: [&str; 2] = ["Kernel panic - not syncing", "Oops: "];

/// How many lines of the console are of interest.
const CONSOLE_LINES: usize = 15;

/// How a run came to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum JobEnd {
    /// The job is over, with this status.
    Over(u8),
    /// It did not come to that, for this reason.
    Failed(String),
    Interrupted,
}

/// A run that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) outcome: JobEnd,
    /// The end of what the kernel said.
    pub(crate) console: Vec<String>,
}

/// How long a host may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For all of it.
    pub(crate) whole: Duration,
    /// Without a line of output, once it is up.
    pub(crate) silence: Duration,
    /// How often [`Line::Silence`] comes while there is no other line.
    pub(crate) heartbeat: Duration,
}

/// What is known of a run that is under way.
struct Watch<'a> {
    mark: &'a Mark,
    patience: Patience,
    console: Console,
    ready: bool,
    /// Of the last output, and before that of the start.
    heard: Instant,
    /// How often silence has been told since then.
    beats: u32,
    outcome: Option<JobEnd>,
}

impl Watch<'_> {
    /// A line of the job; none if it comes from the emulator itself.
    fn line<'a>(&mut self, line: &'a str) -> Option<Line<'a>> {
        let line = self.mark.read(line);
        if !self.ready && matches!(line, Line::Output(_)) {
            return None;
        }
        (self.heard, self.beats) = (Instant::now(), 0);
        match line {
            Line::Ready => self.ready = true,
            Line::Failed(what) => self.end(JobEnd::Failed(failed(what))),
            Line::Over { status } => self.end(JobEnd::Over(status)),
            _ => {}
        }
        Some(line)
    }

    fn end(&mut self, outcome: JobEnd) {
        self.outcome.get_or_insert(outcome);
    }

    /// Whether it is time to tell of the silence.
    fn beat(&mut self) -> bool {
        let due = self.ready && self.heard.elapsed() > self.patience.heartbeat * (self.beats + 1);
        self.beats += u32::from(due);
        due
    }

    /// Whether there is nothing more to wait for.
    fn over(&mut self, interrupt: &Interrupt) -> bool {
        if interrupt.raised() {
            self.end(JobEnd::Interrupted);
        }
        if let Some(words) = self.console.look() {
            self.end(JobEnd::Failed(format!("the host's kernel has ended: {words}")));
        }
        let silent = self.heard.elapsed();
        if !self.ready && silent > BOOT_LIMIT {
            self.end(JobEnd::Failed("the host did not come up".into()));
        }
        if self.ready && silent > self.patience.silence {
            let seconds = self.patience.silence.as_secs();
            self.end(JobEnd::Failed(format!("nothing was heard for {seconds} s: it hangs")));
        }
        self.outcome.is_some()
    }
}

/// What a part that a host cannot do without means for whoever reads of it.
fn failed(what: &str) -> String {
    match what {
        "/dev/kvm" => "the modules of KVM were loaded, but there is no /dev/kvm in the host".into(),
        module => format!("the host's kernel does not load the module {module}"),
    }
}

/// Runs the emulator's `command` in `directory` until its job is over, and ends it then. `on_line`
/// sees each line as it comes.
pub(crate) fn run(
    command: Command,
    directory: &Path,
    mark: &Mark,
    patience: Patience,
    interrupt: &Interrupt,
    on_line: &mut dyn FnMut(Line<'_>),
) -> Result<Finished> {
    let start = Instant::now();
    let console = directory.join(CONSOLE);
    let watch = RefCell::new(Watch {
        mark,
        patience,
        console: Console { path: console.clone(), read: 0, looked: start, rest: String::new() },
        ready: false,
        heard: start,
        beats: 0,
        outcome: None,
    });
    let on_line = RefCell::new(on_line);
    // The two closures take turns: each is done with both before the other one is called.
    let over = || {
        let beat = watch.borrow_mut().beat();
        if beat {
            (on_line.borrow_mut())(Line::Silence);
        }
        watch.borrow_mut().over(interrupt)
    };
    let limits = Limits::new(start + patience.whole, &over);
    // An empty line stands in front of the frame at the end, in case the output ends within a line.
    let mut held = false;
    let finished = execute::run(command, &limits, &mut |text| {
        let Some(line) = watch.borrow_mut().line(text) else { return };
        let on_line = &mut on_line.borrow_mut();
        if held && !matches!(line, Line::Over { .. } | Line::Ended { .. } | Line::Result { .. }) {
            on_line(Line::Output(""));
        }
        held = line == Line::Output("");
        if !held {
            on_line(line);
        }
    })?;
    let mut watch = watch.into_inner();
    // The last words may have come after the last look.
    watch.console.looked = start;
    let words = watch.console.look_again();
    let outcome = watch.outcome.unwrap_or_else(|| {
        JobEnd::Failed(match (finished.ending, words) {
            (_, Some(words)) => format!("the host's kernel has ended: {words}"),
            (Ending::TimeLimit, None) => {
                format!("it did not end within {} s", patience.whole.as_secs())
            }
            (Ending::Runaway, None) => "it prints without end".into(),
            (Ending::LeftBehind, None) => "the emulator left a process behind".into(),
            (Ending::Interrupted | Ending::Exited(_), None) => {
                let said = finished.output.lines().last().unwrap_or("nothing").trim();
                format!("the emulator has ended before its job; the last that it said: {said}")
            }
        })
    });
    Ok(Finished { outcome, console: last_lines(&console) })
}

/// The file that a serial line is written to.
struct Console {
    path: PathBuf,
    /// Bytes that were looked at.
    read: u64,
    looked: Instant,
    /// The last line, if it was not whole.
    rest: String,
}

impl Console {
    /// The kernel's last words, if it has said them by now.
    fn look(&mut self) -> Option<String> {
        if self.looked.elapsed() < CONSOLE_INTERVAL {
            return None;
        }
        self.look_again()
    }

    fn look_again(&mut self) -> Option<String> {
        self.looked = Instant::now();
        let mut file = File::open(&self.path).ok()?;
        file.seek(SeekFrom::Start(self.read)).ok()?;
        let mut bytes = Vec::new();
        self.read += file.read_to_end(&mut bytes).ok()? as u64;
        self.rest += &String::from_utf8_lossy(&bytes);
        let found = last_words(&self.rest);
        let whole = self.rest.rfind('\n').map_or(0, |end| end + 1);
        self.rest.drain(..whole);
        found
    }
}

/// The first line that says that the kernel does not get on.
fn last_words(text: &str) -> Option<String> {
    let line = text.lines().find(|line| LAST_WORDS.iter().any(|words| line.contains(words)))?;
    Some(line.trim().to_owned())
}

fn last_lines(path: &Path) -> Vec<String> {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().map(|line| line.trim_end().to_owned()).collect();
    lines[lines.len().saturating_sub(CONSOLE_LINES)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_script(script: &str, patience: Patience) -> (JobEnd, Vec<String>) {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let mark = Mark::random().expect("random numbers");
        let mut command = Command::new("sh");
        command.args(["-c", &script.replace("MARK", mark.word())]).current_dir(directory.path());
        let mut lines = Vec::new();
        let interrupt = Interrupt::default();
        let finished = run(command, directory.path(), &mark, patience, &interrupt, &mut |line| {
            if let Line::Output(text) = line {
                lines.push(text.to_owned());
            }
        });
        (finished.expect("sh runs").outcome, lines)
    }

    const LONG: Patience = Patience {
        whole: Duration::from_secs(300),
        silence: Duration::from_secs(300),
        heartbeat: Duration::from_secs(300),
    };

    fn reason(outcome: JobEnd) -> String {
        match outcome {
            JobEnd::Failed(reason) => reason,
            other => panic!("{other:?} is no failure"),
        }
    }

    #[test]
    fn a_job_ends_with_its_status_and_the_emulator_with_it() {
        let script =
            "echo MARK ready; echo a; echo; printf b; printf '\\nMARK over 7\\n'; sleep 99999";
        assert_eq!(
            run_script(script, LONG),
            (JobEnd::Over(7), vec!["a".into(), String::new(), "b".into()])
        );
    }

    #[test]
    fn an_end_that_another_has_written_is_output() {
        let script = "echo MARK ready; echo lab-00 over 0; printf 'x\\nMARK over 3\\n'";
        let (outcome, lines) = run_script(script, LONG);
        assert_eq!(outcome, JobEnd::Over(3));
        assert_eq!(lines, ["lab-00 over 0", "x"]);
    }

    #[test]
    fn a_module_that_does_not_load_is_named() {
        let (outcome, _) = run_script("echo MARK failed kvm-amd; sleep 99999", LONG);
        assert!(reason(outcome).contains("does not load the module kvm-amd"));
    }

    #[test]
    fn a_panic_ends_the_waiting() {
        let script = "echo '[ 1.0] Kernel panic - not syncing: no init' >console; sleep 99999";
        let (outcome, _) = run_script(script, LONG);
        assert!(reason(outcome).contains("Kernel panic - not syncing: no init"));
    }

    #[test]
    fn a_panic_that_ends_the_emulator_is_told_too() {
        let script = "echo MARK ready; echo '[ 1.0] Kernel panic - not syncing: x' >console";
        let (outcome, _) = run_script(script, LONG);
        assert!(reason(outcome).contains("Kernel panic"));
    }

    #[test]
    fn silence_is_a_hang_and_work_is_not() {
        let silence = Duration::from_millis(400);
        let patience = Patience { silence, ..LONG };
        let (outcome, _) = run_script("echo MARK ready; echo a; sleep 99999", patience);
        assert!(reason(outcome).contains("it hangs"));
        let patience = Patience { whole: Duration::from_millis(400), ..LONG };
        let (outcome, _) =
            run_script("echo MARK ready; while :; do echo a; sleep 0.1; done", patience);
        assert!(reason(outcome).contains("did not end within"));
    }

    #[test]
    fn silence_is_told_again_and_again_and_is_no_output() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let mark = Mark::random().expect("random numbers");
        let mut command = Command::new("sh");
        let script = "echo MARK ready; until [ -e told ]; do sleep 0.05; done; echo MARK over 0";
        command.args(["-c", &script.replace("MARK", mark.word())]).current_dir(directory.path());
        let patience = Patience { heartbeat: Duration::from_millis(20), ..LONG };
        let interrupt = Interrupt::default();
        let mut beats = 0;
        let finished = run(command, directory.path(), &mark, patience, &interrupt, &mut |line| {
            beats += u32::from(line == Line::Silence);
            if beats == 3 {
                fs::write(directory.path().join("told"), "").expect("files can be written");
            }
        });
        assert_eq!(finished.expect("sh runs").outcome, JobEnd::Over(0));
        let silence = Duration::from_millis(100);
        let patience = Patience { silence, ..patience };
        let (outcome, _) = run_script("echo MARK ready; sleep 99999", patience);
        assert!(reason(outcome).contains("it hangs"));
    }

    #[test]
    fn an_emulator_that_does_not_start_is_quoted() {
        let (outcome, _) = run_script("echo 'qemu: invalid accelerator tcg' >&2; exit 1", LONG);
        assert!(reason(outcome).contains("invalid accelerator tcg"));
    }
}

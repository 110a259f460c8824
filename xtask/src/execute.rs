//! Runs one command to its end: output captured, time and output bounded, nothing left behind.

use std::{
    fs::File,
    io::{self, PipeReader, Read as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError, SyncSender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

/// How often the wait looks at the clock and at the interrupt flag.
const TICK: Duration = Duration::from_millis(20);

/// A process that takes longer to let go of the output was left behind.
const GRACE: Duration = Duration::from_secs(5);

/// Output beyond this many bytes is a runaway.
const OUTPUT_LIMIT: usize = 64 << 20;

/// When a command is ended from outside.
pub(crate) struct Limits<'a> {
    deadline: Instant,
    /// Bytes of output.
    output: usize,
    /// How long the output may stay open once the command itself has ended.
    grace: Duration,
    /// Looked at all the time; true ends the command.
    interrupted: &'a dyn Fn() -> bool,
}

impl<'a> Limits<'a> {
    pub(crate) fn new(deadline: Instant, interrupted: &'a dyn Fn() -> bool) -> Self {
        Self { deadline, output: OUTPUT_LIMIT, grace: GRACE, interrupted }
    }
}

/// How a command came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Exited(ExitStatus),
    /// The deadline passed; the process group was killed.
    TimeLimit,
    /// More output than the limit; the process group was killed.
    Runaway,
    /// The command ended, a process that it started kept the output open and was killed.
    LeftBehind,
    /// The user asked to stop; the process group was killed.
    Interrupted,
}

impl Ending {
    pub(crate) fn success(self) -> bool {
        matches!(self, Self::Exited(status) if status.success())
    }
}

/// What a command printed, both streams in the order of writing, and how it ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) output: String,
    pub(crate) ending: Ending,
}

/// Runs `command` in a process group of its own, without standard input.
///
/// `on_line` sees each whole line as it comes. An error means that the command could not be
/// started or waited for.
pub(crate) fn run(
    command: Command,
    limits: &Limits<'_>,
    on_line: &mut dyn FnMut(&str),
) -> Result<Finished> {
    run_with_errors_to(command, None, limits, on_line)
}

/// Like [`run`]; what the command writes to standard error goes to the file, if there is one.
pub(crate) fn run_with_errors_to(
    mut command: Command,
    errors: Option<File>,
    limits: &Limits<'_>,
    on_line: &mut dyn FnMut(&str),
) -> Result<Finished> {
    let (reader, writer) = io::pipe().context("cannot make a pipe")?;
    command.process_group(0).stdin(Stdio::null());
    match errors {
        Some(file) => command.stderr(file),
        None => command.stderr(writer.try_clone().context("cannot share a pipe")?),
    };
    command.stdout(writer);
    let program = command.get_program().to_string_lossy().into_owned();
    let spawned = command.spawn().with_context(|| format!("cannot start {program}"));
    // The command holds the pipe's writing end: the output ends only once it is dropped.
    drop(command);
    let mut group = Group { leader: spawned?, ended: false };

    let (sender, chunks) = mpsc::sync_channel(16);
    thread::spawn(move || forward(reader, &sender));

    let mut output = Output { bytes: Vec::new(), reported: 0 };
    let mut closed = false;
    let mut exit: Option<(ExitStatus, Instant)> = None;
    let ending = loop {
        match chunks.recv_timeout(TICK) {
            Ok(chunk) => output.push(&chunk, on_line),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                closed = true;
                thread::sleep(TICK);
            }
        }
        if exit.is_none() {
            let status = group.leader.try_wait().context("cannot wait for a command")?;
            exit = status.map(|status| (status, Instant::now()));
        }
        match exit {
            Some((status, _)) if closed => break Ending::Exited(status),
            Some((_, since)) if since.elapsed() > limits.grace => break Ending::LeftBehind,
            _ => {}
        }
        if (limits.interrupted)() {
            break Ending::Interrupted;
        }
        if Instant::now() >= limits.deadline {
            break Ending::TimeLimit;
        }
        if output.bytes.len() > limits.output {
            break Ending::Runaway;
        }
    };
    if matches!(ending, Ending::Exited(_)) {
        group.ended = true;
    } else {
        group.end().context("cannot end a command")?;
        // What was still on its way; a process that left the group must not hold this up.
        let last = Instant::now() + limits.grace;
        while let Ok(chunk) = chunks.recv_timeout(last.saturating_duration_since(Instant::now())) {
            output.push(&chunk, on_line);
            if Instant::now() >= last {
                break;
            }
        }
    }
    Ok(Finished { output: output.finish(on_line), ending })
}

/// The same command under a limit of its own, so that it does not run on for ever should this
/// program be killed.
pub(crate) fn limited(command: &Command, limit: Duration) -> Command {
    let seconds = (limit + Duration::from_secs(30)).as_secs().to_string();
    let mut limited = Command::new("timeout");
    limited.args(["--foreground", "--signal=KILL", &seconds]);
    limited.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        limited.current_dir(directory);
    }
    limited
}

/// The command and all that it starts, which do not outlive this value.
struct Group {
    leader: Child,
    ended: bool,
}

impl Group {
    fn end(&mut self) -> io::Result<()> {
        self.ended = true;
        let leader = i32::try_from(self.leader.id()).map_err(io::Error::other)?;
        match killpg(Pid::from_raw(leader), Signal::SIGKILL) {
            // No such group: all of it has ended by itself meanwhile.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
        self.leader.wait().map(drop)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.ended {
            // On the way out with an error already; that one says more than this one would.
            let _ = self.end();
        }
    }
}

fn forward(mut reader: PipeReader, sender: &SyncSender<Vec<u8>>) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

struct Output {
    bytes: Vec<u8>,
    /// Bytes whose lines have been reported.
    reported: usize,
}

impl Output {
    fn push(&mut self, chunk: &[u8], on_line: &mut dyn FnMut(&str)) {
        let mut searched = self.bytes.len();
        self.bytes.extend_from_slice(chunk);
        while let Some(length) = self.bytes[searched..].iter().position(|&byte| byte == b'\n') {
            let end = searched + length;
            on_line(&String::from_utf8_lossy(&self.bytes[self.reported..end]));
            self.reported = end + 1;
            searched = end + 1;
        }
    }

    fn finish(self, on_line: &mut dyn FnMut(&str)) -> String {
        let rest = &self.bytes[self.reported..];
        if !rest.is_empty() {
            on_line(&String::from_utf8_lossy(rest));
        }
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn in_time() -> Limits<'static> {
        Limits::new(Instant::now() + Duration::from_secs(300), &|| false)
    }

    fn alive(pid: &str) -> bool {
        // A killed child of ours is reaped by init, perhaps a moment later: a zombie is dead.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    }

    fn wait_until_dead(pid: &str) {
        while alive(pid) {
            thread::sleep(TICK);
        }
    }

    #[test]
    fn both_streams_come_in_order_and_by_line() {
        let mut lines = Vec::new();
        let finished = run(
            shell("echo one; echo two >&2; printf 'thr'; printf 'ee\\n'; printf end"),
            &in_time(),
            &mut |line| lines.push(line.to_owned()),
        )
        .expect("sh runs");
        assert_eq!(finished.output, "one\ntwo\nthree\nend");
        assert_eq!(lines, ["one", "two", "three", "end"]);
        assert!(finished.ending.success());
    }

    #[test]
    fn errors_can_go_elsewhere() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let path = directory.path().join("errors");
        let file = File::create(&path).expect("files can be written");
        let command = shell("echo one; echo two >&2");
        let finished = run_with_errors_to(command, Some(file), &in_time(), &mut |_| {});
        assert_eq!(finished.expect("sh runs").output, "one\n");
        assert_eq!(std::fs::read_to_string(path).expect("it is there"), "two\n");
    }

    #[test]
    fn status_is_that_of_the_command() {
        let finished = run(shell("exit 3"), &in_time(), &mut |_| {}).expect("sh runs");
        assert!(matches!(finished.ending, Ending::Exited(status) if status.code() == Some(3)));
        assert!(!finished.ending.success());
    }

    #[test]
    fn standard_input_is_empty() {
        let finished = run(shell("cat; echo end"), &in_time(), &mut |_| {}).expect("sh runs");
        assert_eq!(finished.output, "end\n");
    }

    #[test]
    fn a_command_that_does_not_exist_is_named() {
        let command = Command::new("subpage-no-such-program");
        let error = run(command, &in_time(), &mut |_| {}).expect_err("there is none");
        assert!(error.to_string().contains("subpage-no-such-program"), "{error}");
    }

    #[test]
    fn killing_a_command_kills_all_that_it_started() {
        // Stopped only once both processes are known to be there.
        let started = std::cell::Cell::new(false);
        let interrupted = || started.get();
        let finished = run(
            shell("sleep 100000 & echo $!; wait"),
            &Limits::new(Instant::now() + Duration::from_secs(300), &interrupted),
            &mut |_| started.set(true),
        )
        .expect("sh runs");
        assert_eq!(finished.ending, Ending::Interrupted);
        wait_until_dead(&finished.output);
    }

    #[test]
    fn a_passed_deadline_is_a_time_limit() {
        let limits = Limits::new(Instant::now(), &|| false);
        let finished = run(shell("sleep 100000"), &limits, &mut |_| {}).expect("sh runs");
        assert_eq!(finished.ending, Ending::TimeLimit);
    }

    #[test]
    fn endless_output_is_cut_off() {
        let limits = Limits { output: 100_000, ..in_time() };
        let finished = run(shell("yes"), &limits, &mut |_| {}).expect("sh runs");
        assert_eq!(finished.ending, Ending::Runaway);
    }

    #[test]
    fn what_is_left_behind_is_found_and_killed() {
        let limits = Limits { grace: Duration::from_millis(100), ..in_time() };
        let finished = run(shell("sleep 100000 & echo $!"), &limits, &mut |_| {}).expect("sh runs");
        assert_eq!(finished.ending, Ending::LeftBehind);
        wait_until_dead(&finished.output);
    }
}

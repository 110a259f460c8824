//! The program in a terminal of its own, and what stands there.

use std::fs::File;
use std::io::{Read, Write as _};
use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{self, Termios};
use nix::unistd::Pid;

/// Longer than anything takes that is waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A program and the terminal that it runs in.
pub(crate) struct Screen {
    child: Child,
    keys: File,
    /// Kept, so that the terminal's settings can be read at the end.
    terminal: OwnedFd,
    before: Termios,
    seen: Arc<Mutex<vt100::Parser>>,
}

/// Of columns or lines.
fn some(count: u16) -> NonZero<u16> {
    NonZero::new(count).expect("not none")
}

impl Screen {
    /// Starts a program in a terminal of so many columns and lines, which is its controlling one.
    pub(crate) fn start(program: &Command, columns: u16, lines: u16) -> Self {
        let size = Winsize { ws_row: lines, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).expect("a terminal");
        let before = termios::tcgetattr(&pty.slave).expect("a terminal");
        // Of util-linux, as every Debian has it: a session whose terminal is standard input. It becomes
        // the program, since it leads no group of processes.
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(program.get_program()).args(program.get_args());
        for (name, value) in program.get_envs() {
            command.env(name, value.expect("nothing is taken away"));
        }
        if let Some(directory) = program.get_current_dir() {
            command.current_dir(directory);
        }
        let stream = || pty.slave.try_clone().expect("a descriptor");
        let child = command.stdin(stream()).stdout(stream()).stderr(stream());
        let child = child.spawn().expect("setsid, of util-linux, starts");
        let keys = File::from(pty.master);
        let seen = Arc::new(Mutex::new(vt100::Parser::new(some(lines), some(columns), 0)));
        let (mut output, drawn) = (keys.try_clone().expect("a descriptor"), Arc::clone(&seen));
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = output.read(&mut buffer) {
                drawn.lock().expect("no panic").process(&buffer[..read]);
            }
        });
        Self { child, keys, terminal: pty.slave, before, seen }
    }

    /// What stands on it now.
    pub(crate) fn text(&self) -> String {
        self.seen.lock().expect("no panic").screen().contents()
    }

    /// Waits until something stands there.
    pub(crate) fn wait_for(&self, text: &str) -> String {
        self.wait_until(text, |shown| shown.contains(text))
    }

    /// Waits until what stands there is as it should be.
    pub(crate) fn wait_until(&self, what: &str, is: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + LONGEST_WAIT;
        loop {
            let shown = self.text();
            if is(&shown) {
                return shown;
            }
            assert!(Instant::now() < deadline, "no `{what}`:\n{shown}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("it reads");
    }

    pub(crate) fn resize(&self, columns: u16, lines: u16) {
        self.seen.lock().expect("no panic").screen_mut().set_size(some(lines), some(columns));
        let size =
            rustix::termios::Winsize { ws_row: lines, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(self.keys.as_fd(), size).expect("a terminal");
    }

    /// Sends a signal to the program.
    pub(crate) fn signal(&self, signal: Signal) {
        let program = i32::try_from(self.child.id()).expect("a process");
        kill(Pid::from_raw(program), signal).expect("it runs");
    }

    /// Waits for the end. The terminal must be as it was.
    pub(crate) fn end(mut self) -> ExitStatus {
        let deadline = Instant::now() + LONGEST_WAIT;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.text());
            thread::sleep(Duration::from_millis(10));
        };
        let after = termios::tcgetattr(&self.terminal).expect("a terminal");
        assert_eq!(after, self.before, "the terminal is given back");
        self.wait_until("the other screen", |_| {
            let seen = self.seen.lock().expect("no panic");
            !seen.screen().alternate_screen() && !seen.screen().hide_cursor()
        });
        status
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

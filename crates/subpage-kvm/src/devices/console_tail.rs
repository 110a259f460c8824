//! The last lines that a guest sent to its console, and whether its kernel said there that it panics.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Lines that are kept, and bytes of each.
const LINES: usize = 40;
/// Lines that are kept once a kernel has panicked: its trace of calls is long.
const LINES_OF_PANIC: usize = 100;
const LINE_BYTES: usize = 200;

/// How Linux begins to say that it panics, behind the time.
const PANIC: &str = "Kernel panic - not syncing";

/// What was sent last.
#[derive(Debug, Default)]
struct Lines {
    whole: VecDeque<String>,
    /// The line that has not ended.
    open: Vec<u8>,
    /// The last line that told of a panic.
    panic: Option<String>,
}

/// The last lines of a console; clones are of the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConsoleTail(Arc<Mutex<Lines>>);

/// The console's last words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PanicReport {
    /// What the kernel gave as the reason.
    pub(crate) reason: String,
    /// The last lines.
    pub(crate) lines: Vec<String>,
}

impl ConsoleTail {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Output that is remembered here on its way to `out`.
    pub(super) fn remembering(&self, out: Box<dyn Write + Send>) -> Box<dyn Write + Send> {
        Box::new(Tee { out, tail: self.clone() })
    }

    /// What was said about a panic, if anything since the last [`forget`](Self::forget).
    ///
    /// It is text that a program in the guest with access to the console can write as well.
    pub(crate) fn panic(&self) -> Option<PanicReport> {
        let lines = self.lock();
        let line = lines.panic.clone()?;
        let reason = line.split_once(PANIC).map_or("", |(_, reason)| reason);
        let mut last: Vec<String> = lines.whole.iter().cloned().collect();
        if !lines.open.is_empty() {
            last.push(text(&lines.open));
        }
        Some(PanicReport { reason: reason.trim_start_matches(':').trim().to_owned(), lines: last })
    }

    /// Begins anew, as for a guest that starts again.
    pub(super) fn forget(&self) {
        *self.lock() = Lines::default();
    }
}

impl Lines {
    fn byte(&mut self, byte: u8) {
        match byte {
            b'\n' => {
                let line = text(&std::mem::take(&mut self.open));
                if tells_of_panic(&line) {
                    self.panic = Some(line.clone());
                }
                let most = if self.panic.is_some() { LINES_OF_PANIC } else { LINES };
                while self.whole.len() >= most {
                    self.whole.pop_front();
                }
                self.whole.push_back(line);
            }
            _ if byte != b'\r' && self.open.len() < LINE_BYTES => self.open.push(byte),
            _ => {}
        }
    }
}

/// Whether a line begins with the words, behind the kernel's time stamp.
fn tells_of_panic(line: &str) -> bool {
    let words = match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        // Behind the time there may be the task: `[    2.5][    T1] `.
        Some((stamp, words))
            if stamp.split(']').next().is_some_and(|time| time.trim().parse::<f64>().is_ok()) =>
        {
            words
        }
        _ => line,
    };
    words.starts_with(PANIC)
}

/// Bytes of the guest as text that harms no terminal.
fn text(bytes: &[u8]) -> String {
    let harmless = |character: char| if character.is_control() { ' ' } else { character };
    String::from_utf8_lossy(bytes).chars().map(harmless).collect()
}

struct Tee {
    out: Box<dyn Write + Send>,
    tail: ConsoleTail,
}

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut lines = self.tail.lock();
        for &byte in bytes {
            lines.byte(byte);
        }
        drop(lines);
        // What cannot be written on is remembered all the same.
        self.out.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(text: &str) -> ConsoleTail {
        let tail = ConsoleTail::default();
        let mut out = tail.remembering(Box::new(io::sink()));
        out.write_all(text.as_bytes()).expect("a sink");
        tail
    }

    #[test]
    fn a_panic_is_told_with_its_reason_and_the_last_lines() {
        let text = "[    1.0] before\r\n[    2.5] Kernel panic - not syncing: sysrq\r\nCall Trace:";
        let report = tail(text).panic().expect("a panic");
        assert_eq!(report.reason, "sysrq");
        let lines =
            ["[    1.0] before", "[    2.5] Kernel panic - not syncing: sysrq", "Call Trace:"];
        assert_eq!(report.lines, lines);
    }

    #[test]
    fn the_time_may_have_the_task_behind_it() {
        let told = tail("[    2.5][    T1] Kernel panic - not syncing: sysrq\n").panic();
        assert_eq!(told.expect("a panic").reason, "sysrq");
    }

    #[test]
    fn other_lines_are_no_panic() {
        for text in [
            "---[ end Kernel panic - not syncing: sysrq ]---\n",
            "grep found: Kernel panic - not syncing\n",
            "[x] Kernel panic - not syncing\n",
            "[x][ 1.0] Kernel panic - not syncing\n",
            "Kernel panic - not syncing",
        ] {
            assert_eq!(tail(text).panic(), None, "{text}");
        }
    }

    #[test]
    fn what_is_kept_has_bounds() {
        let long = format!("{}\n", "x\u{1b}".repeat(1000)).repeat(1000);
        let report = tail(&format!("{long}Kernel panic - not syncing\n{long}")).panic();
        let lines = report.expect("a panic").lines;
        assert_eq!(lines.len(), LINES_OF_PANIC);
        assert!(lines.iter().all(|line| line.len() == LINE_BYTES && !line.contains('\u{1b}')));
    }

    /// A trace of calls is longer than what is kept of a console that tells of no panic.
    #[test]
    fn the_line_of_the_panic_is_kept_with_what_follows() {
        let before = "before\n".repeat(LINES + 5);
        let after = "call\n".repeat(LINES + 5);
        let report = tail(&format!("{before}Kernel panic - not syncing: why\n{after}")).panic();
        let lines = report.expect("a panic").lines;
        assert!(lines.contains(&"Kernel panic - not syncing: why".to_owned()), "{lines:?}");
        assert_eq!(lines.iter().filter(|line| *line == "call").count(), LINES + 5);
    }

    #[test]
    fn a_guest_that_starts_again_has_said_nothing() {
        let tail = tail("Kernel panic - not syncing\n");
        tail.forget();
        assert_eq!(tail.panic(), None);
    }
}

//! Lines of this program and the console of a guest, on one terminal.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anstream::adapter::StripBytes;

use super::{ColorWhen, Output};

/// Bytes of a line that the console has not ended for which it is shown at once.
const LONGEST_PARTIAL: usize = 4096;

/// What both write to.
struct Shared {
    lines: Output,
    /// Where the console goes if not to the same stream.
    console: Option<Output>,
    /// What the console has sent of a line that is not shown yet.
    partial: Vec<u8>,
    /// A part of a line of the console is shown.
    mid_line: bool,
    /// Both are seen on the same screen.
    together: bool,
}

/// Standard output for this program's lines, and a place for a guest's console.
///
/// Lines of both appear whole. What the console sends is shown when its line ends, or at the next
/// [`Screen::flush`]; where it then stands in the middle of a line, other lines begin a new one first.
#[derive(Clone)]
pub struct Screen {
    shared: Arc<Mutex<Shared>>,
}

/// Takes this program's lines, and passes on whole ones.
pub struct Lines {
    screen: Screen,
    pending: Vec<u8>,
}

/// Takes what a guest's serial port sends.
///
/// Escape sequences are taken out: the guest may be hostile, and with them it could move the cursor
/// over what this program says.
pub struct Console {
    screen: Screen,
    escapes: StripBytes,
}

impl Screen {
    /// The console goes to standard output too, or to standard error with `apart`.
    pub fn new(color: ColorWhen, apart: bool) -> Self {
        let lines = Output::stdout(color);
        let console = apart.then(|| Output::stderr(ColorWhen::Never));
        Self::of(lines, console)
    }

    fn of(lines: Output, console: Option<Output>) -> Self {
        let together =
            console.as_ref().is_none_or(|console| console.is_terminal() && lines.is_terminal());
        let shared = Shared { lines, console, partial: Vec::new(), mid_line: false, together };
        Self { shared: Arc::new(Mutex::new(shared)) }
    }

    /// A place for this program's lines.
    pub fn lines(&self) -> Lines {
        Lines { screen: self.clone(), pending: Vec::new() }
    }

    /// A place for the console.
    pub fn console(&self) -> Console {
        Console { screen: self.clone(), escapes: StripBytes::new() }
    }

    /// Whether a person is likely to watch the lines.
    pub fn is_terminal(&self) -> bool {
        self.lock().lines.is_terminal()
    }

    /// Passes on what is buffered, the part of a line that the console is in included.
    pub fn flush(&self) -> io::Result<()> {
        let mut shared = self.lock();
        shared.show_partial()?;
        shared.lines.flush()
    }

    /// The console writes no more: ends the line that it is in.
    pub fn end_console(&self) -> io::Result<()> {
        let mut shared = self.lock();
        shared.show_partial()?;
        shared.begin_line(true)
    }

    /// Whoever panicked in between has written a part of a line at most.
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn console(&mut self) -> &mut Output {
        self.console.as_mut().unwrap_or(&mut self.lines)
    }

    /// Shows what the console has sent.
    fn show_partial(&mut self) -> io::Result<()> {
        let partial = std::mem::take(&mut self.partial);
        for byte in &partial {
            match byte {
                b'\n' => self.mid_line = false,
                // Back at the start of the line, whatever is in it.
                b'\r' => {}
                _ => self.mid_line = true,
            }
        }
        let console = self.console();
        console.write_all(&partial)?;
        console.flush()
    }

    fn begin_line(&mut self, always: bool) -> io::Result<()> {
        if self.mid_line && (self.together || always) {
            self.mid_line = false;
            let console = self.console();
            console.write_all(b"\n")?;
            console.flush()?;
        }
        Ok(())
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if let Some(end) = self.pending.iter().rposition(|byte| *byte == b'\n') {
            let mut shared = self.screen.lock();
            shared.begin_line(false)?;
            shared.lines.write_all(&self.pending[..=end])?;
            self.pending.drain(..=end);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.screen.lock().lines.flush()
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut shared = self.screen.lock();
        for text in self.escapes.strip_next(bytes) {
            shared.partial.extend_from_slice(text);
        }
        if shared.partial.len() >= LONGEST_PARTIAL || shared.partial.ends_with(b"\n") {
            shared.show_partial()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        // A serial port sends, and flushes, byte by byte.
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream that is looked at later.
    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<u8>>>);

    impl Write for Seen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seen {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("no panic").clone()).expect("text")
        }
    }

    fn output(seen: &Seen, terminal: bool) -> Output {
        Output::new(Box::new(seen.clone()), terminal)
    }

    #[test]
    fn lines_are_never_torn() {
        let seen = Seen::default();
        let screen = Screen::of(output(&seen, false), None);
        let (mut lines, mut console) = (screen.lines(), screen.console());
        let mut play = || -> io::Result<()> {
            write!(console, "booting\r\nstar")?;
            write!(lines, "denied ")?;
            write!(console, "ted\r\n")?;
            write!(lines, "a\ndenied b\n")?;
            // Only a prompt that is seen is left in the middle of its line.
            write!(console, "login: ")?;
            writeln!(lines, "denied c")?;
            screen.flush()?;
            writeln!(lines, "denied d")?;
            write!(console, "root\r\n\r")?;
            screen.flush()?;
            writeln!(lines, "denied e")?;
            write!(console, "# ")?;
            screen.end_console()?;
            writeln!(lines, "the end")?;
            screen.flush()
        };
        play().expect("memory");
        assert_eq!(
            seen.text(),
            "booting\r\nstarted\r\ndenied a\ndenied b\ndenied c\nlogin: \ndenied d\nroot\r\n\r\
             denied e\n# \nthe end\n"
        );
    }

    #[test]
    fn streams_apart_are_left_alone_unless_one_screen_shows_both() {
        for (terminal, console_text) in [(false, "login: more"), (true, "login: \nmore")] {
            let (seen, apart) = (Seen::default(), Seen::default());
            let screen = Screen::of(output(&seen, terminal), Some(output(&apart, terminal)));
            let (mut lines, mut console) = (screen.lines(), screen.console());
            let mut play = || -> io::Result<()> {
                write!(console, "login: ")?;
                screen.flush()?;
                writeln!(lines, "{{}}")?;
                write!(console, "more")?;
                screen.flush()
            };
            play().expect("memory");
            assert_eq!((seen.text().as_str(), apart.text().as_str()), ("{}\n", console_text));
            screen.end_console().expect("memory");
            assert_eq!(apart.text(), format!("{console_text}\n"));
        }
    }

    #[test]
    fn a_line_without_end_is_not_kept_for_ever() {
        let seen = Seen::default();
        let screen = Screen::of(output(&seen, false), None);
        let mut console = screen.console();
        for _ in 0..=2 * LONGEST_PARTIAL {
            console.write_all(b"x").expect("memory");
        }
        assert_eq!(seen.text().len(), 2 * LONGEST_PARTIAL);
    }

    /// Byte by byte, as a serial port sends them.
    #[test]
    fn a_guest_does_not_reach_the_terminal() {
        let seen = Seen::default();
        let screen = Screen::of(output(&seen, false), None);
        let mut console = screen.console();
        for byte in "\u{1b}[2J\u{1b}]0;title\u{7}ok \u{1b}[31mred\u{1b}[0m é\u{8}\u{7}\n".bytes() {
            console.write_all(&[byte]).expect("memory");
        }
        screen.flush().expect("memory");
        assert_eq!(seen.text(), "ok red é\n");
    }
}

//! Lines of this program and the console of a guest, on one terminal.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::console_text::ConsoleText;
use super::queue::Queue;
use super::style::DENIED;
use super::{ColorWhen, Output, grouped};

/// What stands at the start of each line of a guest's console, and of no other.
pub const MARK: &str = "guest| ";

/// Bytes of a line that the console has not ended for which it is shown at once.
const LONGEST_PARTIAL: usize = 4096;

/// What both write to.
struct Shared {
    lines: Queue,
    /// Where the console goes if not to the same stream.
    apart: Option<Queue>,
    text: ConsoleText,
    /// What the console has sent that is not shown yet.
    partial: String,
    /// A part of a line of the console is shown.
    mid_line: bool,
    /// Both are seen on the same screen.
    together: bool,
    /// Bytes of the console that were lost since the last that were shown.
    missed: u64,
    /// All bytes of the console that were lost.
    lost: u64,
}

/// Standard output for this program's lines, and a place for a guest's console.
///
/// Lines of both appear whole, and those of the console begin with [`MARK`]. What the console sends is
/// shown when its line ends, or at the next [`Screen::flush`]; where it then stands in the middle of a
/// line, other lines begin a new one first.
///
/// Nobody waits for whoever reads: the streams are written by threads of their own. Lines always find
/// room; who adds many asks [`Screen::has_room`] first. Text of the console that finds none is lost,
/// counted, and told where it is missing.
#[derive(Clone)]
pub struct Screen {
    shared: Arc<Mutex<Shared>>,
    terminal: bool,
}

/// Takes this program's lines, and passes on whole ones.
pub struct Lines {
    screen: Screen,
    pending: Vec<u8>,
}

/// Takes what a guest's serial port sends, and makes it harmless: the guest may be hostile.
pub struct Console {
    screen: Screen,
}

impl Screen {
    /// The console goes to standard output too, or to standard error with `apart`.
    ///
    /// Fails if a thread cannot be started.
    pub fn new(color: ColorWhen, apart: bool) -> io::Result<Self> {
        let lines = Output::stdout(color);
        let console = apart.then(|| Output::stderr(color));
        Self::of(lines, console)
    }

    fn of(lines: Output, console: Option<Output>) -> io::Result<Self> {
        let terminal = lines.is_terminal();
        let together = console.as_ref().is_none_or(|console| console.is_terminal() && terminal);
        let shared = Shared {
            lines: Queue::new(lines)?,
            apart: console.map(Queue::new).transpose()?,
            text: ConsoleText::new(),
            partial: String::new(),
            mid_line: false,
            together,
            missed: 0,
            lost: 0,
        };
        Ok(Self { shared: Arc::new(Mutex::new(shared)), terminal })
    }

    /// A place for this program's lines.
    pub fn lines(&self) -> Lines {
        Lines { screen: self.clone(), pending: Vec::new() }
    }

    /// A place for the console.
    pub fn console(&self) -> Console {
        Console { screen: self.clone() }
    }

    /// Whether a person is likely to watch the lines.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Shows the part of a line that the console is in, and what it has lost if there is room again.
    pub fn flush(&self) {
        let mut shared = self.lock();
        shared.show_partial();
        shared.tell_missed();
    }

    /// The console writes no more: ends the line that it is in.
    pub fn end_console(&self) {
        let mut shared = self.lock();
        shared.show_partial();
        shared.begin_line(true);
        shared.say_missed();
    }

    /// Whether more lines should be added: not as many wait as may.
    pub fn has_room(&self) -> bool {
        self.lock().lines.has_room()
    }

    /// Waits a moment for room, if the reader still takes something: false if it has taken nothing
    /// for `patience`.
    pub fn wait_for_room(&self, at_most: Duration, patience: Duration) -> bool {
        let shared = self.lock();
        let reads = !shared.lines.is_stalled(patience);
        let lines = shared.lines.clone();
        drop(shared);
        if reads {
            lines.wait_for_room(at_most);
        }
        reads
    }

    /// Bytes of the console that were lost so far.
    pub fn console_lost(&self) -> u64 {
        self.lock().lost
    }

    /// Whether the console's text is being lost.
    pub fn loses_console(&self) -> bool {
        self.lock().missed > 0
    }

    /// Why standard output takes no more; none if it does, or its reader has gone.
    pub fn failure(&self) -> Option<Arc<io::Error>> {
        self.lock().lines.failure()
    }

    /// Waits until all is written, or `give_up` says that it is enough; how many bytes are left.
    pub fn finish(&self, mut give_up: impl FnMut() -> bool) -> usize {
        let shared = self.lock();
        let queues: Vec<_> =
            [Some(&shared.lines), shared.apart.as_ref()].into_iter().flatten().cloned().collect();
        drop(shared);
        queues.iter().map(|queue| queue.finish(&mut give_up)).sum()
    }

    /// Whoever panicked in between has written a part of a line at most.
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn console(&self) -> &Queue {
        self.apart.as_ref().unwrap_or(&self.lines)
    }

    /// Shows what the console has sent, or counts it as lost.
    fn show_partial(&mut self) {
        if self.partial.is_empty() {
            return;
        }
        let partial = std::mem::take(&mut self.partial);
        if !self.console().has_console_room(partial.len(), self.missed > 0) {
            let bytes = partial.len() as u64;
            self.missed = self.missed.saturating_add(bytes);
            self.lost = self.lost.saturating_add(bytes);
            return;
        }
        self.say_missed();
        let mut shown = String::with_capacity(partial.len() + MARK.len());
        for line in partial.split_inclusive('\n') {
            if !self.mid_line {
                shown.push_str(MARK);
            }
            shown.push_str(line);
            self.mid_line = !line.ends_with('\n');
        }
        self.console().push_console(shown.as_bytes());
    }

    /// Tells what was lost if there is room for more.
    fn tell_missed(&mut self) {
        if self.missed > 0 && self.console().has_console_room(0, true) {
            self.say_missed();
        }
    }

    fn say_missed(&mut self) {
        if self.missed == 0 {
            return;
        }
        self.begin_line(true);
        let missed = std::mem::take(&mut self.missed);
        let line = format!(
            "{DENIED}… {} bytes of the guest's console lost here:{DENIED:#} they came faster than they \
             were read\n",
            grouped(missed)
        );
        self.console().push_lines(line.as_bytes());
    }

    fn begin_line(&mut self, always: bool) {
        if self.mid_line && (self.together || always) {
            self.mid_line = false;
            self.console().push_lines(b"\n");
        }
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // What is pending has no end of a line: long ones come in many small pieces.
        let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') else {
            self.pending.extend_from_slice(bytes);
            return Ok(bytes.len());
        };
        let (whole, rest) = bytes.split_at(end + 1);
        self.pending.extend_from_slice(whole);
        let mut shared = self.screen.lock();
        shared.begin_line(false);
        shared.lines.push_lines(&self.pending);
        self.pending.clear();
        self.pending.extend_from_slice(rest);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut shared = self.screen.lock();
        let Shared { text, partial, .. } = &mut *shared;
        text.push(bytes, partial);
        if shared.partial.len() >= LONGEST_PARTIAL || shared.partial.ends_with('\n') {
            shared.show_partial();
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
        /// All of it, when it is written.
        fn text(&self, screen: &Screen) -> String {
            assert_eq!(screen.finish(|| false), 0);
            String::from_utf8(self.0.lock().expect("no panic").clone()).expect("text")
        }
    }

    fn output(seen: &Seen, terminal: bool) -> Output {
        Output::new(Box::new(seen.clone()), terminal)
    }

    fn screen(seen: &Seen) -> Screen {
        Screen::of(output(seen, false), None).expect("a thread")
    }

    #[test]
    fn lines_are_never_torn() {
        let seen = Seen::default();
        let screen = screen(&seen);
        let (mut lines, mut console) = (screen.lines(), screen.console());
        let mut play = || -> io::Result<()> {
            write!(console, "booting\r\nstar")?;
            write!(lines, "denied ")?;
            write!(console, "ted\r\n")?;
            write!(lines, "a\ndenied b\n")?;
            // Only a prompt that is seen is left in the middle of its line.
            write!(console, "login: ")?;
            writeln!(lines, "denied c")?;
            screen.flush();
            writeln!(lines, "denied d")?;
            write!(console, "root\r\n\r")?;
            screen.flush();
            writeln!(lines, "denied e")?;
            write!(console, "# ")?;
            screen.end_console();
            writeln!(lines, "the end")
        };
        play().expect("memory");
        assert_eq!(
            seen.text(&screen),
            "guest| booting\nguest| started\ndenied a\ndenied b\ndenied c\nguest| login: \ndenied d\n\
             guest| root\ndenied e\nguest| # \nthe end\n"
        );
    }

    #[test]
    fn streams_apart_are_left_alone_unless_one_screen_shows_both() {
        for (terminal, console_text) in
            [(false, "guest| login: more"), (true, "guest| login: \nguest| more")]
        {
            let (seen, apart) = (Seen::default(), Seen::default());
            let screen = Screen::of(output(&seen, terminal), Some(output(&apart, terminal)));
            let screen = screen.expect("threads");
            let (mut lines, mut console) = (screen.lines(), screen.console());
            let mut play = || -> io::Result<()> {
                write!(console, "login: ")?;
                screen.flush();
                writeln!(lines, "{{}}")?;
                write!(console, "more")?;
                screen.flush();
                Ok(())
            };
            play().expect("memory");
            assert_eq!(
                (seen.text(&screen).as_str(), apart.text(&screen).as_str()),
                ("{}\n", console_text)
            );
            screen.end_console();
            assert_eq!(apart.text(&screen), format!("{console_text}\n"));
        }
    }

    /// A line of a megabyte in pieces of a few bytes, as an encoder writes it: looking through all of
    /// it at every piece would take an hour.
    #[test]
    fn a_long_line_comes_in_small_pieces() {
        let seen = Seen::default();
        let screen = screen(&seen);
        let mut lines = screen.lines();
        for _ in 0..4 << 20 {
            write!(lines, "[1,").expect("memory");
        }
        writeln!(lines).expect("memory");
        assert_eq!(seen.text(&screen).len(), (12 << 20) + 1);
    }

    #[test]
    fn a_line_without_end_is_not_kept_for_ever() {
        let seen = Seen::default();
        let screen = screen(&seen);
        let mut console = screen.console();
        for _ in 0..=2 * LONGEST_PARTIAL {
            console.write_all(b"x").expect("memory");
        }
        assert_eq!(seen.text(&screen).len(), MARK.len() + 2 * LONGEST_PARTIAL);
    }

    /// A line that looks like one of this program is one of the guest all the same.
    #[test]
    fn a_guest_does_not_forge_lines() {
        let seen = Seen::default();
        let screen = screen(&seen);
        let (mut lines, mut console) = (screen.lines(), screen.console());
        for forged in
            ["denied\n", "x\rdenied\n", "\u{1b}[1Gdenied\n", "\u{8}\u{8}\u{8}denied\n", "pro"]
        {
            write!(console, "{forged}").expect("memory");
        }
        writeln!(lines, "true").expect("memory");
        writeln!(console, "denied").expect("memory");
        let text = seen.text(&screen);
        assert_eq!(
            text.lines().filter(|line| !line.starts_with(MARK)).collect::<Vec<_>>(),
            ["true"]
        );
    }

    /// A guest that prints while nobody reads is not held up; what is lost is told in its place.
    #[test]
    fn a_console_that_nobody_reads_loses_text_and_says_so() {
        let (reader, writer) = io::pipe().expect("a pipe");
        let screen = Screen::of(Output::new(Box::new(writer), false), None).expect("a thread");
        let (mut lines, mut console) = (screen.lines(), screen.console());
        let mut sent = 0_u64;
        while !screen.loses_console() || sent < 4 << 20 {
            sent += 1;
            writeln!(console, "line {sent:12}").expect("memory");
        }
        assert!(screen.has_room(), "lines of this program find room");
        writeln!(lines, "denied").expect("memory");
        let read = std::thread::spawn(move || io::read_to_string(reader).expect("text"));
        assert_eq!(screen.finish(|| false), 0);
        writeln!(console, "after").expect("memory");
        assert!(!screen.loses_console());
        let lost = screen.console_lost();
        drop((lines, console, screen));
        let text = read.join().expect("no panic");
        let text = anstream::adapter::strip_str(&text).to_string();
        let shown = text.lines().filter(|line| line.starts_with("guest| line ")).count() as u64;
        assert_eq!(shown + lost / 18, sent);
        let end: Vec<_> = text.lines().rev().take(3).collect();
        assert_eq!((end[0], end[2]), ("guest| after", "denied"));
        assert!(end[1].contains("bytes of the guest's console lost here"), "{}", end[1]);
    }
}

//! Lines of this program and the console of a guest, on one terminal.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::termios::tcgetwinsize;
use unicode_width::UnicodeWidthChar as _;

use super::console_text::ConsoleText;
use super::queue::Queue;
use super::style::DENIED;
use super::{ColorWhen, Output, grouped};

/// What stands at the start of each line of a guest's console, and of no other.
pub const MARK: &str = "guest| ";

/// Bytes of a line that the console has not ended for which it is shown at once.
const LONGEST_PARTIAL: usize = 4096;

/// Columns of a terminal that does not tell.
const COLUMNS: usize = 80;

/// Where a guest's console goes.
pub enum ConsolePlace {
    /// Between this program's lines.
    Stdout,
    /// To standard error.
    Stderr,
    /// To a file of its own, without marks. [`Screen::empty_console`] empties it.
    File(File),
    /// It is dropped.
    Nowhere,
}

/// What both write to.
struct Shared {
    lines: Queue,
    /// Where the console goes if not to the same stream.
    apart: Option<Queue>,
    /// The console's own file, until it is emptied.
    file: Option<File>,
    /// What each of its lines begins with.
    mark: &'static str,
    /// How wide the terminal is that shows it, if one does.
    columns: Columns,
    /// Columns of the line that the console is in, without the mark.
    column: usize,
    /// What it sends is dropped.
    dropped: bool,
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
/// line, other lines begin a new one first. On a terminal, a line that is too long continues in another
/// with a mark: the terminal's own would have none.
///
/// A slow reader holds nothing up: the streams are written by threads of their own. Lines always find
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
    /// Standard output, with the console at its place.
    ///
    /// Fails if a thread cannot be started, or there is no descriptor for a file of the console.
    pub fn new(color: ColorWhen, place: ConsolePlace) -> io::Result<Self> {
        let lines = Output::stdout(color);
        let of_stdout: fn() -> usize = || columns_of(&io::stdout());
        let of_stderr: fn() -> usize = || columns_of(&io::stderr());
        let dropped = matches!(place, ConsolePlace::Nowhere);
        let file = match &place {
            ConsolePlace::File(file) => Some(file.try_clone()?),
            _ => None,
        };
        let (console, columns, mark) = match place {
            ConsolePlace::Stdout => (None, lines.is_terminal().then_some(of_stdout), MARK),
            ConsolePlace::Stderr => {
                let console = Output::stderr(color);
                let columns = console.is_terminal().then_some(of_stderr);
                (Some(console), columns, MARK)
            }
            ConsolePlace::File(file) => (Some(Output::file(file)), None, ""),
            ConsolePlace::Nowhere => (None, None, MARK),
        };
        let screen = Self::of(lines, console)?;
        let mut shared = screen.lock();
        (shared.mark, shared.columns, shared.dropped) = (mark, columns, dropped);
        shared.file = file;
        drop(shared);
        Ok(screen)
    }

    fn of(lines: Output, console: Option<Output>) -> io::Result<Self> {
        let terminal = lines.is_terminal();
        let together = console.as_ref().is_none_or(|console| console.is_terminal() && terminal);
        let shared = Shared {
            lines: Queue::new(lines)?,
            apart: console.map(Queue::new).transpose()?,
            file: None,
            text: ConsoleText::new(),
            mark: MARK,
            columns: None,
            column: 0,
            dropped: false,
            partial: String::new(),
            mid_line: false,
            together,
            missed: 0,
            lost: 0,
        };
        Ok(Self { shared: Arc::new(Mutex::new(shared)), terminal })
    }

    /// The console is about to write: what its file, if it has one, held before goes.
    pub fn empty_console(&self) -> io::Result<()> {
        match self.lock().file.take() {
            Some(file) => file.set_len(0),
            None => Ok(()),
        }
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

    /// Why standard output takes no more; `None` if it does, or its reader has gone.
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

    /// A thread that panicked in between has written a part of a line at most.
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
        let room = self.columns.map(|columns| columns().saturating_sub(self.mark.len()).max(1));
        let mut shown = String::with_capacity(partial.len() + self.mark.len());
        for character in partial.chars() {
            let columns = match character {
                '\n' => 0,
                // As many as it may take.
                '\t' => 8,
                _ => character.width().unwrap_or(0),
            };
            // The column is that of a line which continues; a new one begins with its mark below.
            let is_full = |room| self.column > 0 && self.column + columns > room;
            if self.mid_line && room.is_some_and(is_full) {
                shown.push('\n');
                self.mid_line = false;
            }
            if !self.mid_line {
                shown.push_str(self.mark);
                self.column = 0;
            }
            shown.push(character);
            self.column += columns;
            self.mid_line = character != '\n';
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

/// Asks how wide a terminal is; `None` if no terminal shows the text.
type Columns = Option<fn() -> usize>;

fn columns_of(terminal: &impl AsFd) -> usize {
    let columns = tcgetwinsize(terminal).map_or(0, |size| usize::from(size.ws_col));
    if columns == 0 { COLUMNS } else { columns }
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
        if shared.dropped {
            return Ok(bytes.len());
        }
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
mod tests;

//! Standard output and standard error.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use anstream::{AutoStream, ColorChoice};

/// How long a message may take to be written.
const PATIENCE: Duration = Duration::from_secs(2);

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ColorWhen {
    /// On a terminal, unless the environment says otherwise (`NO_COLOR`, `TERM=dumb`).
    #[default]
    Auto,
    /// Always, also into a file or a pipe.
    Always,
    /// Never.
    Never,
}

/// A standard stream: buffered, with colours removed where they are not wanted.
///
/// Writing never fails. When the reader has gone (`subpage … | head`) or the stream takes no more (a
/// full disk), what is written later is dropped: the work continues, so that the report is written and
/// the exit status is that of the whole run. A failure is remembered for the end; a reader that has
/// gone is none.
pub struct Output {
    stream: BufWriter<Box<dyn Write + Send>>,
    gone: bool,
    failure: Option<Arc<io::Error>>,
    /// Something was written since the last flush.
    dirty: bool,
    terminal: bool,
}

impl Output {
    /// Standard output.
    pub fn stdout(color: ColorWhen) -> Self {
        let stream = io::stdout();
        let terminal = stream.is_terminal();
        let choice = choose(color, || AutoStream::choice(&stream));
        Self::new(Box::new(AutoStream::new(stream, choice)), terminal)
    }

    /// Standard error.
    pub fn stderr(color: ColorWhen) -> Self {
        let stream = io::stderr();
        let terminal = stream.is_terminal();
        let choice = choose(color, || AutoStream::choice(&stream));
        Self::new(Box::new(AutoStream::new(stream, choice)), terminal)
    }

    /// A file, for text without colours.
    pub fn file(file: File) -> Self {
        Self::new(Box::new(file), false)
    }

    pub(super) fn new(stream: Box<dyn Write + Send>, terminal: bool) -> Self {
        Self { stream: BufWriter::new(stream), gone: false, failure: None, dirty: false, terminal }
    }

    /// Whether a person is likely to watch.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Whether the reader has gone or the stream has failed, so that nothing more is written.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Why the stream takes no more; `None` if it does, or its reader has gone.
    pub fn failure(&self) -> Option<Arc<io::Error>> {
        self.failure.clone()
    }

    /// Nothing more is to be written here, because the stream has failed or nobody reads it where
    /// somebody else wrote to it.
    pub fn abandon(&mut self, failure: Option<Arc<io::Error>>) {
        self.gone = true;
        self.failure = failure;
    }

    fn tolerate<T>(&mut self, result: io::Result<T>, instead: T) -> T {
        match result {
            Ok(done) => done,
            Err(error) => {
                self.gone = true;
                if error.kind() != io::ErrorKind::BrokenPipe {
                    self.failure = Some(Arc::new(error));
                }
                instead
            }
        }
    }
}

/// Writes to standard error, for a moment at most: its reader may have stopped reading.
pub fn tell(color: ColorWhen, text: String) {
    let (done, written) = mpsc::channel();
    let writer = thread::Builder::new().name("message".to_owned()).spawn(move || {
        let mut err = Output::stderr(color);
        // Where nobody reads messages, there is nobody to tell.
        let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
        let _ = done.send(());
    });
    if writer.is_ok() {
        let _ = written.recv_timeout(PATIENCE);
    }
}

/// Whether standard output is to have colours.
pub fn has_color(color: ColorWhen) -> bool {
    choose(color, || AutoStream::choice(&io::stdout())) != ColorChoice::Never
}

fn choose(color: ColorWhen, auto: impl FnOnce() -> ColorChoice) -> ColorChoice {
    match color {
        ColorWhen::Auto => auto(),
        ColorWhen::Always => ColorChoice::AlwaysAnsi,
        ColorWhen::Never => ColorChoice::Never,
    }
}

impl Write for Output {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.gone {
            return Ok(buffer.len());
        }
        self.dirty = true;
        let result = self.stream.write(buffer);
        Ok(self.tolerate(result, buffer.len()))
    }

    fn flush(&mut self) -> io::Result<()> {
        // The stream of a process has a lock, which another thread may hold while nobody reads.
        if !self.gone && std::mem::take(&mut self.dirty) {
            let result = self.stream.flush();
            self.tolerate(result, ());
        }
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.gone {
            // The buffer's own drop would write once more into the closed pipe.
            let sink: Box<dyn Write + Send> = Box::new(io::sink());
            let (_, _) = std::mem::replace(&mut self.stream, BufWriter::new(sink)).into_parts();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Closed;

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_no_error() {
        let mut output = Output::new(Box::new(Closed), false);
        for _ in 0..10_000 {
            writeln!(output, "a line that fills the buffer").expect("dropped");
        }
        output.flush().expect("dropped");
        assert!(output.is_gone() && output.failure().is_none());
    }

    #[test]
    fn a_full_disk_is_remembered() {
        let mut output = Output::new(Box::new(Full), false);
        for _ in 0..10_000 {
            writeln!(output, "a line that fills the buffer").expect("dropped");
        }
        output.flush().expect("dropped");
        assert!(output.is_gone());
        assert_eq!(output.failure().expect("full").kind(), io::ErrorKind::StorageFull);
    }
}

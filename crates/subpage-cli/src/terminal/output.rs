//! Standard output and standard error.

use std::io::{self, BufWriter, IsTerminal, Write};

use anstream::{AutoStream, ColorChoice};

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
/// When the reader has gone (`subpage … | head`), what is written later is dropped without an
/// error: the work goes on, so that the report is written and the exit status is that of the whole
/// run.
pub struct Output {
    stream: BufWriter<Box<dyn Write + Send>>,
    gone: bool,
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

    pub(super) fn new(stream: Box<dyn Write + Send>, terminal: bool) -> Self {
        Self { stream: BufWriter::new(stream), gone: false, terminal }
    }

    /// Whether a person is likely to watch.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Whether the reader has gone, so that nothing more is written.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    fn tolerate<T>(&mut self, result: io::Result<T>, instead: T) -> io::Result<T> {
        match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.gone = true;
                Ok(instead)
            }
            other => other,
        }
    }
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
        let result = self.stream.write(buffer);
        self.tolerate(result, buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.gone {
            return Ok(());
        }
        let result = self.stream.flush();
        self.tolerate(result, ())
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
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let mut output = Output::new(Box::new(Full), false);
        writeln!(output, "x").expect("buffered");
        assert_eq!(output.flush().expect_err("full").kind(), io::ErrorKind::StorageFull);
    }
}

//! What the guest's serial port receives.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use subpage_kvm::vm::VmRequestHandler;

use crate::failure::Failure;
use crate::terminal::style::LOGGED;
use crate::terminal::{ColorWhen, Output};

/// Until a full port is tried again; the second is what that grows to while the guest takes nothing.
const RETRY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// A file, or standard input.
pub(super) struct Input {
    name: String,
    source: Box<dyn Read + Send>,
}

impl Input {
    /// Opens the file; `-` is standard input.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        if path == Path::new("-") {
            return Ok(Self { name: "standard input".to_owned(), source: Box::new(io::stdin()) });
        }
        let name = path.display().to_string();
        let open = || -> io::Result<File> {
            let file = File::open(path)?;
            if file.metadata()?.is_dir() {
                return Err(ErrorKind::IsADirectory.into());
            }
            Ok(file)
        };
        match open() {
            Ok(file) => Ok(Self { name, source: Box::new(file) }),
            Err(error) => Err(Failure::input(format_args!("cannot read the input {name}"), &error)),
        }
    }

    /// Begins to pass everything on, in the order in which it is read.
    ///
    /// Nobody waits for this: a terminal may never give another byte.
    pub(super) fn feed(self, guest: VmRequestHandler, color: ColorWhen) -> Result<(), Failure> {
        let feeding = thread::Builder::new().name("input".to_owned()).spawn(move || {
            let Self { name, mut source } = self;
            if let Err(error) = feed(&mut *source, |bytes| guest.serial_input(bytes)) {
                let mut err = Output::stderr(color);
                // Where nobody reads notes, there is nobody to tell.
                let _ = writeln!(
                    err,
                    "{LOGGED}note:{LOGGED:#} the guest gets no more input: cannot read {name}: {error}"
                );
                let _ = err.flush();
            }
        });
        feeding.map(drop).map_err(|error| Failure::Internal(format!("cannot read input: {error}")))
    }
}

/// Gives `port`, which takes what it has room for, everything that `source` has.
fn feed(source: &mut dyn Read, mut port: impl FnMut(&[u8]) -> usize) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let mut rest = match source.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => &buffer[..read],
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let (least, most) = RETRY;
        let mut pause = least;
        while !rest.is_empty() {
            let taken = port(rest);
            rest = &rest[taken..];
            if taken > 0 {
                pause = least;
            } else {
                thread::sleep(pause);
                pause = (2 * pause).min(most);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A port that has room for a few bytes now and then.
    #[test]
    fn everything_arrives_in_order_at_a_slow_port() {
        let sent: Vec<u8> = (0..10_000_u32).map(|number| number.to_le_bytes()[0]).collect();
        let (mut received, mut calls) = (Vec::new(), 0);
        feed(&mut &sent[..], |bytes| {
            calls += 1;
            let room = if calls % 50 == 0 { 0 } else { bytes.len().min(64) };
            received.extend_from_slice(&bytes[..room]);
            room
        })
        .expect("memory can be read");
        assert!(received == sent);
    }

    #[test]
    fn an_error_in_the_middle_is_told() {
        struct Breaks(u32);
        impl Read for Breaks {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0 += 1;
                match self.0 {
                    1 => Err(ErrorKind::Interrupted.into()),
                    2 => {
                        buffer[0] = 7;
                        Ok(1)
                    }
                    _ => Err(ErrorKind::ConnectionReset.into()),
                }
            }
        }
        let mut received = Vec::new();
        let result = feed(&mut Breaks(0), |bytes| {
            received.extend_from_slice(bytes);
            bytes.len()
        });
        assert_eq!(result.expect_err("it breaks").kind(), ErrorKind::ConnectionReset);
        assert_eq!(received, [7]);
    }
}

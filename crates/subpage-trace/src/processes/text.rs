//! Where the text of recorded processes comes from, and what of it waits to be read.

use std::io::{self, Read};
use std::time::SystemTime;

/// The text of a program that runs, and of the processes that it starts.
pub(crate) trait TextSource {
    /// Number of the program's process.
    fn pid(&self) -> u32;

    /// When it was started.
    fn began(&self) -> SystemTime;

    /// More text and the process that wrote it; `None` when the program has ended, or was ended.
    fn receive(&mut self, out: &mut [u8]) -> io::Result<Option<(u32, usize)>>;

    /// The program was looked at: from now on it need not wait for its reader.
    fn hurry(&mut self);
}

/// Text that has come and is not yet read.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) text: Vec<u8>,
    pub(super) at: usize,
}

impl Read for Waiting {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.text.len() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let read = (&self.text[self.at..]).read(out)?;
        self.at += read;
        Ok(read)
    }
}

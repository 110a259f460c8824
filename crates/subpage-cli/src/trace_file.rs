//! A trace as a guest.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use subpage::address::{ByteRange, Gpa};
use subpage_trace::{TraceReader, Write};

use crate::failure::Failure;
use crate::new_file::is_stdin;
use crate::policy::{NamedRange, Names};

/// An open trace whose header has been read.
pub struct TraceFile {
    /// Its blocks.
    pub reader: TraceReader<BufReader<File>>,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its path as the user named it.
    pub name: String,
}

impl TraceFile {
    /// Opens a trace and reads its header.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let failed = |error: &(dyn std::error::Error + 'static)| {
            Failure::input(format_args!("cannot read the trace {name}"), error)
        };
        let at = if is_stdin(path) { Path::new("/dev/stdin") } else { path };
        let file = File::open(at).map_err(|error| failed(&error))?;
        let bytes = file.metadata().map_err(|error| failed(&error))?.len();
        let reader = TraceReader::new(BufReader::with_capacity(1 << 18, file))
            .map_err(|error| failed(&error))?;
        Ok(Self { reader, bytes, name })
    }

    /// The next block; `false` at the end.
    pub fn next_block(&mut self, out: &mut Vec<Write>) -> Result<bool, Failure> {
        let next = self.reader.next_block(out);
        next.map_err(|error| {
            Failure::input(format_args!("cannot read the trace {}", self.name), &error)
        })
    }

    /// The names that it brings.
    pub fn names(&self) -> Names {
        let names = self.reader.names().into_iter();
        Names::new(
            names
                .map(|name| NamedRange {
                    name: name.name.clone(),
                    start: name.start,
                    length: name.length,
                })
                .collect(),
        )
    }
}

/// The bytes of a recorded write.
///
/// # Panics
/// If the reader let a write pass that its format forbids.
pub fn bytes_of(write: &Write) -> ByteRange {
    ByteRange::new(Gpa::new(write.address), u64::from(write.size))
        .expect("the reader checks every write")
}

//! Files under names that nobody chose.

use std::io;

/// An error of `tempfile` without the name of its file: it means nothing to anybody, and the file that was
/// asked for has another.
pub fn nameless(error: io::Error) -> io::Error {
    match error.to_string().split_once(" at path ") {
        Some((why, _)) => io::Error::new(error.kind(), why),
        None => error,
    }
}

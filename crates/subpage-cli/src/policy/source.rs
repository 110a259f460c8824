//! The text of a policy file.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::MAX_POLICY_BYTES;
use crate::new_file::is_stdin;

/// Why a policy file has no text to parse.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The file cannot be opened or read.
    #[error("cannot read the policy file {}", path.display())]
    Read {
        /// As the user named it.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file has more than [`MAX_POLICY_BYTES`] bytes.
    #[error(
        "the policy file {} is longer than 16 MiB; let one rule cover a longer range, or name regions",
        path.display()
    )]
    TooLong {
        /// As the user named it.
        path: PathBuf,
    },
    /// The file is not text.
    #[error(
        "the policy file {} is not UTF-8: byte {offset} begins no character; save it as UTF-8 text",
        path.display()
    )]
    NotText {
        /// As the user named it.
        path: PathBuf,
        /// Offset of the first wrong byte.
        offset: usize,
    },
}

/// A policy's text and where it came from.
#[derive(Debug, Clone)]
pub struct PolicySource {
    path: PathBuf,
    text: String,
}

impl PolicySource {
    /// Reads a file of at most [`MAX_POLICY_BYTES`] bytes.
    pub fn read(path: &Path) -> Result<Self, SourceError> {
        let at = if is_stdin(path) { Path::new("/dev/stdin") } else { path };
        Self::read_at(at, path)
    }

    /// The same; `-` is a file of that name.
    pub(super) fn read_file(path: &Path) -> Result<Self, SourceError> {
        Self::read_at(path, path)
    }

    fn read_at(at: &Path, path: &Path) -> Result<Self, SourceError> {
        let failed = |source| SourceError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        // The length is that of what is read, not of what the file system claims.
        let file = File::open(at).map_err(failed)?;
        file.take(MAX_POLICY_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > MAX_POLICY_BYTES {
            return Err(SourceError::TooLong { path: path.to_owned() });
        }
        let text = String::from_utf8(bytes).map_err(|error| SourceError::NotText {
            path: path.to_owned(),
            offset: error.utf8_error().valid_up_to(),
        })?;
        Ok(Self { path: path.to_owned(), text })
    }

    /// A text that is not in a file; `path` is what messages call it.
    pub fn from_text(path: &Path, text: String) -> Self {
        Self { path: path.to_owned(), text }
    }

    /// As the user named it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// A path written in the policy, seen from the directory of the policy.
    pub fn relative(&self, path: &Path) -> PathBuf {
        match self.path.parent() {
            Some(directory) => directory.join(path),
            None => path.to_owned(),
        }
    }
}

//! The files that a start reads: regular ones, each read with bounds and never as a whole.
//!
//! The loaders of linux-loader are not used, only its structures and the layout of the zero page.
//! They write to memory before they have seen all of the file, do not look at type, machine or
//! overlaps, leave the memory behind a segment's bytes as it is (wrong for a second start), refuse
//! a file for a damaged note that nobody needs, and take each piece with one read, which ends at
//! 2 GiB.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use subpage::address::Gpa;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryError};

use super::BootError;
use crate::memory::Ram;

/// A regular file with at least one byte, or what was unpacked of one.
#[derive(Debug)]
pub(super) struct Source {
    contents: Contents,
    path: PathBuf,
    bytes: u64,
}

#[derive(Debug)]
enum Contents {
    File(File),
    Unpacked(Vec<u8>),
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Self, BootError> {
        let path = path.to_owned();
        // Without O_NONBLOCK, opening a pipe waits for its other end.
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
        let (file, data) = match opened.and_then(|file| file.metadata().map(|data| (file, data))) {
            Ok(opened) => opened,
            Err(source) => return Err(BootError::Open { path, source }),
        };
        if data.is_dir() {
            return Err(BootError::Directory { path });
        }
        if !data.is_file() {
            return Err(BootError::NotRegular { path });
        }
        match data.len() {
            0 => Err(BootError::Empty { path }),
            bytes => Ok(Self { contents: Contents::File(file), path, bytes }),
        }
    }

    /// What was unpacked of the file at `path`.
    pub(super) fn unpacked(path: PathBuf, contents: Vec<u8>) -> Self {
        let bytes = contents.len() as u64;
        Self { contents: Contents::Unpacked(contents), path, bytes }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Size when it was opened.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the file has `bytes` bytes from `offset`.
    pub(super) fn has(&self, offset: u64, bytes: u64) -> bool {
        offset.checked_add(bytes).is_some_and(|end| end <= self.bytes)
    }

    /// Fills `buffer`; the caller has asked [`Self::has`].
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), BootError> {
        let bytes = buffer.len() as u64;
        let read = match &self.contents {
            Contents::File(file) => file.read_exact_at(buffer, offset),
            Contents::Unpacked(contents) => match part(contents, offset, bytes) {
                Some(part) => {
                    buffer.copy_from_slice(part);
                    Ok(())
                }
                None => Err(io::ErrorKind::UnexpectedEof.into()),
            },
        };
        read.map_err(|source| self.failed(offset, bytes, source))
    }

    /// Copies bytes of the file into guest memory; the caller has asked [`Self::has`], and the
    /// memory is some.
    pub(super) fn copy(
        &self,
        offset: u64,
        bytes: u64,
        ram: &Ram,
        to: Gpa,
    ) -> Result<(), BootError> {
        let failed = |source| self.failed(offset, bytes, source);
        let mut file = match &self.contents {
            Contents::File(file) => file,
            Contents::Unpacked(contents) => {
                let part = part(contents, offset, bytes);
                let part = part.ok_or_else(|| failed(io::ErrorKind::UnexpectedEof.into()))?;
                let written = ram.direct().write_slice(part, GuestAddress(to.as_u64()));
                return written.map_err(|error| failed(io::Error::other(error)));
            }
        };
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        let mut done = 0;
        // One read gives less than was asked for where the kernel has a limit or a signal came.
        while done < bytes {
            let at = GuestAddress(to.as_u64() + done);
            let rest = usize::try_from(bytes - done).expect("64 bits");
            match ram.direct().read_volatile_from(at, &mut file, rest) {
                Ok(0) => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
                Ok(more) => done += more as u64,
                Err(GuestMemoryError::IOError(error)) => return Err(failed(error)),
                Err(error) => return Err(failed(io::Error::other(error))),
            }
        }
        Ok(())
    }

    fn failed(&self, offset: u64, bytes: u64, source: io::Error) -> BootError {
        BootError::Read { path: self.path(), offset, bytes, source }
    }
}

/// Bytes of what is in memory, if it has them.
fn part(contents: &[u8], offset: u64, bytes: u64) -> Option<&[u8]> {
    let offset = usize::try_from(offset).ok()?;
    contents.get(offset..offset.checked_add(usize::try_from(bytes).ok()?)?)
}

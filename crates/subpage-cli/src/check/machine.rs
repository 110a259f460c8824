//! Where the facts come from: files of the kernel, and programs asked for their version.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use thiserror::Error;

use super::kvm::KvmFacts;

/// Most bytes read of a file of the kernel or of a program's output.
const MAX_BYTES: u64 = 4 << 20;

/// Why a program has no version.
#[derive(Debug, Error)]
pub enum ProgramError {
    /// It is not installed.
    #[error("not found in PATH")]
    Missing,
    /// It is there and cannot be run.
    #[error("found, but cannot be run: {0}")]
    Unusable(io::Error),
}

/// Programs that can be asked for their version.
pub trait Programs {
    /// What `program ARGUMENT` prints on both its streams.
    fn output(&self, program: &str, argument: &str) -> Result<String, ProgramError>;
}

/// The programs of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemPrograms;

impl Programs for SystemPrograms {
    fn output(&self, program: &str, argument: &str) -> Result<String, ProgramError> {
        let output =
            Command::new(program).arg(argument).stdin(Stdio::null()).output().map_err(|error| {
                match error.kind() {
                    io::ErrorKind::NotFound => ProgramError::Missing,
                    _ => ProgramError::Unusable(error),
                }
            })?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        Ok(text)
    }
}

/// Asks the KVM behind a device file.
pub type AskKvm = fn(&Path) -> io::Result<KvmFacts>;

/// A machine: its file system, its programs and its KVM.
pub struct Host<P> {
    root: PathBuf,
    programs: P,
    ask_kvm: AskKvm,
}

impl Host<SystemPrograms> {
    /// This machine.
    pub fn this() -> Self {
        Self::new(Path::new("/"), SystemPrograms, KvmFacts::ask)
    }
}

impl<P: Programs> Host<P> {
    /// A machine whose files lie under `root`.
    pub fn new(root: &Path, programs: P, ask_kvm: AskKvm) -> Self {
        Self { root: root.to_owned(), programs, ask_kvm }
    }

    fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// The text of a file of the kernel.
    pub(super) fn text(&self, path: &str) -> io::Result<String> {
        let mut text = String::new();
        File::open(self.path(path))?.take(MAX_BYTES).read_to_string(&mut text)?;
        Ok(text)
    }

    /// Whether a file can be opened for reading and writing.
    pub(super) fn can_open(&self, path: &str) -> io::Result<()> {
        OpenOptions::new().read(true).write(true).open(self.path(path)).map(drop)
    }

    /// A model-specific register of processor 0, through the kernel's msr driver.
    pub(super) fn msr(&self, register: u32) -> io::Result<u64> {
        let mut value = [0; 8];
        let file = File::open(self.path("/dev/cpu/0/msr"))?;
        file.read_exact_at(&mut value, u64::from(register))?;
        Ok(u64::from_le_bytes(value))
    }

    /// What the KVM behind a device file says of itself.
    pub(super) fn kvm(&self, path: &str) -> io::Result<KvmFacts> {
        (self.ask_kvm)(&self.path(path))
    }

    pub(super) fn programs(&self) -> &P {
        &self.programs
    }
}

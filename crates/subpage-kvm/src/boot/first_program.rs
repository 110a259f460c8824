//! When a Linux kernel starts its first program: what it writes just before.
//!
//! `kernel_init` (init/main.c) frees what only initialization needed, makes `__ro_after_init` data
//! read-only, sets `system_state` to `SYSTEM_RUNNING` and executes the first program. The number is that
//! of the enumeration in include/linux/kernel.h: 3 since Linux 5.16, 2 from 4.13 on.

use std::path::Path;

use subpage::address::Gpa;
use subpage_linux::{Kallsyms, KernelImage};
use thiserror::Error;

/// The variable.
const SYMBOL: &str = "system_state";

/// A write that tells that a kernel is about to start its first program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstProgram {
    /// Address of four bytes.
    pub at: Gpa,
    /// What is written there.
    pub running: u32,
}

/// Why it is not known which write that is.
#[derive(Debug, Error)]
pub enum FirstProgramError {
    /// The file is no kernel that can be read.
    #[error(transparent)]
    Image(#[from] subpage_linux::ImageError),
    /// Its symbols cannot be read.
    #[error(transparent)]
    Symbols(#[from] subpage_linux::KallsymsError),
    /// It has no such variable.
    #[error("the kernel has no one variable `{SYMBOL}` that is in its image")]
    NoVariable,
    /// Before the numbers that are known.
    #[error("this is Linux {0}, and 4.13 or later is needed")]
    TooOld(String),
}

/// The write of the kernel in a file, which lies where it was linked for.
pub fn first_program(image: &Path) -> Result<FirstProgram, FirstProgramError> {
    let image = KernelImage::open(image)?;
    let running = match image.version() {
        Some(version) if version >= (5, 16) => 3,
        Some(version) if version >= (4, 13) => 2,
        _ => return Err(FirstProgramError::TooOld(image.release().to_owned())),
    };
    let symbols = Kallsyms::read(&image)?;
    let at = symbols.find(SYMBOL).and_then(|symbol| image.physical(symbol.address));
    let at = at.and_then(|at| Gpa::try_new(at).ok()).ok_or(FirstProgramError::NoVariable)?;
    Ok(FirstProgram { at, running })
}

//! When a Linux kernel starts its first program: what it writes just before.
//!
//! `kernel_init` (init/main.c) frees what only initialization needed, makes `__ro_after_init` data
//! read-only, sets `system_state` to `SYSTEM_RUNNING` and executes the first program. The number is that
//! of the enumeration in include/linux/kernel.h: 3 since Linux 5.16, 2 from 4.13 on.

use thiserror::Error;

use crate::{Kallsyms, KernelImage};

/// The variable.
const SYMBOL: &str = "system_state";

/// A write that tells that a kernel is about to start its first program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstProgram {
    /// Physical address of four bytes, in a kernel that lies where it was linked for.
    pub at: u64,
    /// What is written there.
    pub running: u32,
}

/// Why it is not known which write that is.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FirstProgramError {
    /// It has no such variable.
    #[error("the kernel has no one variable `{SYMBOL}` that is in its image")]
    NoVariable,
    /// Before the numbers that are known.
    #[error("this is Linux {0}, and 4.13 or later is needed")]
    TooOld(String),
}

impl FirstProgram {
    /// The write of a kernel.
    pub fn of(image: &KernelImage, symbols: &Kallsyms) -> Result<Self, FirstProgramError> {
        let running = match image.version() {
            Some(version) if version >= (5, 16) => 3,
            Some(version) if version >= (4, 13) => 2,
            _ => return Err(FirstProgramError::TooOld(image.release().to_owned())),
        };
        let at = symbols.find(SYMBOL).and_then(|symbol| image.physical(symbol.address));
        Ok(Self { at: at.ok_or(FirstProgramError::NoVariable)?, running })
    }
}

//! When a Linux kernel starts its first program, as this VMM watches for it.

use std::path::Path;

use subpage::address::Gpa;
use subpage_linux::{Kallsyms, KernelImage};
use thiserror::Error;

pub use subpage_guard::store::FirstProgram;

/// Why it is not known which write that is.
#[derive(Debug, Error)]
pub enum FirstProgramError {
    /// The file is no kernel that can be read.
    #[error(transparent)]
    Image(#[from] subpage_linux::ImageError),
    /// Its symbols cannot be read.
    #[error(transparent)]
    Symbols(#[from] subpage_linux::KallsymsError),
    /// It does not tell.
    #[error(transparent)]
    Untold(#[from] subpage_linux::FirstProgramError),
}

/// The write of the kernel in a file, which lies where it was linked for.
pub fn first_program(image: &Path) -> Result<FirstProgram, FirstProgramError> {
    let image = KernelImage::open(image)?;
    let symbols = Kallsyms::read(&image)?;
    let found = subpage_linux::FirstProgram::of(&image, &symbols)?;
    let at = Gpa::try_new(found.at).map_err(|_| subpage_linux::FirstProgramError::NoVariable)?;
    Ok(FirstProgram { at, running: found.running })
}

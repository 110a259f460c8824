//! Why a kernel's own table of symbols is not read.

use thiserror::Error;

/// Why a kernel's own table of symbols is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KallsymsError {
    /// There is none, or it is of another form.
    #[error(
        "the kernel has no table of its symbols (CONFIG_KALLSYMS), or has it in a form that is not known; \
         give the list by `map`, or `vmlinux` of the same build by `elf`"
    )]
    NoTokens,
    /// Two of them.
    #[error("the kernel's image has two tables of symbols, and nothing tells which one is its own")]
    Twice,
    /// No names before the tokens.
    #[error(
        "the kernel's table of symbols is of a form that is not known: its names, their count and their \
         markers do not agree"
    )]
    Names,
    /// A name is too long or has other characters than a symbol's.
    #[error("the kernel's table of symbols is damaged: name number {number} is not a symbol's")]
    Name {
        /// Its number in the table, from 0.
        number: usize,
    },
    /// More than are read.
    #[error("the kernel's table of symbols has more than 2,000,000, or more than 64 MiB of names")]
    TooMany,
    /// Searching takes too long.
    #[error("the kernel's table of symbols is damaged: too many places look like its beginning")]
    TooMuchWork,
    /// No reading of the addresses puts the kernel's text where the image has it.
    #[error(
        "the kernel's table of symbols does not fit its image: in no known form its addresses ascend and \
         put `_text` where the image's code begins"
    )]
    Addresses,
    /// Several readings do.
    #[error("the kernel's table of symbols can be read in two ways that both fit its image")]
    TwoReadings,
}

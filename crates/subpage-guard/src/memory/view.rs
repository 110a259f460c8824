//! Write protection of the mapping that KVM has.

use nix::errno::Errno;
use thiserror::Error;

/// Why the protection of pages could not be changed; nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ViewError {
    /// Each run of read-only pages is a mapping of its own, and the kernel has a limit.
    #[error(
        "the kernel has no more mappings for this process: too many separate runs of guarded pages \
         (sysctl vm.max_map_count, 65,530 by default; each run needs two)"
    )]
    TooManyMappings,
    /// Anything else that the kernel says.
    #[error("cannot change the protection of guest pages: {0}")]
    Host(Errno),
}

impl ViewError {
    /// From what `mprotect` or `mmap` says.
    pub const fn of(error: Errno) -> Self {
        match error {
            Errno::ENOMEM => Self::TooManyMappings,
            error => Self::Host(error),
        }
    }
}

//! Results as C has them: 0 or more, or an error number of Linux's with its sign changed.

use subpage::domain::{DomainError, ImportError};
use subpage::errno::Errno;

/// The caller may not, a rule is locked or another's, or a map would permit what the host denies.
pub const SUBPAGE_EPERM: i32 = 1;
/// There is no such rule, tracked range or harvest.
pub const SUBPAGE_ENOENT: i32 = 2;
/// No memory is left for tables or records.
pub const SUBPAGE_ENOMEM: i32 = 12;
/// A pointer is NULL that must not be, or a frame belongs to no slot.
pub const SUBPAGE_EFAULT: i32 = 14;
/// A page is tracked already, or a harvest's change is not in force yet.
pub const SUBPAGE_EBUSY: i32 = 16;
/// Something is there already.
pub const SUBPAGE_EEXIST: i32 = 17;
/// Sub-page permissions are not enabled: call subpage_enable first.
pub const SUBPAGE_ENODEV: i32 = 19;
/// An argument has a value that it cannot have.
pub const SUBPAGE_EINVAL: i32 = 22;
/// A limit is reached, or the buffer is too small.
pub const SUBPAGE_ENOSPC: i32 = 28;

/// Why a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed(pub(crate) Errno);

impl<E: Into<Errno>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

pub(crate) const INVALID: Failed = Failed(Errno::Invalid);
pub(crate) const NULL: Failed = Failed(Errno::Fault);

/// What the C caller gets.
pub(crate) fn status(result: Result<i64, Failed>) -> i64 {
    match result {
        Ok(value) => value,
        Err(Failed(errno)) => errno.to_result(),
    }
}

/// The same for calls that return nothing else.
pub(crate) fn done(result: Result<(), Failed>) -> i64 {
    status(result.map(|()| 0))
}

/// An address or a range that cannot be.
pub(crate) fn valid<T, E>(result: Result<T, E>) -> Result<T, Failed> {
    result.map_err(|_| INVALID)
}

/// A pointer that must not be NULL.
pub(crate) fn given<T>(pointer: Option<T>) -> Result<T, Failed> {
    pointer.ok_or(NULL)
}

/// Why a state was not imported.
pub(crate) fn of_import(error: ImportError) -> Failed {
    match error {
        ImportError::Domain(error) => DomainError::into(error),
        ImportError::TooManyPages => Failed(Errno::NoSpace),
        ImportError::NotEmpty => Failed(Errno::Exists),
        ImportError::NotState
        | ImportError::Version(_)
        | ImportError::Length { .. }
        | ImportError::Checksum
        | ImportError::Record { .. } => INVALID,
    }
}

//! Error numbers of hypercalls.

use subpage::domain::DomainError;
use subpage::frames::OutOfFrames;
use subpage::uapi;

/// Why a call failed; the values are Linux's, and RAX carries them negated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i64)]
pub enum Errno {
    /// EPERM: the caller is not at CPL 0, a rule is locked or another's, or a map would permit what
    /// the host denies.
    NotPermitted = 1,
    /// ENOENT: no such rule or tracking.
    NoEntry = 2,
    /// ENOMEM: no memory for tables or records.
    NoMemory = 12,
    /// EFAULT: not memory of the guest, or a result may not be written there.
    Fault = 14,
    /// EEXIST: it overlaps another, or its number is taken.
    Exists = 17,
    /// EBUSY: a page of the range is tracked already.
    Busy = 16,
    /// ENODEV: sub-page permissions are not enabled.
    NoDevice = 19,
    /// EINVAL: an argument or a field has a value that it cannot have.
    Invalid = 22,
    /// ENOSPC: a limit is reached, or there is not room for the whole result.
    NoSpace = 28,
    /// ENOSYS: no such call.
    NoCall = 38,
}

impl Errno {
    /// The value for RAX: negative, as two's complement.
    pub const fn to_rax(self) -> u64 {
        (-(self as i64)).cast_unsigned()
    }
}

impl From<uapi::Errno> for Errno {
    fn from(errno: uapi::Errno) -> Self {
        match errno {
            uapi::Errno::NotPermitted => Self::NotPermitted,
            uapi::Errno::NoMemory => Self::NoMemory,
            uapi::Errno::Fault => Self::Fault,
            uapi::Errno::NoDevice => Self::NoDevice,
            uapi::Errno::Invalid => Self::Invalid,
        }
    }
}

impl From<DomainError> for Errno {
    fn from(error: DomainError) -> Self {
        match error {
            DomainError::NoSuchRule(_) | DomainError::NoSuchTracking(_) => Self::NoEntry,
            DomainError::AlreadyTracked(_) => Self::Busy,
            other => uapi::Errno::from(other).into(),
        }
    }
}

impl From<OutOfFrames> for Errno {
    fn from(_: OutOfFrames) -> Self {
        Self::NoMemory
    }
}

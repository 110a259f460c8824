//! Error numbers of the interfaces: the `kvm_subpage` requests, hypercalls, the control socket.

use crate::domain::DomainError;
use crate::frames::OutOfFrames;

/// Why a call failed; the values are Linux's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Errno {
    /// EPERM: the caller may not, a rule is locked or another's, or a map would permit what the host
    /// denies.
    NotPermitted = 1,
    /// ENOENT: no such rule or tracking.
    NoEntry = 2,
    /// ENOMEM: no memory for tables, records or the request.
    NoMemory = 12,
    /// EFAULT: a request cannot be read, a result cannot be written, or a frame belongs to no slot.
    Fault = 14,
    /// EBUSY: a page of the range is tracked already.
    Busy = 16,
    /// EEXIST: it overlaps another, or its number is taken.
    Exists = 17,
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
    /// The number as system calls and hypercalls return it: negative.
    pub const fn to_result(self) -> i64 {
        -(self as i64)
    }

    /// The name, as `EPERM`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotPermitted => "EPERM",
            Self::NoEntry => "ENOENT",
            Self::NoMemory => "ENOMEM",
            Self::Fault => "EFAULT",
            Self::Busy => "EBUSY",
            Self::Exists => "EEXIST",
            Self::NoDevice => "ENODEV",
            Self::Invalid => "EINVAL",
            Self::NoSpace => "ENOSPC",
            Self::NoCall => "ENOSYS",
        }
    }
}

impl From<DomainError> for Errno {
    fn from(error: DomainError) -> Self {
        match error {
            DomainError::NotEnabled => Self::NoDevice,
            DomainError::NoSlot(_) => Self::Fault,
            DomainError::OutOfMemory => Self::NoMemory,
            DomainError::Locked(_) | DomainError::NotOwner { .. } => Self::NotPermitted,
            DomainError::NoSuchRule(_) | DomainError::NoSuchTracking(_) => Self::NoEntry,
            DomainError::AlreadyTracked(_) => Self::Busy,
            DomainError::Address(_) | DomainError::Slot(_) | DomainError::AlreadyMapped(_) => {
                Self::Invalid
            }
        }
    }
}

impl From<OutOfFrames> for Errno {
    fn from(_: OutOfFrames) -> Self {
        Self::NoMemory
    }
}

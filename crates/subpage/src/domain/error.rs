//! Why a call on a domain was refused. A refused call has changed nothing (contract C2).

use thiserror::Error;

use crate::address::{AddressError, Gfn};
use crate::frames::OutOfFrames;
use crate::rules::{Owner, RuleId};
use crate::slots::SlotError;
use crate::track::TrackId;

/// Why a call was refused; nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DomainError {
    /// Sub-page permissions have not been enabled.
    #[error("sub-page permissions are not enabled; call enable first")]
    NotEnabled,
    /// An address or a range is not one, or lies beyond the processor's width.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A frame of the call belongs to no slot.
    #[error("guest frame {:#x} belongs to no memory slot", .0.as_u64())]
    NoSlot(Gfn),
    /// No table frame or no memory is left.
    #[error("out of memory for tables or records")]
    OutOfMemory,
    /// A locked rule forbids it.
    #[error("rule {} is locked: nothing can loosen it", .0.0)]
    Locked(RuleId),
    /// There is no such rule.
    #[error("there is no rule {}", .0.0)]
    NoSuchRule(RuleId),
    /// The rule belongs to another owner.
    #[error("rule {} belongs to owner {}", .rule.0, .owner.0)]
    NotOwner {
        /// The rule.
        rule: RuleId,
        /// Whose it is.
        owner: Owner,
    },
    /// A slot cannot be added or changed.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// A frame of the call is mapped already; unmap it first.
    #[error("guest frame {:#x} is mapped already", .0.as_u64())]
    AlreadyMapped(Gfn),
    /// A page of the range is tracked already.
    #[error("a page of the range belongs to tracked range {}", .0.0)]
    AlreadyTracked(TrackId),
    /// There is no such tracked range.
    #[error("there is no tracked range {}", .0.0)]
    NoSuchTracking(TrackId),
}

impl From<OutOfFrames> for DomainError {
    fn from(_: OutOfFrames) -> Self {
        Self::OutOfMemory
    }
}

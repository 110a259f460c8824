//! Why a store is not done.

use subpage_emulate::{Exception, Fault, Incomplete, Refusal, Unsupported};

use super::Failure;

/// Why a store is not done.
pub(super) enum Obstacle {
    /// The guest gets this instead.
    Exception(Exception),
    /// Nothing is as it was at the exit: the guest runs on, and traps again if it has to.
    Again,
    /// None of the instruction's stores goes to a page that traps.
    NotOurs,
    /// The guest cannot go on.
    Cannot(String),
    /// The instruction faults where it is carried out here, as it would in the guest.
    Faulted,
    /// KVM fails.
    Failed(Failure),
}

impl From<Failure> for Obstacle {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<crate::vcpu::ProcessorError> for Obstacle {
    fn from(error: crate::vcpu::ProcessorError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<Fault> for Obstacle {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Exception(exception) => Self::Exception(exception),
            Fault::NotMemory(gpa) => Self::Cannot(format!("there is no memory at {gpa:#x}")),
        }
    }
}

impl From<Refusal> for Obstacle {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Exception(exception) => Self::Exception(exception),
            Refusal::Unsupported(Unsupported::NoStore) => Self::NotOurs,
            Refusal::Unsupported(why) => {
                Self::Cannot(format!("neither KVM nor this program carries out {why}"))
            }
        }
    }
}

impl From<Incomplete> for Obstacle {
    fn from(incomplete: Incomplete) -> Self {
        match incomplete {
            Incomplete::Fault(fault) => fault.into(),
            Incomplete::Trampoline => Self::Faulted,
        }
    }
}

//! Why a write is not done.

use core::fmt;

use subpage_emulate::{Exception, Fault, Incomplete, Refusal, Unsupported};

/// Why a write is not done. Memory has not changed, and nothing was decided.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle<F> {
    /// The guest receives this instead.
    Exception(Exception),
    /// The guest's state has changed since the exit, or changes all the time: let it run on, it traps
    /// again if it has to.
    Again,
    /// None of the bytes goes to a page that traps: the exit has another reason, such as a walk of
    /// the guest's page tables.
    NotOurs,
    /// Software does not carry this instruction out. A backend that can may let the processor do it,
    /// one step with the page open.
    Unknown(Unsupported),
    /// Software does not deliver events outside of IA-32e mode; as [`Unknown`](Self::Unknown).
    LegacyDelivery,
    /// The guest's tables, or the address itself, name an address that is no memory.
    NotMemory(u64),
    /// The instruction faults where it is carried out, and it is not known to fault in the guest.
    Faulted,
    /// The engine has no memory left for the record of a write.
    OutOfMemory,
    /// The backend's own.
    Failed(F),
}

impl<F> Obstacle<F> {
    /// Whether one exact step by the processor itself, with the page open, is a way out: nothing is
    /// wrong but that software does not know what the processor does.
    pub const fn may_step(&self) -> bool {
        matches!(self, Self::NotOurs | Self::Unknown(_) | Self::LegacyDelivery)
    }
}

/// The reason, as a sentence without its end.
impl<F: fmt::Display> fmt::Display for Obstacle<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exception(exception) => {
                write!(f, "the instruction causes exception {}", exception.vector)
            }
            Self::Again => f.write_str("the guest's state has changed since the exit"),
            Self::NotOurs => f.write_str("the instruction stores nothing to a page that traps"),
            Self::Unknown(why) => write!(f, "software does not carry out {why}"),
            Self::LegacyDelivery => {
                f.write_str("software does not deliver an event outside of IA-32e mode")
            }
            Self::NotMemory(gpa) => write!(f, "there is no memory at {gpa:#x}"),
            Self::Faulted => f.write_str("the instruction faults when it is carried out here"),
            Self::OutOfMemory => {
                f.write_str("the engine has no memory left for the record of a write")
            }
            Self::Failed(failure) => failure.fmt(f),
        }
    }
}

impl<F> From<Fault> for Obstacle<F> {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Exception(exception) => Self::Exception(exception),
            Fault::NotMemory(gpa) => Self::NotMemory(gpa),
        }
    }
}

impl<F> From<Refusal> for Obstacle<F> {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Exception(exception) => Self::Exception(exception),
            Refusal::Unsupported(Unsupported::NoStore) => Self::NotOurs,
            Refusal::Unsupported(why) => Self::Unknown(why),
        }
    }
}

impl<F> From<Incomplete> for Obstacle<F> {
    fn from(incomplete: Incomplete) -> Self {
        match incomplete {
            Incomplete::Fault(fault) => fault.into(),
            Incomplete::Trampoline => Self::Faulted,
            Incomplete::Unsupported(why) => Self::Unknown(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A step is a way out only where nothing else is wrong.
    #[test]
    fn what_may_be_stepped_over() {
        type Any = Obstacle<()>;
        for steps in [
            Any::NotOurs,
            Any::LegacyDelivery,
            Any::from(Refusal::Unsupported(Unsupported::NoStore)),
            Any::from(Incomplete::Unsupported(Unsupported::FarCall)),
        ] {
            assert!(steps.may_step(), "{steps:?}");
        }
        for stays in [
            Any::Exception(Exception::general_protection(0)),
            Any::Again,
            Any::NotMemory(0x1000),
            Any::from(Incomplete::Trampoline),
            Any::from(Incomplete::Fault(Fault::NotMemory(0x1000))),
            Any::OutOfMemory,
            Any::Failed(()),
        ] {
            assert!(!stays.may_step(), "{stays:?}");
        }
    }
}

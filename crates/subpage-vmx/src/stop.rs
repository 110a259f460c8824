//! Why the machine stops.

use core::fmt;

use subpage::exit::ExitReason;

use crate::policy::PolicyError;

/// Why the machine stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// A test asked for it.
    Ended {
        /// What it said.
        status: u64,
    },
    /// A guest that has the devices resets the machine.
    Reset {
        /// The port by which it does.
        port: u16,
    },
    /// A guest that has the devices suspends the machine to memory.
    Suspend {
        /// The port by which it does.
        port: u16,
    },
    /// Nobody will wake anybody.
    AllHalted,
    /// A fault during the delivery of a double fault.
    TripleFault,
    /// A rule with the action "stop" was violated.
    Rule(subpage::rules::RuleId),
    /// An access to an address that is not memory.
    NoMemory(u64),
    /// A fetch from memory that may not be executed.
    NotExecutable(u64),
    /// The hypervisor's own tables are damaged, or it has no memory for them.
    Host(subpage::domain::HostError),
    /// The policy cannot come into force.
    Policy(PolicyError),
    /// Something in the tables cannot be.
    Misconfiguration(u64),
    /// An instruction that cannot be completed in software.
    CannotEmulate(&'static str),
    /// The guest's state was refused.
    InvalidState,
    /// An exit that nothing here causes.
    Unknown(ExitReason),
}

impl Stop {
    /// Whether a machine whose devices the guest has begins anew.
    pub const fn is_reset(&self) -> bool {
        matches!(self, Self::Reset { .. } | Self::TripleFault)
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Ended { status } => write!(f, "guest ended with status {status}"),
            Self::Reset { port } => write!(f, "the guest resets the machine (port {port:X}H)"),
            Self::Suspend { port } => write!(
                f,
                "the guest suspends the machine to memory (S3, port {port:X}H), from which it would resume \
                 without the hypervisor; `mem_sleep_default=s2idle` makes Linux sleep otherwise"
            ),
            Self::AllHalted => f.write_str("every processor has halted"),
            Self::TripleFault => f.write_str("triple fault"),
            Self::Rule(id) => write!(f, "rule {} was violated", id.0),
            Self::NoMemory(gpa) => write!(f, "access to {gpa:#x}, where no memory is"),
            Self::NotExecutable(gpa) => write!(f, "fetch from {gpa:#x}, which is not executable"),
            Self::Host(error) => write!(f, "the hypervisor cannot continue: {error:?}"),
            Self::Policy(error) => write!(f, "the policy cannot come into force: {error}"),
            Self::Misconfiguration(gpa) => write!(f, "EPT misconfiguration at {gpa:#x}"),
            Self::CannotEmulate(what) => write!(f, "cannot complete the instruction: {what}"),
            Self::InvalidState => f.write_str("the processor refuses the guest's state"),
            Self::Unknown(reason) => write!(f, "unexpected {reason:?}"),
        }
    }
}

//! How a guest ends, and why a processor of it cannot continue.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use subpage_trap::Record;

use subpage_guard::failure::tell;
pub use subpage_guard::failure::{Failure, InTrap, Structure};

/// Why the guest does not run any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// It has switched itself off.
    PoweredOff,
    /// It has written a status to the exit port.
    Exited {
        /// The byte.
        code: u8,
    },
    /// All processors have halted, and nothing can wake them.
    Halted,
    /// A rule with the action `stop` was met.
    Stopped {
        /// By this write.
        event: Arc<Record>,
    },
    /// A triple fault.
    TripleFault {
        /// Where; 0xfff0 on AMD processors unless it came in a step, since KVM resets the processor
        /// before it tells.
        rip: u64,
        /// What the processor needs that lies in pages that trap.
        in_traps: Vec<InTrap>,
    },
    /// It has asked for a reset, and was not to be started again.
    Reset,
    /// It has asked for a reset after its kernel had said on the console that it panics. A program in the
    /// guest that may write there can say so, too.
    Panicked {
        /// The reason that was given.
        reason: String,
        /// The last lines of the console.
        console: Vec<String>,
    },
    /// KVM, or this program, cannot carry on with it. Its state is kept.
    Failed(Failure),
    /// Somebody asked for it.
    Requested,
}

impl Ending {
    /// Whether the guest cannot continue, though nobody wanted its end: its state is worth a look.
    pub const fn is_failure(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::TripleFault { .. } | Self::Panicked { .. })
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("the guest has switched itself off"),
            Self::Exited { code } => write!(f, "the guest has exited with {code}"),
            Self::Halted => f.write_str("the guest has halted"),
            Self::Stopped { event } => {
                write!(f, "the rule {:?} has stopped the guest", event.rule_or_map())
            }
            Self::TripleFault { rip, in_traps } => {
                write!(f, "the guest has had a triple fault at {rip:#x}")?;
                tell(in_traps, f)
            }
            Self::Reset => f.write_str("the guest has asked for a reset"),
            Self::Panicked { reason, .. } => {
                write!(f, "the guest's kernel has panicked ({reason}) and asked for a reset")
            }
            Self::Failed(failure) => failure.fmt(f),
            Self::Requested => f.write_str("the guest was ended on request"),
        }
    }
}

/// The ending of a machine, once it is there. The first one counts.
#[derive(Debug, Default)]
pub(crate) struct EndingCell {
    ending: Mutex<Option<Ending>>,
    known: Condvar,
}

impl EndingCell {
    /// Sets the ending; false if there was one.
    pub(crate) fn set(&self, ending: Ending) -> bool {
        let mut cell = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        let first = cell.is_none();
        if first {
            *cell = Some(ending);
        }
        self.known.notify_all();
        first
    }

    /// The ending, if there is one.
    pub(crate) fn get(&self) -> Option<Ending> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for an ending, at most so long; whether there is one.
    pub(crate) fn wait(&self, at_most: Duration) -> bool {
        let deadline = Instant::now().checked_add(at_most);
        let mut cell = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        while cell.is_none() {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            cell = match left {
                Some(Duration::ZERO) => return false,
                Some(left) => {
                    self.known.wait_timeout(cell, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.known.wait(cell).unwrap_or_else(PoisonError::into_inner),
            };
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use subpage::address::Gpa;

    use super::*;

    #[test]
    fn pages_without_a_rule_are_not_called_guarded() {
        let in_trap = |structure, page, rule: Option<&str>| InTrap {
            structure,
            page: Gpa::new(page),
            rule: rule.map(str::to_owned),
        };
        let of = |in_traps: &[InTrap]| {
            Ending::TripleFault { rip: 1, in_traps: in_traps.to_vec() }.to_string()
        };
        let (stack, idt) =
            (in_trap(Structure::Stack, 0x1000, Some("a")), in_trap(Structure::Idt, 0x2000, None));
        let start = "the guest has had a triple fault at 0x1";
        assert_eq!(
            of(&[idt.clone(), stack]),
            format!(
                "{start}; in guarded pages: its stack (page 0x1000, rule \"a\"); in pages that trap \
                 without a rule: its IDT (page 0x2000)"
            )
        );
        assert_eq!(
            of(&[idt]),
            format!("{start}; in pages that trap without a rule: its IDT (page 0x2000)")
        );
        assert_eq!(of(&[]), start);
    }
}

//! Why a guest is held, and why it cannot be.

use std::fmt;
use std::sync::Arc;

use subpage::address::ByteRange;
use subpage_trap::Record;
use thiserror::Error;

/// What becomes of a guest that a rule with the action `stop` stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnRuleStop {
    /// It ends.
    #[default]
    End,
    /// It is held, and whoever may let it go.
    Hold,
    /// It is held, and nobody lets it go: whoever [takes](super::Vm::take_rule_stops) the stop ends it.
    Keep,
}

/// Why a processor has had the machine held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopCause {
    /// A rule with the action `stop` was met.
    Rule(Arc<Record>),
    /// These bytes were written, which a debugger watches.
    Watch(ByteRange),
    /// It is at a breakpoint of a debugger.
    Breakpoint,
    /// It has executed one instruction, or waits for an interrupt in it.
    Step,
}

/// A processor that has had the machine held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// Which.
    pub vcpu: u32,
    /// Why.
    pub cause: StopCause,
}

/// Why a guest is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// Somebody wanted it.
    OnRequest,
    /// A processor has stopped, the first of several.
    By(Stop),
}

/// Why a guest cannot be held, stepped or let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HoldError {
    /// It runs.
    #[error("the guest runs: pause it first")]
    Runs,
    /// It does not run.
    #[error("the guest is not held")]
    NotHeld,
    /// It has ended.
    #[error("the guest has ended")]
    Ended,
    /// A debugger has it.
    #[error("a debugger is attached, which alone holds the guest and lets it go")]
    Debugged,
    /// No debugger has it.
    #[error("no debugger is attached")]
    NotDebugged,
    /// A step is not done yet.
    #[error("another step is being made: ask again when it is done")]
    Stepping,
    /// A rule has stopped it, and it ends.
    #[error("a rule has stopped the guest, which is saved and ends")]
    Kept,
    /// It has no such processor.
    #[error("the guest has no processor {0}")]
    NoProcessor(u32),
    /// The instruction takes longer than anybody waits.
    #[error("the processor does not come to its next instruction")]
    Stuck,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnRequest => f.write_str("on request"),
            Self::By(stop) => stop.fmt(f),
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vcpu = self.vcpu;
        match &self.cause {
            StopCause::Rule(event) => {
                write!(f, "the rule {:?} has stopped processor {vcpu}", event.rule_or_map())
            }
            StopCause::Watch(range) => {
                let first = range.first().as_u64();
                write!(f, "processor {vcpu} has written watched bytes at {first:#x}")
            }
            StopCause::Breakpoint => write!(f, "processor {vcpu} is at a breakpoint"),
            StopCause::Step => write!(f, "processor {vcpu} has made a step"),
        }
    }
}

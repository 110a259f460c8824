//! How a guest ends, and why a processor of it cannot continue.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use subpage::address::Gpa;
use subpage_trap::Record;

use crate::vcpu::ProcessorError;

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

/// Why a processor of the guest cannot continue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which processor.
    pub vcpu: u32,
    /// Address of the instruction, if it could be found out.
    pub rip: Option<u64>,
    /// Its bytes, as many as could be read; at most 15.
    pub instruction: Vec<u8>,
    /// What is wrong.
    pub reason: String,
    /// Whether more than the reason is needed to see what is wrong: KVM says no more than that it failed.
    pub(crate) unexplained: bool,
    /// What the processor needs that lies in pages that trap, where the reason does not explain it:
    /// perhaps that is why.
    pub in_traps: Vec<InTrap>,
}

impl Failure {
    /// Without a place.
    pub(crate) const fn new(vcpu: u32, reason: String) -> Self {
        Self {
            vcpu,
            rip: None,
            instruction: Vec::new(),
            reason,
            unexplained: false,
            in_traps: Vec::new(),
        }
    }
}

/// What a processor needs of the guest's memory to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Structure {
    /// What RSP points to.
    Stack,
    /// A stack of the task-state segment, for interrupts and exceptions.
    EventStack,
    /// The interrupt-descriptor table.
    Idt,
    /// The global descriptor table.
    Gdt,
    /// The task-state segment.
    TaskState,
    /// A page table.
    PageTable,
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stack => "its stack",
            Self::EventStack => "a stack for its exceptions",
            Self::Idt => "its IDT",
            Self::Gdt => "its GDT",
            Self::TaskState => "its TSS",
            Self::PageTable => "a page table",
        })
    }
}

/// Something that a processor needs and that lies in a page that traps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InTrap {
    /// What it is.
    pub structure: Structure,
    /// The page.
    pub page: Gpa,
    /// A rule about bytes of the page; none if it traps for an access map, for tracking, or for what lies
    /// in the next page.
    pub rule: Option<String>,
}

impl fmt::Display for InTrap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (page {:#x}", self.structure, self.page.as_u64())?;
        match &self.rule {
            Some(rule) => write!(f, ", rule {rule:?})"),
            None => f.write_str(")"),
        }
    }
}

/// The end of a message about a processor that cannot continue.
fn tell(in_traps: &[InTrap], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (ruled, others): (Vec<&InTrap>, Vec<&InTrap>) =
        in_traps.iter().partition(|it| it.rule.is_some());
    for (pages, of_them) in [("guarded pages", ruled), ("pages that trap without a rule", others)] {
        for (number, one) in of_them.into_iter().enumerate() {
            let before = if number == 0 { format!("; in {pages}: ") } else { ", ".to_owned() };
            write!(f, "{before}{one}")?;
        }
    }
    Ok(())
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "processor {} cannot continue: {}", self.vcpu, self.reason)?;
        if let Some(rip) = self.rip {
            write!(f, "; rip {rip:#x}")?;
        }
        if !self.instruction.is_empty() {
            f.write_str(", instruction")?;
            for byte in &self.instruction {
                write!(f, " {byte:02x}")?;
            }
        }
        tell(&self.in_traps, f)
    }
}

impl From<ProcessorError> for Failure {
    fn from(error: ProcessorError) -> Self {
        Self::new(error.number, error.to_string())
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

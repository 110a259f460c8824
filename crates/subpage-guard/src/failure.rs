//! Why a processor of the guest cannot continue.

use std::fmt;

use subpage::address::Gpa;

use crate::vcpu::ProcessorError;

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
    pub unexplained: bool,
    /// What the processor needs that lies in pages that trap, where the reason does not explain it:
    /// perhaps that is why.
    pub in_traps: Vec<InTrap>,
}

impl Failure {
    /// Without a place.
    pub const fn new(vcpu: u32, reason: String) -> Self {
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
pub fn tell(in_traps: &[InTrap], f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

//! What a step comes to: predicted by the model, observed on the processor, and compared.

use std::fmt;

use subpage::exit::ExitReason;
use subpage_vmx::conformance::answer::StepAnswer;

use crate::case::Word;

/// Basic exit reason of an exception.
pub(crate) const EXCEPTION: u32 = 0;
/// Basic exit reason of VMCALL.
pub(crate) const VMCALL: u32 = 18;

/// Names of the registers in an [`Observed`].
pub(crate) const REGISTERS: [&str; 8] = ["RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI"];

/// How a step ended and what it left; a field that the architecture leaves open is `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Observed {
    /// Exit reason.
    pub(crate) reason: u32,
    /// Exit qualification.
    pub(crate) qualification: Option<u64>,
    /// Guest-physical address.
    pub(crate) gpa: Option<u64>,
    /// Guest-linear address.
    pub(crate) gla: Option<u64>,
    /// VM-exit interruption information.
    pub(crate) event: Option<u32>,
    /// VM-exit interruption error code.
    pub(crate) error: Option<u32>,
    /// IDT-vectoring information.
    pub(crate) vectoring: u32,
    /// VM-exit instruction length. The architecture leaves it open at most of these exits; Bochs
    /// always gives the length of an instruction that it has fetched.
    pub(crate) length: Option<u32>,
    /// RIP.
    pub(crate) rip: u64,
    /// [`REGISTERS`].
    pub(crate) registers: [u64; 8],
    /// Words of the arena that the step changed.
    pub(crate) changed: Vec<Word>,
    /// How many of the step's instructions were begun; no processor tells.
    pub(crate) performed: usize,
}

/// One field in which an observation is not what was predicted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Name of the field.
    pub(crate) field: &'static str,
    /// What the model says.
    pub(crate) predicted: String,
    /// What the processor did.
    pub(crate) observed: String,
}

impl Observed {
    /// Every field in which the processor's answer differs.
    pub(crate) fn differences(&self, answer: &StepAnswer) -> Vec<Difference> {
        let exit = &answer.exit;
        let mut found = Vec::new();
        let mut compare = |field, predicted: Option<u64>, observed: u64| {
            if let Some(predicted) = predicted.filter(|predicted| *predicted != observed) {
                let (predicted, observed) = (format!("{predicted:#x}"), format!("{observed:#x}"));
                found.push(Difference { field, predicted, observed });
            }
        };
        compare("exit reason", Some(self.reason.into()), exit.reason.into());
        // The other fields of another exit mean other things.
        if self.reason == exit.reason {
            compare("qualification", self.qualification, exit.qualification);
            compare("GPA", self.gpa, exit.gpa);
            compare("GLA", self.gla, exit.gla);
            compare("interruption information", self.event.map(u64::from), exit.event.into());
            compare("error code", self.error.map(u64::from), exit.error.into());
            compare("instruction length", self.length.map(u64::from), exit.length.into());
        }
        compare("IDT-vectoring information", Some(self.vectoring.into()), exit.vectoring.into());
        compare("RIP", Some(self.rip), exit.rip);
        for (name, (predicted, observed)) in
            REGISTERS.iter().zip(self.registers.iter().zip(exit.registers))
        {
            compare(name, Some(*predicted), observed);
        }
        if self.changed != answer.changed {
            let only = |these: &[Word], those: &[Word]| {
                let these = these.iter().filter(|word| !those.contains(word));
                let told: Vec<_> =
                    these.map(|(word, value)| crate::describe::word(*word, *value)).collect();
                if told.is_empty() { "nothing more".to_owned() } else { told.join(", ") }
            };
            found.push(Difference {
                field: "memory",
                predicted: only(&self.changed, &answer.changed),
                observed: only(&answer.changed, &self.changed),
            });
        }
        found
    }

    /// The answer that a processor would give; fields that are left open are 0.
    #[cfg(test)]
    pub(crate) fn to_answer(&self, case: u32, step: u32) -> StepAnswer {
        let exit = subpage_vmx::conformance::answer::Exit {
            reason: self.reason,
            qualification: self.qualification.unwrap_or(0),
            gpa: self.gpa.unwrap_or(0),
            gla: self.gla.unwrap_or(0),
            event: self.event.unwrap_or(0),
            error: self.error.unwrap_or(0),
            vectoring: self.vectoring,
            length: self.length.unwrap_or(0),
            rip: self.rip,
            registers: self.registers,
        };
        StepAnswer { case, step, exit, changed: self.changed.clone() }
    }
}

/// An exit reason in words.
pub(crate) struct Reason(pub u32);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            EXCEPTION => write!(f, "exception (0)"),
            VMCALL => write!(f, "VMCALL (18)"),
            reason => match u16::try_from(reason) {
                Ok(reason) => write!(f, "{:?}", ExitReason(reason)),
                Err(_) => write!(f, "exit reason {reason:#x}"),
            },
        }
    }
}

//! What the model says about a step, as a line of text: like an answer, with `-` for what the
//! architecture leaves open.
//!
//! ```text
//! ~CASE STEP REASON QUALIFICATION GPA GLA EVENT ERROR VECTORING RIP R0 .. R7 WORD:VALUE ...
//! ```

use alloc::vec::Vec;
use core::fmt;

use crate::conformance::answer::StepAnswer;

/// Begins a line.
const MARK: char = '~';

/// Names of the registers in the order of an answer.
const REGISTERS: [&str; 8] = ["RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI"];

/// What is predicted of a step; `None` is left open.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Predicted {
    /// Number of the case.
    pub case: u32,
    /// Number of the step in its case, from 0.
    pub step: u32,
    /// Exit reason.
    pub reason: u32,
    /// Exit qualification.
    pub qualification: Option<u64>,
    /// Guest-physical address.
    pub gpa: Option<u64>,
    /// Guest-linear address.
    pub gla: Option<u64>,
    /// VM-exit interruption information.
    pub event: Option<u64>,
    /// VM-exit interruption error code.
    pub error: Option<u64>,
    /// IDT-vectoring information.
    pub vectoring: u32,
    /// RIP.
    pub rip: u64,
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI.
    pub registers: [u64; 8],
    /// Words of the arena that change, ascending, and what they become.
    pub changed: Vec<(u32, u64)>,
}

/// A field in which a processor did not do what was predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deviation {
    /// Name of the field.
    pub field: &'static str,
    /// What the model says.
    pub predicted: u64,
    /// What the processor did.
    pub observed: u64,
    /// Of the memory, the word of the arena.
    pub word: Option<u32>,
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, predicted, observed, word } = self;
        f.write_str(field)?;
        if let Some(word) = word {
            write!(f, " word {word:#x}")?;
        }
        write!(f, " predicted {predicted:#x} observed {observed:#x}")
    }
}

impl Predicted {
    /// Every field in which the answer to this step differs; of the memory, the first word.
    pub fn deviations(&self, answer: &StepAnswer) -> Vec<Deviation> {
        let exit = &answer.exit;
        let mut found = Vec::new();
        let mut compare = |field, predicted: Option<u64>, observed: u64| {
            if let Some(predicted) = predicted.filter(|predicted| *predicted != observed) {
                found.push(Deviation { field, predicted, observed, word: None });
            }
        };
        compare("exit reason", Some(self.reason.into()), exit.reason.into());
        // The other fields of another exit mean other things.
        if self.reason == exit.reason {
            compare("qualification", self.qualification, exit.qualification);
            compare("GPA", self.gpa, exit.gpa);
            compare("GLA", self.gla, exit.gla);
            compare("interruption information", self.event, exit.event.into());
            compare("error code", self.error, exit.error.into());
        }
        compare("IDT-vectoring information", Some(self.vectoring.into()), exit.vectoring.into());
        compare("RIP", Some(self.rip), exit.rip);
        for (name, (predicted, observed)) in
            REGISTERS.iter().zip(self.registers.iter().zip(exit.registers))
        {
            compare(name, Some(*predicted), observed);
        }
        if let Some((word, predicted, observed)) = first_difference(&self.changed, &answer.changed)
        {
            found.push(Deviation { field: "memory", predicted, observed, word: Some(word) });
        }
        found
    }

    /// Reads a line without its end; `None` if it is none of a prediction.
    pub fn parse(line: &str) -> Option<Self> {
        let mut fields = line.strip_prefix(MARK)?.split(' ');
        let mut open = || match fields.next()? {
            "-" => Some(None),
            text => u64::from_str_radix(text, 16).ok().map(Some),
        };
        let mut narrow = || u32::try_from(open()??).ok();
        let (case, step, reason) = (narrow()?, narrow()?, narrow()?);
        let (qualification, gpa, gla, event, error) = (open()?, open()?, open()?, open()?, open()?);
        let vectoring = u32::try_from(open()??).ok()?;
        let rip = open()??;
        let mut registers = [0; 8];
        for register in &mut registers {
            *register = open()??;
        }
        let changed = fields
            .map(|change| {
                let (word, value) = change.split_once(':')?;
                let word = u32::from_str_radix(word, 16).ok()?;
                Some((word, u64::from_str_radix(value, 16).ok()?))
            })
            .collect::<Option<_>>()?;
        Some(Self {
            case,
            step,
            reason,
            qualification,
            gpa,
            gla,
            event,
            error,
            vectoring,
            rip,
            registers,
            changed,
        })
    }
}

/// The first word, with its values, that two lists have not in common; one that a list lacks counts as
/// unchanged, which is told as 0.
fn first_difference(predicted: &[(u32, u64)], observed: &[(u32, u64)]) -> Option<(u32, u64, u64)> {
    let value = |words: &[(u32, u64)], word| {
        words.iter().find(|(at, _)| *at == word).map_or(0, |(_, value)| *value)
    };
    if predicted == observed {
        return None;
    }
    let words = predicted.iter().chain(observed).map(|(word, _)| *word);
    let word = words
        .filter(|word| {
            let has = |list: &[(u32, u64)]| list.iter().find(|(at, _)| at == word).copied();
            has(predicted) != has(observed)
        })
        .min()?;
    Some((word, value(predicted, word), value(observed, word)))
}

impl fmt::Display for Predicted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{MARK}{:x} {:x} {:x}", self.case, self.step, self.reason)?;
        for field in [self.qualification, self.gpa, self.gla, self.event, self.error] {
            match field {
                Some(value) => write!(f, " {value:x}")?,
                None => f.write_str(" -")?,
            }
        }
        write!(f, " {:x} {:x}", self.vectoring, self.rip)?;
        self.registers.iter().try_for_each(|register| write!(f, " {register:x}"))?;
        self.changed.iter().try_for_each(|(word, value)| write!(f, " {word:x}:{value:x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::answer::Exit;
    use std::string::ToString;
    use std::vec;

    fn predicted() -> Predicted {
        Predicted {
            case: 12,
            step: 3,
            reason: 48,
            qualification: Some(0x182),
            gpa: Some(1 << 39),
            rip: 0x20_0000,
            registers: [0, 1, 2, 3, 4, 5, 6, u64::MAX],
            changed: vec![(0, 1), (0x5FFF, 2)],
            ..Predicted::default()
        }
    }

    fn answer() -> StepAnswer {
        let registers = predicted().registers;
        let (gpa, gla, rip) = (1 << 39, 99, 0x20_0000);
        let exit =
            Exit { reason: 48, qualification: 0x182, gpa, gla, rip, registers, ..Exit::default() };
        StepAnswer { case: 12, step: 3, exit, changed: vec![(0, 1), (0x5FFF, 2)] }
    }

    #[test]
    fn lines_are_read_as_written() {
        let line = predicted().to_string();
        assert_eq!(Predicted::parse(&line), Some(predicted()));
        let fields: Vec<_> = line.split(' ').collect();
        for kept in 0..18 {
            assert_eq!(Predicted::parse(&fields[..kept].join(" ")), None);
        }
        assert_eq!(Predicted::parse("=1 2"), None);
    }

    #[test]
    fn every_field_is_compared_but_those_left_open() {
        let fields = |answer: &StepAnswer| -> Vec<_> {
            predicted().deviations(answer).into_iter().map(|deviation| deviation.field).collect()
        };
        assert_eq!(fields(&answer()), [""; 0]);
        let mut other = answer();
        (other.exit.qualification, other.exit.gla, other.exit.registers[7]) = (0x183, 0, 0);
        other.changed.pop();
        assert_eq!(fields(&other), ["qualification", "RDI", "memory"]);
        let memory = predicted().deviations(&other)[2].to_string();
        assert_eq!(memory, "memory word 0x5fff predicted 0x2 observed 0x0");
        let mut other = answer();
        (other.exit.reason, other.exit.gpa) = (18, 0);
        assert_eq!(fields(&other), ["exit reason"]);
        let deviation = predicted().deviations(&other)[0].to_string();
        assert_eq!(deviation, "exit reason predicted 0x30 observed 0x12");
    }

    #[test]
    fn of_memory_the_first_word_is_told() {
        assert_eq!(first_difference(&[(1, 2), (3, 4)], &[(1, 2), (2, 9), (3, 4)]), Some((2, 0, 9)));
        assert_eq!(first_difference(&[(1, 2)], &[(1, 3)]), Some((1, 2, 3)));
        assert_eq!(first_difference(&[(1, 2)], &[(1, 2)]), None);
    }
}

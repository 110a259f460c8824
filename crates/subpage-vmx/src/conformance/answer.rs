//! What the executor answers: one line of text per step.
//!
//! ```text
//! =CASE STEP REASON QUALIFICATION GPA GLA EVENT ERROR VECTORING LENGTH RIP R0 .. R7 WORD:VALUE ...
//! ```
//! All numbers are hexadecimal. R0 to R7 are RAX, RCX, RDX, RBX, RSP, RBP, RSI and RDI; WORD:VALUE
//! are the words of the arena that the step changed, ascending.

use alloc::vec::Vec;
use core::fmt;

/// Begins the line of an answer.
pub const MARK: char = '=';
/// Begins the last line: `conformance: done CASES STEPS`, decimal.
pub const DONE: &str = "conformance: done ";
/// Begins the line that says why the executor stopped early.
pub const FAILED: &str = "conformance: failed: ";

/// A VM exit as the VMCS and the registers tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exit {
    /// Exit reason, all 32 bits.
    pub reason: u32,
    /// Exit qualification.
    pub qualification: u64,
    /// Guest-physical address.
    pub gpa: u64,
    /// Guest-linear address.
    pub gla: u64,
    /// VM-exit interruption information.
    pub event: u32,
    /// VM-exit interruption error code.
    pub error: u32,
    /// IDT-vectoring information.
    pub vectoring: u32,
    /// VM-exit instruction length.
    pub length: u32,
    /// RIP.
    pub rip: u64,
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI.
    pub registers: [u64; 8],
}

/// The answer to one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepAnswer {
    /// Number of the case.
    pub case: u32,
    /// Number of the step in its case, from 0.
    pub step: u32,
    /// How the run ended.
    pub exit: Exit,
    /// Words of the arena that changed, ascending, and what they became.
    pub changed: Vec<(u32, u64)>,
}

/// Writes the start of a line; [`write_change`] and the line end follow.
pub(super) fn write_exit(
    out: &mut impl fmt::Write,
    case: u32,
    step: u32,
    exit: &Exit,
) -> fmt::Result {
    write!(
        out,
        "{MARK}{case:x} {step:x} {:x} {:x} {:x} {:x} {:x} {:x} {:x} {:x} {:x}",
        exit.reason,
        exit.qualification,
        exit.gpa,
        exit.gla,
        exit.event,
        exit.error,
        exit.vectoring,
        exit.length,
        exit.rip,
    )?;
    exit.registers.iter().try_for_each(|register| write!(out, " {register:x}"))
}

/// Writes one changed word.
pub(super) fn write_change(out: &mut impl fmt::Write, word: u32, value: u64) -> fmt::Result {
    write!(out, " {word:x}:{value:x}")
}

impl fmt::Display for StepAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_exit(f, self.case, self.step, &self.exit)?;
        self.changed.iter().try_for_each(|(word, value)| write_change(f, *word, *value))
    }
}

impl StepAnswer {
    /// Reads a line without its end; `None` if it is not the line of an answer.
    pub fn parse(line: &str) -> Option<Self> {
        let mut fields = line.strip_prefix(MARK)?.split(' ');
        let mut wide = || u64::from_str_radix(fields.next()?, 16).ok();
        let mut narrow = || u32::try_from(wide()?).ok();
        let (case, step, reason) = (narrow()?, narrow()?, narrow()?);
        let (qualification, gpa, gla) = (wide()?, wide()?, wide()?);
        let mut narrow = || u32::try_from(wide()?).ok();
        let (event, error, vectoring, length) = (narrow()?, narrow()?, narrow()?, narrow()?);
        let rip = wide()?;
        let mut registers = [0; 8];
        for register in &mut registers {
            *register = wide()?;
        }
        let changed = fields
            .map(|change| {
                let (word, value) = change.split_once(':')?;
                let word = u32::from_str_radix(word, 16).ok()?;
                Some((word, u64::from_str_radix(value, 16).ok()?))
            })
            .collect::<Option<_>>()?;
        let exit = Exit {
            reason,
            qualification,
            gpa,
            gla,
            event,
            error,
            vectoring,
            length,
            rip,
            registers,
        };
        Some(Self { case, step, exit, changed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;
    use std::vec;

    #[test]
    fn lines_are_read_as_written() {
        let exit = Exit {
            reason: 48,
            qualification: 0x5AA,
            gpa: u64::MAX,
            gla: 1 << 39,
            event: 0x8000_0B0E,
            error: 3,
            vectoring: 0x8000_0440,
            length: 7,
            rip: 0x20_0000,
            registers: [0, 1, 2, 3, 4, 5, 6, u64::MAX],
        };
        for changed in [vec![], vec![(0, 1), (0x5FFF, u64::MAX)]] {
            let answer = StepAnswer { case: 12, step: 34, exit, changed };
            let line = answer.to_string();
            assert_eq!(StepAnswer::parse(&line), Some(answer));
            // No field can be missing, but words at the end can.
            let fields: Vec<_> = line.split(' ').collect();
            for kept in 0..19 {
                assert_eq!(StepAnswer::parse(&fields[..kept].join(" ")), None);
            }
        }
        for line in ["", "=", "= ", "=x", "hypervisor: 1", &"=1 2 ".repeat(9)] {
            assert_eq!(StepAnswer::parse(line), None, "{line}");
        }
    }
}

//! What performs cases: a processor behind a command, or in tests the model itself.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use subpage_vmx::conformance::answer::{DONE, FAILED, StepAnswer};

use crate::case::{self, Case};

/// What came back for a batch.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// By case and step.
    pub(crate) answers: HashMap<(u32, u32), StepAnswer>,
    /// Why the batch did not end, in the executor's last words; `None` if it did.
    pub(crate) broken_off: Option<String>,
}

#[cfg(feature = "mutations")]
impl Answers {
    /// Those of one case, as if it had been the only one; `None` if there is none.
    pub(crate) fn of_case(&self, case: usize) -> Option<Self> {
        let case = u32::try_from(case).ok()?;
        let steps = self.answers.iter().filter(|((number, _), _)| *number == case);
        let answers: HashMap<_, _> =
            steps.map(|((_, step), answer)| ((0, *step), answer.clone())).collect();
        (!answers.is_empty()).then_some(Self { answers, broken_off: None })
    }
}

/// Performs batches.
pub(crate) trait Emulator {
    /// Performs cases, numbered from 0.
    fn perform(&mut self, cases: &[Case]) -> Result<Answers>;
}

/// Bochs, started by `PROGRAM bochs run-cases`.
pub(crate) struct Bochs {
    /// The program.
    pub(crate) program: String,
    /// CPU model.
    pub(crate) model: String,
}

/// Lines that are kept to explain a batch that broke off.
const LAST_LINES: usize = 6;

impl Emulator for Bochs {
    fn perform(&mut self, cases: &[Case]) -> Result<Answers> {
        let mut file = tempfile::NamedTempFile::new().context("no temporary file")?;
        file.write_all(&case::batch(cases)).context("cannot write the batch")?;
        let mut child = Command::new(&self.program)
            .args(["bochs", "run-cases", "--model", &self.model, "--cases"])
            .arg(file.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.program))?;
        let output = BufReader::new(child.stdout.take().expect("the output is piped"));
        let read = read(output);
        let status = child.wait().context("cannot wait for the emulator")?;
        let mut answers = read?;
        if let Some(words) = &mut answers.broken_off {
            if answers.answers.is_empty() {
                bail!("{} gave no answer ({status}); its last lines:\n{words}", self.program);
            }
            *words = format!("{status}\n{words}");
        }
        Ok(answers)
    }
}

/// Reads the lines of an executor.
fn read(mut output: impl BufRead) -> Result<Answers> {
    let mut read = Answers::default();
    let mut last = Vec::<String>::new();
    let (mut done, mut line) = (false, Vec::new());
    loop {
        line.clear();
        // Firmware and emulator may print bytes that are no text.
        if output.read_until(b'\n', &mut line).context("cannot read the answers")? == 0 {
            break;
        }
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if let Some(answer) = StepAnswer::parse(text) {
            read.answers.insert((answer.case, answer.step), answer);
            continue;
        }
        done |= text.starts_with(DONE);
        if let Some(reason) = text.strip_prefix(FAILED) {
            last.push(reason.to_owned());
            break;
        }
        if last.len() == LAST_LINES {
            last.remove(0);
        }
        last.push(text.to_owned());
    }
    if !done {
        read.broken_off = Some(last.join("\n"));
    }
    Ok(read)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::predict::ModelledProcessor;

    /// The model in the place of the processor.
    pub(crate) struct Modelled {
        pub(crate) processor: ModelledProcessor,
        /// Batches performed.
        pub(crate) batches: usize,
    }

    impl Emulator for Modelled {
        fn perform(&mut self, cases: &[Case]) -> Result<Answers> {
            self.batches += 1;
            let mut answers = Answers::default();
            for (number, case) in (0..).zip(cases) {
                let outcomes = self.processor.predict(case).unwrap_or_default();
                for (step, outcome) in (0..).zip(outcomes) {
                    answers.answers.insert((number, step), outcome.to_answer(number, step));
                }
            }
            Ok(answers)
        }
    }

    #[test]
    fn a_batch_that_breaks_off_is_told_from_one_that_ends() {
        let line = "=0 1 12 0 0 0 0 0 0 3 200000 0 0 0 0 0 0 0 0 7:8";
        let ends = format!("banner\n{line}\nconformance: done 1 1\n");
        let answers = read(ends.as_bytes()).expect("readable");
        assert_eq!(answers.broken_off, None);
        assert_eq!(answers.answers[&(0, 1)].changed, [(7, 8)]);
        let answers = read(&b"a\n\xFF\nconformance: failed: no VMX\nmore"[..]).expect("readable");
        assert_eq!(answers.broken_off.as_deref(), Some("a\n\u{FFFD}\nno VMX"));
        let cut = read(&ends.as_bytes()[..30]).expect("readable");
        assert!(cut.answers.is_empty() && cut.broken_off.is_some());
    }
}

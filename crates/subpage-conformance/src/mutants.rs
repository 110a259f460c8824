//! Judges the judge: models with known wrong behaviours are compared with the processor, which has to
//! contradict each.
//!
//! Cases come from the model without any, and so do not favour those that show one. That model has to be
//! right in all of them.

use std::io::Write;

use anyhow::{Result, bail};
use subpage_model::{Deviations, Mutation};

use crate::emulator::{Answers, Emulator};
use crate::generate::{Generator, Predicted};
use crate::judge::judge;
use crate::predict::ModelledProcessor;

/// Cases in a batch.
const BATCH: usize = 100;

/// A model with one wrong behaviour.
struct Mutant {
    name: String,
    processor: ModelledProcessor,
    /// Accesses until the processor did not do what it says, and what it did.
    contradicted: Option<(usize, String)>,
}

/// Compares all mutants within so many accesses; whether each was contradicted, and `processor` was not.
pub(crate) fn run(
    seed: u64,
    accesses: usize,
    processor: ModelledProcessor,
    emulator: &mut impl Emulator,
    out: &mut impl Write,
) -> Result<bool> {
    let mut generator = Generator::new(seed, processor);
    let mut mutants = all(processor);
    let mut compared = 0;
    while compared < accesses && mutants.iter().any(|mutant| mutant.contradicted.is_none()) {
        let predicted: Vec<_> = (0..BATCH).map(|_| generator.case()).collect();
        let cases: Vec<_> = predicted.iter().map(|predicted| predicted.case.clone()).collect();
        let answers = emulator.perform(&cases)?;
        if let Some(words) = &answers.broken_off {
            bail!("the emulator stopped in the middle of a batch: {words}");
        }
        if let Some(disagreement) = judge(&predicted, &answers).first() {
            writeln!(out, "the model itself is contradicted: {}", disagreement.signature)?;
            return Ok(false);
        }
        for mutant in mutants.iter_mut().filter(|mutant| mutant.contradicted.is_none()) {
            mutant.judge(compared, &predicted, &answers);
        }
        compared += predicted.iter().map(Predicted::accesses).sum::<usize>();
    }
    let mut found = 0;
    for Mutant { name, contradicted, .. } in &mutants {
        match contradicted {
            Some((after, how)) if *after <= accesses => {
                found += 1;
                writeln!(out, "{name}: contradicted after {after} accesses: {how}")?;
            }
            _ => writeln!(out, "{name}: not contradicted within {accesses} accesses")?,
        }
    }
    writeln!(out, "mutations: {found} of {} contradicted", mutants.len())?;
    Ok(found == mutants.len())
}

impl Mutant {
    /// Looks for the first case of a batch in which this model is wrong; `before` accesses were compared
    /// before the batch.
    fn judge(&mut self, before: usize, predicted: &[Predicted], answers: &Answers) {
        let mut after = before;
        for (number, right) in predicted.iter().enumerate() {
            after += right.accesses();
            // One that predicts nothing for the case says nothing wrong about it.
            let Ok(outcomes) = self.processor.predict(&right.case) else { continue };
            let wrong = Predicted { case: right.case.clone(), outcomes };
            let Some(alone) = answers.of_case(number) else { continue };
            if let Some(disagreement) = judge(std::slice::from_ref(&wrong), &alone).pop() {
                self.contradicted = Some((after, disagreement.signature));
                return;
            }
        }
    }
}

fn all(processor: ModelledProcessor) -> Vec<Mutant> {
    let mutant = |(name, deviations)| Mutant {
        name,
        processor: ModelledProcessor { deviations, ..processor },
        contradicted: None,
    };
    deviations(processor.deviations).into_iter().map(mutant).collect()
}

/// The wrong behaviours of others, and each in which this processor differs from the architecture left
/// out; with their names.
pub(crate) fn deviations(right: Deviations) -> Vec<(String, Deviations)> {
    let architecture = [
        ("every-byte", Deviations { first_byte_only: false, ..right }),
        ("guest-flags-need-ept", Deviations { guest_ad_writes_bypass_ept: false, ..right }),
        ("parts-together", Deviations { parts_not_atomic: false, ..right }),
        ("walks-report-reads", Deviations { walk_reports_write_only: false, ..right }),
        ("pages-together", Deviations { pages_one_by_one: false, ..right }),
        ("large-leaf-bit-12", Deviations { large_leaf_bit_12_ignored: false, ..right }),
    ];
    let wrong = Mutation::ALL
        .map(|mutation| (mutation.name(), Deviations { mutation: Some(mutation), ..right }));
    let named = |(name, deviations): (&str, _)| (name.to_owned(), deviations);
    wrong.into_iter().chain(architecture).map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Case;

    /// The model as a processor.
    struct Modelled(ModelledProcessor);

    impl Emulator for Modelled {
        fn perform(&mut self, cases: &[Case]) -> Result<Answers> {
            let mut answers = Answers::default();
            for (case, number) in cases.iter().zip(0..) {
                let outcomes = self.0.predict(case).expect("what was generated is predicted");
                for (outcome, step) in outcomes.iter().zip(0..) {
                    answers.answers.insert((number, step), outcome.to_answer(number, step));
                }
            }
            Ok(answers)
        }
    }

    fn processor(deviations: Deviations) -> ModelledProcessor {
        ModelledProcessor {
            sub_page: true,
            advanced_information: true,
            smap: true,
            shadow_stacks: true,
            deviations,
        }
    }

    fn judged(actual: Deviations, accesses: usize) -> (bool, String) {
        let mut out = Vec::new();
        let mut emulator = Modelled(processor(actual));
        let good = run(1, accesses, processor(Deviations::BOCHS), &mut emulator, &mut out);
        (good.expect("nothing fails"), String::from_utf8(out).expect("our text"))
    }

    #[test]
    fn each_wrong_model_is_contradicted_by_the_right_one() {
        let (good, text) = judged(Deviations::BOCHS, 20_000);
        assert!(good, "{text}");
    }

    #[test]
    fn one_that_nobody_contradicts_is_a_failure() {
        let (good, text) = judged(Deviations::BOCHS, 1);
        assert!(!good && text.contains("not contradicted within 1 accesses"), "{text}");
    }

    #[test]
    fn a_model_that_is_wrong_itself_proves_nothing() {
        let (good, text) = judged(Deviations::NONE, 20_000);
        assert!(!good && text.contains("the model itself is contradicted"), "{text}");
    }
}

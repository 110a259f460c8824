//! One run: batches of fresh cases until there were enough, and each kind of disagreement shrunk.

use std::collections::{BTreeMap, HashSet};
use std::io::Write;

use anyhow::{Context, Result};

use crate::describe;
use crate::emulator::Emulator;
use crate::generate::{Generator, Predicted};
use crate::judge::judge;
use crate::outcome::Reason;
use crate::predict::ModelledProcessor;
use crate::shrink::{Shown, shrink};

/// Cases in a batch: about 4,000 accesses, a second or two of Bochs.
const BATCH: usize = 250;

/// Kinds of disagreement that are shrunk and shown; all are counted.
const SHOWN: usize = 4;

/// What a run came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tally {
    /// Accesses compared.
    pub(crate) accesses: usize,
    /// Cases that showed a disagreement.
    pub(crate) disagreements: usize,
}

/// Compares at least `accesses` accesses of random cases.
///
/// Progress and disagreements are written to `out`.
pub(crate) fn run(
    name: &str,
    seed: u64,
    accesses: usize,
    processor: ModelledProcessor,
    emulator: &mut impl Emulator,
    out: &mut impl Write,
) -> Result<Tally> {
    let mut generator = Generator::new(seed, processor);
    let mut tally = Tally::default();
    let mut known = HashSet::new();
    let mut endings = BTreeMap::<u32, usize>::new();
    while tally.accesses < accesses {
        let mut predicted = Vec::new();
        let mut in_batch = 0;
        while predicted.len() < BATCH && tally.accesses + in_batch < accesses {
            let case = generator.case();
            in_batch += case.accesses();
            predicted.push(case);
        }
        let cases: Vec<_> = predicted.iter().map(|predicted| predicted.case.clone()).collect();
        let answers = emulator.perform(&cases)?;
        let broken_off = answers.broken_off.as_deref();
        if let Some(words) = broken_off {
            writeln!(out, "{name}: the emulator stopped in the middle of a batch: {words}")?;
        }
        let found = judge(&predicted, &answers);
        let answered = |number: usize| {
            u32::try_from(number).is_ok_and(|case| answers.answers.contains_key(&(case, 0)))
        };
        let compared = predicted.iter().enumerate().filter(|(number, _)| answered(*number));
        let accesses_before = tally.accesses;
        for (_, case) in compared {
            tally.accesses += case.accesses();
            for outcome in &case.outcomes {
                *endings.entry(outcome.reason).or_default() += 1;
            }
        }
        tally.disagreements += found.len();
        let counts: Vec<_> = predicted.iter().map(Predicted::accesses).collect();
        let mut cases: Vec<_> = predicted.into_iter().map(Some).collect();
        for disagreement in found {
            let new = known.insert(disagreement.signature.clone());
            if !new || known.len() > SHOWN {
                continue;
            }
            let after = accesses_before + counts[..=disagreement.case].iter().sum::<usize>();
            writeln!(
                out,
                "{name}: disagreement after {after} accesses, shrinking: {}",
                disagreement.signature
            )?;
            out.flush()?;
            let predicted = cases[disagreement.case].take().expect("one per case");
            let shown = shrink(Shown { predicted, disagreement }, processor, emulator)?;
            show(&shown, out)?;
        }
        writeln!(
            out,
            "{name}: {} of {accesses} accesses, {} disagreements",
            tally.accesses.min(accesses),
            tally.disagreements
        )?;
        out.flush()?;
        anyhow::ensure!(
            broken_off.is_none() || tally.disagreements > 0,
            "the emulator stopped without a case to blame"
        );
        if broken_off.is_some() {
            // What stopped it once does so again.
            break;
        }
    }
    let endings: Vec<_> =
        endings.iter().map(|(reason, steps)| format!("{} {steps}", Reason(*reason))).collect();
    writeln!(out, "{name}: steps by how they end: {}", endings.join(", "))?;
    if known.len() > SHOWN {
        writeln!(
            out,
            "{name}: {} kinds of disagreement, of which {SHOWN} are shown:",
            known.len()
        )?;
        let mut kinds: Vec<_> = known.into_iter().collect();
        kinds.sort();
        for kind in kinds {
            writeln!(out, "  {kind}")?;
        }
    }
    Ok(tally)
}

/// Writes a disagreement for people, and the case for `replay`.
pub(crate) fn show(shown: &Shown, out: &mut impl Write) -> Result<()> {
    let Shown { predicted: Predicted { case, outcomes }, disagreement } = shown;
    write!(out, "{}", describe::case(case))?;
    let step = disagreement.step;
    writeln!(out, "  step {step} was predicted to end in {}", Reason(outcomes[step].reason))?;
    if disagreement.differences.is_empty() {
        writeln!(out, "    and the processor gave no answer")?;
    }
    for difference in &disagreement.differences {
        let (predicted, observed) = (&difference.predicted, &difference.observed);
        writeln!(out, "    {}: predicted {predicted}, observed {observed}", difference.field)?;
    }
    let json = serde_json::to_string(case).context("a case has a written form")?;
    writeln!(out, "  case: {json}")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use subpage_model::Deviations;

    use super::*;
    use crate::case::{Case, batch};
    use crate::emulator::tests::Modelled;
    use subpage_vmx::conformance::format::Batch;

    const BOCHS: ModelledProcessor = ModelledProcessor {
        sub_page: true,
        advanced_information: true,
        smap: true,
        shadow_stacks: true,
        deviations: Deviations::BOCHS,
    };

    fn compare(observed: Deviations, accesses: usize) -> (Tally, String, usize) {
        let processor = ModelledProcessor { deviations: observed, ..BOCHS };
        let mut emulator = Modelled { processor, batches: 0 };
        let mut out = Vec::new();
        let tally = run("fake", 11, accesses, BOCHS, &mut emulator, &mut out).expect("no I/O");
        (tally, String::from_utf8(out).expect("text"), emulator.batches)
    }

    #[test]
    fn a_processor_as_predicted_agrees() {
        let (tally, out, _) = compare(Deviations::BOCHS, 5000);
        assert_eq!(tally.disagreements, 0, "{out}");
        assert!(tally.accesses >= 5000);
        assert!(out.contains("fake: 5000 of 5000 accesses, 0 disagreements\n"));
    }

    /// Each known deviation that the processor does not have is found, and shrunk to a case of one
    /// step, one access and the few words that it takes.
    #[test]
    fn every_deviation_is_found_and_shrunk() {
        /// Two pages' walks through EPT, SPPT and guest tables.
        const MOST_STORES: usize = 24;
        let bochs = Deviations::BOCHS;
        for (name, observed) in [
            ("first byte", Deviations { first_byte_only: false, ..bochs }),
            ("guest A/D", Deviations { guest_ad_writes_bypass_ept: false, ..bochs }),
            ("parts", Deviations { parts_not_atomic: false, ..bochs }),
            ("walk read", Deviations { walk_reports_write_only: false, ..bochs }),
            ("one by one", Deviations { pages_one_by_one: false, ..bochs }),
            ("bit 12", Deviations { large_leaf_bit_12_ignored: false, ..bochs }),
        ] {
            let (tally, out, batches) = compare(observed, 6000);
            assert!(tally.disagreements > 0, "{name}");
            assert!(batches < 10 + 4 * 81, "{name}: {batches} batches");
            let line = out.lines().find_map(|line| line.trim().strip_prefix("case: "));
            let case: Case = serde_json::from_str(line.expect("a case is shown")).expect("JSON");
            // None if fetching the code shows it.
            assert!(case.steps.len() == 1 && case.accesses() <= 1, "{name}: {out}");
            assert!(case.stores.len() <= MOST_STORES, "{name}: {out}");
            // Read back, it shows the same again.
            let processor = ModelledProcessor { deviations: observed, ..BOCHS };
            assert_ne!(processor.predict(&case), BOCHS.predict(&case), "{name}");
        }
    }

    #[test]
    fn an_emulator_that_stops_is_blamed_on_the_case_that_stopped_it() {
        /// Stops for good before a step that ends in an EPT misconfiguration.
        struct Stopping(Modelled);
        impl Emulator for Stopping {
            fn perform(&mut self, cases: &[Case]) -> Result<crate::emulator::Answers> {
                let mut answers = self.0.perform(cases)?;
                let stops = |key: &(u32, u32)| answers.answers[key].exit.reason == 49;
                if let Some(first) = answers.answers.keys().filter(|key| stops(key)).min().copied()
                {
                    answers.answers.retain(|key, _| *key < first);
                    answers.broken_off = Some("panic".to_owned());
                }
                Ok(answers)
            }
        }
        let mut emulator = Stopping(Modelled { processor: BOCHS, batches: 0 });
        let mut out = Vec::new();
        let tally = run("fake", 3, 5000, BOCHS, &mut emulator, &mut out).expect("no I/O");
        let out = String::from_utf8(out).expect("text");
        assert_eq!(tally.disagreements, 1, "{out}");
        assert!(tally.accesses < 5000);
        assert!(out.contains("EPT misconfiguration (49), no answer"), "{out}");
    }

    #[test]
    fn what_is_generated_is_a_batch_for_the_executor() {
        let mut generator = Generator::new(5, BOCHS);
        let cases: Vec<_> = (0..BATCH).map(|_| generator.case().case).collect();
        let bytes = batch(&cases);
        assert!(bytes.len() < 7 << 20, "{} bytes are more than a module may have", bytes.len());
        let batch = Batch::parse(&bytes).expect("well formed");
        for (case, read) in cases.iter().zip(batch.cases()) {
            assert_eq!(read.stores.len(), case.stores.len());
            assert_eq!(read.steps().count(), case.steps.len());
            case.check().expect("generated");
        }
    }
}

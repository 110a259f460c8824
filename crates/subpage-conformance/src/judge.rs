//! Compares predictions with answers.

use crate::emulator::Answers;
use crate::generate::Predicted;
use crate::outcome::{Difference, EXCEPTION, Observed, Reason, VMCALL};

/// One case in which the processor did not do what the model said: the first step that differs.
///
/// What follows in the same case rests on other memory and says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disagreement {
    /// Index of the case in its batch.
    pub(crate) case: usize,
    /// The step.
    pub(crate) step: usize,
    /// What differs; empty if there was no answer.
    pub(crate) differences: Vec<Difference>,
    /// What was predicted and what was seen, in short: disagreements with the same signature are
    /// likely to be one.
    pub(crate) signature: String,
}

/// Finds every case with a disagreement.
///
/// Where a batch broke off, the first step without an answer is a disagreement; what was not run is
/// none.
pub(crate) fn judge(predicted: &[Predicted], answers: &Answers) -> Vec<Disagreement> {
    let mut found = Vec::new();
    for (number, case) in predicted.iter().enumerate() {
        for (step, outcome) in case.outcomes.iter().enumerate() {
            let key = (u32::try_from(number), u32::try_from(step));
            let (Ok(number_32), Ok(step_32)) = key else { unreachable!("batches are small") };
            let Some(answer) = answers.answers.get(&(number_32, step_32)) else {
                let signature = format!("{}, no answer", Reason(outcome.reason));
                found.push(Disagreement { case: number, step, differences: Vec::new(), signature });
                return found;
            };
            let differences = outcome.differences(answer);
            if !differences.is_empty() {
                let signature = signature(outcome, answer.exit.reason, &differences);
                found.push(Disagreement { case: number, step, differences, signature });
                break;
            }
        }
    }
    found
}

fn signature(outcome: &Observed, observed: u32, differences: &[Difference]) -> String {
    if outcome.reason == observed {
        let fields: Vec<_> = differences.iter().map(|difference| difference.field).collect();
        return format!("{}: {}", Reason(observed), fields.join(", "));
    }
    // Whether an access that EPT lets pass then ends its step in VMCALL or in an exception has
    // nothing to do with the disagreement.
    let name = |reason| match reason {
        VMCALL | EXCEPTION => "no EPT exit".to_owned(),
        reason => Reason(reason).to_string(),
    };
    format!("{} predicted, {} observed", name(outcome.reason), name(observed))
}

//! Compares the answers of an executor, as they come, with the predictions.

use alloc::string::String;
use core::fmt;
use core::iter::Peekable;
use core::str::Lines;

use super::predicted::Predicted;
use crate::conformance::answer::StepAnswer;

/// Deviations that are told; all are counted.
const TOLD: u64 = 200;

/// What the comparison came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Steps compared.
    pub steps: u64,
    /// Cases with a deviation.
    pub deviations: u64,
    /// Predictions that no answer came for, in cases that had not deviated before.
    pub unanswered: u64,
}

/// Takes the lines of answers.
///
/// What follows a deviation in the same case rests on other memory and is not compared.
pub struct Judge<'a, T> {
    predicted: Peekable<Lines<'a>>,
    line: String,
    tell: T,
    /// The case that has deviated last.
    deviated: Option<u32>,
    tally: Tally,
}

impl<'a, T: FnMut(fmt::Arguments<'_>)> Judge<'a, T> {
    /// With predictions in the order of their steps; `tell` gets a line for each deviation.
    pub fn new(predicted: &'a str, tell: T) -> Self {
        let predicted = predicted.lines().peekable();
        Self { predicted, line: String::new(), tell, deviated: None, tally: Tally::default() }
    }

    /// What the comparison came to, once all answers have come.
    pub fn finish(self) -> Tally {
        let Self { predicted, deviated, tally, .. } = self;
        let left = predicted.filter_map(Predicted::parse);
        let left = left.filter(|predicted| deviated != Some(predicted.case)).count() as u64;
        Tally { unanswered: tally.unanswered + left, ..tally }
    }

    /// Counts a prediction that nothing answers.
    fn pass_over(&mut self, predicted: Option<&Predicted>) {
        if let Some(predicted) = predicted
            && self.deviated != Some(predicted.case)
        {
            self.tally.unanswered += 1;
        }
    }

    fn judge(&mut self, answer: &StepAnswer) {
        let Some(predicted) = self.prediction(answer) else { return };
        let case = answer.case;
        if self.deviated == Some(case) {
            return;
        }
        self.tally.steps += 1;
        let deviations = predicted.deviations(answer);
        if deviations.is_empty() {
            return;
        }
        self.deviated = Some(case);
        self.tally.deviations += 1;
        if self.tally.deviations > TOLD {
            return;
        }
        let mut text = String::new();
        for deviation in deviations {
            let comma = if text.is_empty() { "" } else { ", " };
            // Writing to a string cannot fail.
            let _ = fmt::write(&mut text, format_args!("{comma}{deviation}"));
        }
        (self.tell)(format_args!("deviation in case {case} step {}: {text}", answer.step));
    }

    /// The prediction for the step of an answer; earlier ones that nothing answers are counted.
    fn prediction(&mut self, answer: &StepAnswer) -> Option<Predicted> {
        while let Some(predicted) = self.predicted.peek().map(|line| Predicted::parse(line)) {
            let place = predicted.as_ref().map(|predicted| (predicted.case, predicted.step));
            if place > Some((answer.case, answer.step)) {
                return None;
            }
            self.predicted.next();
            if place == Some((answer.case, answer.step)) {
                return predicted;
            }
            self.pass_over(predicted.as_ref());
        }
        None
    }
}

impl<T: FnMut(fmt::Arguments<'_>)> fmt::Write for Judge<'_, T> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive('\n') {
            self.line.push_str(part);
            if part.ends_with('\n') {
                let answer = StepAnswer::parse(self.line.trim_end());
                self.line.clear();
                if let Some(answer) = answer {
                    self.judge(&answer);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::answer::Exit;
    use core::fmt::Write as _;
    use std::format;
    use std::string::ToString;
    use std::vec::Vec;

    fn answer(case: u32, step: u32, reason: u32) -> StepAnswer {
        let exit = Exit { reason, ..Exit::default() };
        StepAnswer { case, step, exit, changed: Vec::new() }
    }

    fn judged(predicted: &[(u32, u32, u32)], answers: &[(u32, u32, u32)]) -> (Tally, Vec<String>) {
        let line = |&(case, step, reason): &(u32, u32, u32)| {
            format!("{}\n", Predicted { case, step, reason, ..Predicted::default() })
        };
        let text = predicted.iter().map(line).collect::<Vec<_>>().concat();
        let mut told = Vec::new();
        let mut judge = Judge::new(&text, |line| told.push(line.to_string()));
        for &(case, step, reason) in answers {
            writeln!(judge, "{}", answer(case, step, reason)).expect("nothing fails");
        }
        let tally = judge.finish();
        (tally, told)
    }

    #[test]
    fn what_follows_a_deviation_in_its_case_is_not_compared() {
        let (tally, told) = judged(
            &[(0, 0, 18), (0, 1, 48), (0, 2, 18), (2, 0, 66)],
            &[(0, 0, 18), (0, 1, 18), (0, 2, 48), (1, 0, 18), (2, 0, 66)],
        );
        assert_eq!(tally, Tally { steps: 3, deviations: 1, unanswered: 0 });
        assert_eq!(told, ["deviation in case 0 step 1: exit reason predicted 0x30 observed 0x12"]);
    }

    #[test]
    fn predictions_that_nothing_answers_are_counted() {
        let predicted = [(0, 0, 18), (0, 1, 18), (1, 0, 18), (2, 0, 48), (2, 1, 18), (3, 0, 18)];
        // The first case ends early, the second is left out, the third deviates, the last is cut off.
        let (tally, told) = judged(&predicted, &[(0, 0, 18), (2, 0, 18)]);
        assert_eq!(tally, Tally { steps: 2, deviations: 1, unanswered: 3 });
        assert_eq!(told.len(), 1);
    }

    #[test]
    fn without_predictions_nothing_is_compared() {
        assert_eq!(judged(&[], &[(0, 0, 18)]).0, Tally::default());
        let mut judge = Judge::new("no prediction\n", |_| ());
        writeln!(judge, "{}", answer(0, 0, 18)).expect("nothing fails");
        assert_eq!(judge.finish(), Tally::default());
    }
}

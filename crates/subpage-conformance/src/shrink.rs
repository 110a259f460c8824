//! Makes a case that shows a disagreement as small as it goes.
//!
//! Each round makes every single simplification of the case, performs all of them in one batch, and
//! keeps the smallest that still shows the same disagreement. So a round costs one start of the
//! emulator, however many ideas there are.

use anyhow::Result;

use crate::case::{Case, Mode, Word};
use crate::emulator::Emulator;
use crate::generate::Predicted;
use crate::instruction::Instruction;
use crate::judge::{Disagreement, judge};
use crate::predict::ModelledProcessor;

/// A case with its disagreement.
pub(crate) struct Shown {
    /// The case and its prediction.
    pub(crate) predicted: Predicted,
    /// What differs.
    pub(crate) disagreement: Disagreement,
}

/// Rounds after which a case is small enough.
const ROUNDS: usize = 80;

/// Cases that one batch holds: a batch has room for more, time has not.
const CANDIDATES: usize = 600;

/// Shrinks a case as long as a round finds a smaller one.
pub(crate) fn shrink(
    shown: Shown,
    processor: ModelledProcessor,
    emulator: &mut impl Emulator,
) -> Result<Shown> {
    let mut best = shown;
    for _ in 0..ROUNDS {
        let size = measure(&best.predicted.case);
        let mut candidates: Vec<_> = simplifications(&best)
            .into_iter()
            .filter(|case| measure(case) < size)
            .filter_map(|case| {
                let outcomes = processor.predict(&case).ok()?;
                Some(Predicted { case, outcomes })
            })
            .collect();
        candidates.sort_by_key(|candidate| measure(&candidate.case));
        candidates.truncate(CANDIDATES);
        let cases: Vec<_> = candidates.iter().map(|candidate| candidate.case.clone()).collect();
        if cases.is_empty() {
            break;
        }
        let answers = emulator.perform(&cases)?;
        // They are in order of size.
        let found = judge(&candidates, &answers)
            .into_iter()
            .find(|found| found.signature == best.disagreement.signature);
        let Some(disagreement) = found else { break };
        let predicted = candidates.swap_remove(disagreement.case);
        best = Shown { predicted, disagreement: Disagreement { case: 0, ..disagreement } };
    }
    Ok(best)
}

/// What makes a case large, most important first: steps, accesses, stores, bits and controls.
fn measure(case: &Case) -> (usize, usize, usize, u64) {
    let stores = || case.steps.iter().flat_map(|step| &step.stores).chain(&case.stores);
    let instructions = case.steps.iter().flat_map(|step| &step.instructions);
    let bits = stores().map(|(_, value)| u64::from(value.count_ones())).sum::<u64>();
    let operands = instructions.map(effort).sum::<u64>();
    let modes = case.steps.iter().map(|step| step.mode.bits() ^ Mode::default().bits());
    let controls = u64::from(case.sub_page)
        + u64::from(case.accessed_dirty)
        + modes.map(|bits| u64::from(bits.count_ones())).sum::<u64>();
    (case.steps.len(), case.accesses(), stores().count(), bits + operands + controls)
}

/// How much an instruction does.
fn effort(instruction: &Instruction) -> u64 {
    match *instruction {
        Instruction::Store { size, value, .. } => size.bytes() + u64::from(value.count_ones()),
        Instruction::Modify { size, value, compare, .. } => {
            size.bytes() + u64::from(value.count_ones() + compare.count_ones())
        }
        Instruction::Load { size, .. } => size.bytes(),
        Instruction::LoadWide { size, .. } | Instruction::StoreWide { size, .. } => size.bytes(),
        Instruction::Fill { size, count, value, backward, .. } => {
            size.bytes() * u64::from(count) + u64::from(value.count_ones()) + u64::from(backward)
        }
        Instruction::Copy { size, count, backward, .. } => {
            size.bytes() * u64::from(count) + u64::from(backward)
        }
        Instruction::CompareExchange16 { value, .. } | Instruction::Push { value, .. } => {
            u64::from(value.count_ones())
        }
        _ => 0,
    }
}

/// Cases with one thing less.
fn simplifications(shown: &Shown) -> Vec<Case> {
    let mut case = shown.predicted.case.clone();
    // What comes after the disagreement has no part in it.
    case.steps.truncate(shown.disagreement.step + 1);
    let mut found = vec![case.clone()];
    for keep in shorter(&case.steps) {
        found.push(Case { steps: keep, ..case.clone() });
    }
    for at in 0..case.steps.len() {
        let mut replace = |step| {
            let mut smaller = case.clone();
            smaller.steps[at] = step;
            found.push(smaller);
        };
        let step = &case.steps[at];
        for stores in fewer_words(&step.stores) {
            replace(crate::case::Step { stores, ..step.clone() });
        }
        let mode = step.mode;
        let usual = Mode::default();
        for mode in [
            usual,
            Mode { user: false, ..mode },
            Mode { write_protect: true, ..mode },
            Mode { smep: false, ..mode },
            Mode { smap: false, ..mode },
            Mode { alignment_check: false, ..mode },
        ] {
            replace(crate::case::Step { mode, ..step.clone() });
        }
        for instructions in shorter(&step.instructions) {
            replace(crate::case::Step { instructions, ..step.clone() });
        }
        for (number, instruction) in step.instructions.iter().enumerate() {
            for simpler in simpler_instructions(*instruction) {
                let mut step = step.clone();
                step.instructions[number] = simpler;
                replace(step);
            }
        }
    }
    for stores in fewer_words(&case.stores) {
        found.push(Case { stores, ..case.clone() });
    }
    found.push(Case { sub_page: false, ..case.clone() });
    found.push(Case { accessed_dirty: false, ..case });
    found
}

/// A list without one run of its elements: halves, quarters, down to single ones.
fn shorter<T: Clone>(list: &[T]) -> Vec<Vec<T>> {
    let mut found = Vec::new();
    let mut run = list.len();
    while run > 0 {
        for start in (0..list.len()).step_by(run) {
            let end = (start + run).min(list.len());
            found.push([&list[..start], &list[end..]].concat());
        }
        run /= 2;
    }
    found
}

/// Words without some of them, or with one bit less in one of them once they are few.
///
/// Bits 39:12 stay: with one less, an entry leads to some other frame of the arena, which makes no
/// case easier to read.
fn fewer_words(words: &[Word]) -> Vec<Vec<Word>> {
    const FEW: usize = 24;
    let mut found = shorter(words);
    if words.len() > FEW {
        return found;
    }
    for (at, (word, value)) in words.iter().enumerate() {
        for bit in (0..12).chain(40..64).filter(|bit| value >> bit & 1 == 1) {
            let mut words = words.to_vec();
            words[at] = (*word, value & !(1 << bit));
            found.push(words);
        }
    }
    found
}

fn simpler_instructions(instruction: Instruction) -> Vec<Instruction> {
    match instruction {
        Instruction::Store { at, size, value } => vec![
            Instruction::Store { at, size, value: value & 0xFF },
            Instruction::Store { at, size, value: 1 },
        ],
        Instruction::Modify { at, size, kind, .. } => {
            vec![Instruction::Modify { at, size, kind, value: 1, compare: 0 }]
        }
        Instruction::Push { stack, .. } => vec![Instruction::Push { stack, value: 1 }],
        Instruction::Fill { at, size, count, value, backward } => vec![
            Instruction::Fill { at, size, count: count / 2, value, backward },
            Instruction::Fill { at, size, count: count.saturating_sub(1), value, backward },
            Instruction::Fill { at, size, count, value: 1, backward },
        ],
        Instruction::Copy { from, to, size, count, backward } => vec![
            Instruction::Copy { from, to, size, count: count / 2, backward },
            Instruction::Copy { from, to, size, count: count.saturating_sub(1), backward },
        ],
        _ => Vec::new(),
    }
}

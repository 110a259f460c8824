//! Makes what a hardware kit brings along: cases, what the model predicts of them, and guests to measure.
//!
//! A kit meets processors of which nobody knows more than their capability registers. So it gets only
//! cases in which it does not matter how wide physical addresses are, whether there are shadow stacks,
//! and what of the EPT is remembered from one access to the next.

use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use subpage_model::{Deviations, Staleness};
use subpage_vmx::conformance::format::{ARENA, guest};
use subpage_vmx::kit::LEAST_WIDTH;
use subpage_vmx::kit::predicted::Predicted as Line;
use subpage_vmx::kit::timing::WRITES;

use crate::case::{self, Case, Mode, Step, Word};
use crate::code::VMCALL;
use crate::generate::{Generator, Predicted};
use crate::instruction::Instruction;
use crate::layout::{PAGES, frame, host, linear, window, window_l3, word};
use crate::outcome::Observed;
use crate::predict::ModelledProcessor;

/// Widest physical addresses that the architecture has.
const MOST_WIDTH: u8 = 52;

/// A processor with all that the cases use.
const PROCESSOR: ModelledProcessor = ModelledProcessor {
    sub_page: true,
    advanced_information: true,
    smap: true,
    shadow_stacks: true,
    deviations: Deviations::NONE,
};

/// Writes the files of a kit with at least so many steps into a directory: `cases`, `timing`, the
/// predictions of the architecture as `predicted`, and those of each of `others` as `predicted-NAME`.
pub(crate) fn write(
    directory: &Path,
    seed: u64,
    steps: usize,
    others: &[(String, Deviations)],
    out: &mut impl Write,
) -> Result<()> {
    ensure!(steps > 0, "a kit without steps compares nothing");
    let predicted = cases(seed, steps);
    let cases: Vec<_> = predicted.iter().map(|predicted| predicted.case.clone()).collect();
    let count: usize = predicted.iter().map(|predicted| predicted.outcomes.len()).sum();
    let write = |name: &str, bytes: &[u8]| {
        let file = directory.join(name);
        fs::write(&file, bytes).with_context(|| format!("cannot write {}", file.display()))
    };
    let batch = case::batch(&cases);
    write("cases", &batch)?;
    write("timing", &case::batch(&timing()))?;
    let outcomes = predicted.iter().map(|predicted| Some(predicted.outcomes.as_slice()));
    // It begins the report, so that reports of different kits are told apart.
    let with_head = |model: &str, text: &str| {
        let mut sum = crc32fast::Hasher::new();
        sum.update(&batch);
        sum.update(text.as_bytes());
        let (number, sum) = (cases.len(), sum.finalize());
        format!("{count} steps of {number} cases, seed {seed}, checksum {sum:08x}, {model}\n{text}")
    };
    write("predicted", with_head("the architecture", &lines(outcomes)).as_bytes())?;
    for (name, deviations) in others {
        let processor = ModelledProcessor { deviations: *deviations, ..PROCESSOR };
        // A model that predicts nothing of a case says nothing about it.
        let outcomes: Vec<_> = cases.iter().map(|case| processor.predict(case).ok()).collect();
        let text = lines(outcomes.iter().map(Option::as_deref));
        write(&format!("predicted-{name}"), with_head(name, &text).as_bytes())?;
    }
    writeln!(out, "kit: {count} steps of {} cases, seed {seed}", cases.len())?;
    Ok(())
}

/// Cases whose outcome is the same on every processor of the architecture with sub-page permissions.
fn cases(seed: u64, steps: usize) -> Vec<Predicted> {
    let mut generator = Generator::new(seed, PROCESSOR);
    let mut cases = Vec::new();
    let mut count = 0;
    while count < steps {
        let predicted = generator.case();
        if is_certain(&predicted) {
            count += predicted.outcomes.len();
            cases.push(predicted);
        }
    }
    cases
}

fn is_certain(predicted: &Predicted) -> bool {
    let least = u8::try_from(LEAST_WIDTH).expect("a width");
    let mut others = Vec::new();
    for width in least..=MOST_WIDTH {
        others.push((PROCESSOR, width, Staleness::UntilExit));
    }
    others.push((PROCESSOR, least, Staleness::None));
    let bare = ModelledProcessor { shadow_stacks: false, ..PROCESSOR };
    others.push((bare, least, Staleness::None));
    // A case in which Bochs would leave the arena, or stop, cannot be tried.
    let bochs = ModelledProcessor { deviations: Deviations::BOCHS, ..PROCESSOR };
    let can_be_tried = bochs.predict(&predicted.case).is_ok();
    can_be_tried
        && others.into_iter().all(|(processor, width, staleness)| {
            let outcomes = processor.predict_on(&predicted.case, width, staleness);
            outcomes.is_ok_and(|outcomes| outcomes == predicted.outcomes)
        })
}

fn lines<'a>(cases: impl Iterator<Item = Option<&'a [Observed]>>) -> String {
    let mut text = String::new();
    for (case, outcomes) in (0..).zip(cases) {
        for (step, outcome) in (0..).zip(outcomes.unwrap_or_default()) {
            writeln!(text, "{}", line(case, step, outcome)).expect("a string takes all");
        }
    }
    text
}

fn line(case: u32, step: u32, outcome: &Observed) -> Line {
    Line {
        case,
        step,
        reason: outcome.reason,
        qualification: outcome.qualification,
        gpa: outcome.gpa,
        gla: outcome.gla,
        event: outcome.event.map(u64::from),
        error: outcome.error.map(u64::from),
        vectoring: outcome.vectoring,
        rip: outcome.rip,
        registers: outcome.registers,
        changed: outcome.changed.clone(),
    }
}

/// The guests that [`subpage_vmx::kit::timing::GUESTS`] names, in that order.
fn timing() -> Vec<Case> {
    const WRITABLE: u32 = 0;
    const SUB_PAGES: u32 = 1;
    // Sub-page 0 may be written, sub-page 1 not.
    let [open, permitted] = [WRITABLE, SUB_PAGES].map(linear);
    let denied = permitted + 128;
    [VMCALL.to_vec(), writes(open, WRITES), writes(permitted, WRITES), writes(denied, 1)]
        .into_iter()
        .map(|code| timed(WRITABLE, SUB_PAGES, &code))
        .collect()
}

/// `mov rdi, at; mov ecx, count; again: mov [rdi], rax; dec ecx; jnz again; vmcall`.
fn writes(at: u64, count: u32) -> Vec<u8> {
    let mut code = vec![0x48, 0xBF];
    code.extend(at.to_le_bytes());
    code.push(0xB9);
    code.extend(count.to_le_bytes());
    code.extend([0x48, 0x89, 0x07, 0xFF, 0xC9, 0x75, 0xF9]);
    code.extend(VMCALL);
    code
}

/// Where the code that is measured lies in its page: behind the instructions that lead there.
const CODE_WORD: u32 = 0x100;

/// A guest with a page of ordinary rights and one with sub-page permissions, that runs `code`.
fn timed(writable: u32, sub_pages: u32, code: &[u8]) -> Case {
    const LINK: u64 = 0b111;
    const MEMORY: u64 = 6 << 3;
    const VALID: u64 = 1;
    let mut case = Case::new(true, false);
    let mut put = |words: &[Word]| case.stores.extend_from_slice(words);
    let index = |address: u64, level: u32| u32::try_from(address >> level & 0x1FF).expect("9 bits");
    let (l3, l2) = (window_l3(0), index(ARENA, 21));
    put(&[
        (word(frame::EPT_L4, 1), host(frame::EPT_L3) | LINK),
        (word(frame::EPT_L3, l3), host(frame::EPT_L2) | LINK),
        (word(frame::EPT_L2, l2), host(frame::EPT_L1) | LINK),
        (word(frame::SPPT_L4, 1), host(frame::SPPT_L3) | VALID),
        (word(frame::SPPT_L3, l3), host(frame::SPPT_L2) | VALID),
        (word(frame::SPPT_L2, l2), host(frame::SPPT_L1) | VALID),
        (word(frame::EPT_L1, writable), host(writable) | MEMORY | LINK),
        // Bit 61, and no right to write.
        (word(frame::EPT_L1, sub_pages), host(sub_pages) | MEMORY | 0b101 | 1 << 61),
        // Of each pair of bits the lower one: sub-page 0 alone.
        (word(frame::SPPT_L1, sub_pages), 1),
    ]);
    // The guest's own tables, in the harness: present, writable, accessed, dirty.
    let tables = [frame::GUEST_L4, frame::GUEST_TABLES, frame::GUEST_TABLES + 1];
    for (level, table) in [39, 30, 21].into_iter().zip(tables) {
        let below = match level {
            39 => frame::GUEST_TABLES,
            30 => frame::GUEST_TABLES + 1,
            _ => frame::GUEST_TABLES + 2,
        };
        put(&[(word(table, index(linear(0), level)), crate::layout::harness_link(below))]);
    }
    for page in [writable, sub_pages] {
        put(&[(word(frame::GUEST_TABLES + 2, index(linear(page), 12)), window(0, page) | 0x63)]);
    }
    const { assert!(PAGES >= 2) };
    let stores = (CODE_WORD..).zip(code.chunks(8)).map(|(at, bytes)| {
        let mut value = [0; 8];
        value[..bytes.len()].copy_from_slice(bytes);
        (word(frame::CODE, at), u64::from_le_bytes(value))
    });
    let jump = Instruction::Jump { to: guest::RIP + u64::from(CODE_WORD) * 8 };
    let mode = Mode::default();
    case.steps.push(Step { mode, stores: stores.collect(), instructions: vec![jump] });
    case
}

#[cfg(test)]
mod tests {
    use super::*;
    use subpage_vmx::conformance::format::Batch;

    #[test]
    fn every_step_of_a_kit_is_predicted() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let others = [("bochs".to_owned(), Deviations::BOCHS)];
        write(directory.path(), 7, 60, &others, &mut Vec::new()).expect("nothing hinders it");
        let read = |name: &str| fs::read(directory.path().join(name)).expect("it was written");
        let cases = read("cases");
        let batch = Batch::parse(&cases).expect("it is whole");
        let steps: usize = batch.cases().map(|case| case.steps().count()).sum();
        assert!(steps >= 60);
        for name in ["predicted", "predicted-bochs"] {
            let text = String::from_utf8(read(name)).expect("it is text");
            let lines: Vec<_> = text.lines().skip(1).map(Line::parse).collect();
            assert!(lines.len() == steps && lines.iter().all(Option::is_some), "{name}");
        }
        let timing = read("timing");
        let timing = Batch::parse(&timing).expect("it is whole");
        assert_eq!(timing.cases().len(), subpage_vmx::kit::timing::GUESTS.len());
    }

    #[test]
    fn a_case_that_hangs_on_the_width_of_addresses_is_left_out() {
        let mut generator = Generator::new(1, PROCESSOR);
        let drawn: Vec<_> = (0..200).map(|_| generator.case()).collect();
        let wide = |case: &Predicted| {
            let outcomes = PROCESSOR.predict_on(&case.case, MOST_WIDTH, Staleness::UntilExit);
            outcomes.is_ok_and(|outcomes| outcomes != case.outcomes)
        };
        let hanging: Vec<_> = drawn.iter().filter(|case| wide(case)).collect();
        assert!(!hanging.is_empty() && !hanging.into_iter().any(is_certain));
    }

    #[test]
    fn a_kit_without_steps_is_refused() {
        assert!(write(Path::new("/nonexistent"), 1, 0, &[], &mut Vec::new()).is_err());
    }
}

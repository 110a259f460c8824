//! Runs a batch on a processor: store, enter, tell what changed.

use core::fmt;

use zerocopy::little_endian::U64;

use super::answer::{DONE, Exit, write_change, write_exit};
use super::format::{ARENA, ARENA_WORDS, Batch, Case, Store, control};

/// The arena as words.
pub type Arena = [u64; ARENA_WORDS];

/// What a case puts into the VMCS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pointers {
    /// Host-physical address of the EPT's level-4 table.
    pub ept: u64,
    /// EPTP bit 6.
    pub accessed_dirty: bool,
    /// SPPTP; `None` if the control is 0.
    pub sppt: Option<u64>,
    /// CR3.
    pub cr3: u64,
}

/// A processor with the arena as its memory.
pub trait CaseRunner {
    /// Why a guest could not be entered.
    type Error;

    /// The arena, while no guest runs.
    fn arena(&mut self) -> &mut Arena;

    /// Enters the guest in the state that [`guest`](super::format::guest) describes and in the given
    /// [mode](super::format::mode), with nothing remembered of earlier tables, and runs it to its
    /// first exit.
    fn run(&mut self, pointers: &Pointers, mode: u32) -> Result<Exit, Self::Error>;
}

/// Why a batch was not run to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused<E> {
    /// Number of the case.
    pub case: u32,
    /// Number of the step.
    pub step: u32,
    /// What the processor said; `None` if the answer could not be written.
    pub error: Option<E>,
}

/// Runs every step of every case and writes the answers; the last line counts them.
///
/// `before` is memory as large as the arena.
pub fn run<P: CaseRunner>(
    batch: &Batch<'_>,
    processor: &mut P,
    before: &mut Arena,
    out: &mut impl fmt::Write,
) -> Result<(), Refused<P::Error>> {
    let (mut cases, mut steps) = (0_u64, 0_u64);
    for case in batch.cases() {
        prepare(batch.template(), &case, processor.arena(), before);
        let pointers = pointers(&case);
        for (number, step) in (0..).zip(case.steps()) {
            let case = case.header.number.get();
            let refused = |error| Refused { case, step: number, error };
            store(step.stores, processor.arena());
            store(step.stores, before);
            let exit = processor.run(&pointers, step.mode).map_err(|error| refused(Some(error)))?;
            write_exit(out, case, number, &exit)
                .and_then(|()| write_changes(processor.arena(), before, out))
                .and_then(|()| out.write_char('\n'))
                .map_err(|_| refused(None))?;
            steps += 1;
        }
        cases += 1;
    }
    let written = writeln!(out, "{DONE}{cases} {steps}");
    written.map_err(|_| Refused { case: 0, step: 0, error: None })
}

pub(crate) fn prepare(template: &[Store], case: &Case<'_>, arena: &mut Arena, before: &mut Arena) {
    for memory in [arena, before] {
        memory.fill(0);
        store(template, memory);
        store(case.stores, memory);
    }
}

pub(crate) fn pointers(case: &Case<'_>) -> Pointers {
    let frame = |number: u32| ARENA + u64::from(number) * 4096;
    Pointers {
        ept: frame(case.header.ept.get()),
        accessed_dirty: case.has(control::ACCESSED_DIRTY),
        sppt: case.has(control::SUB_PAGE).then(|| frame(case.header.sppt.get())),
        cr3: case.header.cr3.get(),
    }
}

pub(crate) fn store(stores: &[Store], memory: &mut Arena) {
    for store in stores {
        memory[store.word.get() as usize] = store.value.get();
    }
}

/// Words compared at once: most of the arena never changes, and most of a run's time is spent here.
const RUN: usize = 16;

/// Tells every word that differs, and takes it over.
fn write_changes(now: &Arena, before: &mut Arena, out: &mut impl fmt::Write) -> fmt::Result {
    let starts = (0_u32..).step_by(RUN);
    for (start, (now, before)) in starts.zip(now.chunks(RUN).zip(before.chunks_mut(RUN))) {
        let difference = now.iter().zip(&*before).fold(0, |all, (now, before)| all | now ^ before);
        if difference == 0 {
            continue;
        }
        for (at, (now, before)) in (start..).zip(now.iter().zip(before)) {
            if now != before {
                *before = *now;
                write_change(out, at, *now)?;
            }
        }
    }
    Ok(())
}

/// A store as the format has it.
pub fn stored(word: u32, value: u64) -> Store {
    Store { word: word.into(), value: U64::new(value) }
}

#[cfg(test)]
mod tests {
    use super::super::answer::StepAnswer;
    use super::super::format::{BatchHeader, CaseHeader, SIGNATURE, StepHeader, VERSION, mode};
    use super::*;
    use std::boxed::Box;
    use std::string::String;
    use std::vec;
    use std::vec::Vec;
    use zerocopy::IntoBytes;

    /// A processor that adds 1 to word 5 and leaves the rest.
    struct Adder {
        arena: Box<Arena>,
        seen: Vec<(Pointers, u32)>,
        fails: bool,
    }

    impl CaseRunner for Adder {
        type Error = u8;

        fn arena(&mut self) -> &mut Arena {
            &mut self.arena
        }

        fn run(&mut self, pointers: &Pointers, mode: u32) -> Result<Exit, u8> {
            self.seen.push((*pointers, mode));
            self.arena[5] += 1;
            if self.fails { Err(7) } else { Ok(Exit { reason: 18, ..Exit::default() }) }
        }
    }

    fn arena() -> Box<Arena> {
        vec![9; ARENA_WORDS].into_boxed_slice().try_into().expect("as many words")
    }

    fn batch() -> Vec<u8> {
        let mut bytes = Vec::new();
        for number in [3_u32, 4] {
            let case = CaseHeader {
                number: number.into(),
                controls: (control::ALL * (number - 3)).into(),
                ept: 1.into(),
                sppt: 2.into(),
                cr3: 0x3000.into(),
                stores: 1.into(),
                steps: 2.into(),
            };
            bytes.extend_from_slice(case.as_bytes());
            bytes.extend_from_slice(stored(5, number.into()).as_bytes());
            for (mode, stores) in [(0, 0), (mode::USER, 1)] {
                let header = StepHeader { mode: u32::into(mode), stores: u32::into(stores) };
                bytes.extend_from_slice(header.as_bytes());
            }
            bytes.extend_from_slice(stored(6, 1).as_bytes());
        }
        let header = BatchHeader {
            signature: SIGNATURE,
            version: VERSION.into(),
            bytes: u32::try_from(24 + 12 + bytes.len()).expect("small").into(),
            stores: 1.into(),
            cases: 2.into(),
        };
        let mut whole = header.as_bytes().to_vec();
        whole.extend_from_slice(stored(5, 100).as_bytes());
        whole.extend_from_slice(&bytes);
        whole
    }

    #[test]
    fn each_case_starts_from_zeros_and_each_change_is_told_once() {
        let bytes = batch();
        let batch = Batch::parse(&bytes).expect("legal");
        let mut processor = Adder { arena: arena(), seen: Vec::new(), fails: false };
        let mut out = String::new();
        run(&batch, &mut processor, &mut arena(), &mut out).expect("a string takes all");
        let answers: Vec<_> = out.lines().filter_map(StepAnswer::parse).collect();
        let told: Vec<_> =
            answers.iter().map(|answer| (answer.case, answer.step, answer.changed[0])).collect();
        // What the host stores is no change; the case's store hides the template's.
        assert_eq!(told, [(3, 0, (5, 4)), (3, 1, (5, 5)), (4, 0, (5, 5)), (4, 1, (5, 6))]);
        assert!(answers.iter().all(|answer| answer.changed.len() == 1));
        assert_eq!(out.lines().last(), Some("conformance: done 2 4"));
        assert_eq!(processor.arena[7], 0);
        let plain =
            Pointers { ept: ARENA + 0x1000, accessed_dirty: false, sppt: None, cr3: 0x3000 };
        let full = Pointers { accessed_dirty: true, sppt: Some(ARENA + 0x2000), ..plain };
        let user = mode::USER;
        assert_eq!(processor.seen, [(plain, 0), (plain, user), (full, 0), (full, user)]);
    }

    #[test]
    fn a_refusal_names_its_step() {
        let bytes = batch();
        let batch = Batch::parse(&bytes).expect("legal");
        let mut processor = Adder { arena: arena(), seen: Vec::new(), fails: true };
        let refused = run(&batch, &mut processor, &mut arena(), &mut String::new());
        assert_eq!(refused, Err(Refused { case: 3, step: 0, error: Some(7) }));
    }
}

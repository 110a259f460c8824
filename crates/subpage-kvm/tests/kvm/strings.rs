//! Repeated string instructions over permitted and denied elements.
//!
//! What is to happen is computed element by element, as the manual says: an element that is denied
//! has no effect on memory, and the next one is tried.

use iced_x86::code_asm::{CodeAssembler, rcx, rdi, rsi};
use kvm_bindings::kvm_regs;
use subpage::rules::Action;
use subpage_emulate::XsaveArea;
use subpage_kvm::vm::Ending;
use subpage_trap::Verdict;

use crate::guest::{Guest, PAGE, assemble, both_ways, exit, kvm};
use crate::privilege::{FLAGS, LEVELS, Level, place_first};
use crate::random::Random;
use crate::stepper::{Registers, Stepper};

const CODE_AT: u64 = 0x21_0000;

/// Both pages, which trap; a few bytes in the middle of the first are denied.
const BYTES: usize = 0x2000;
const DENIED: std::ops::Range<usize> = 0x208..0x231;

#[derive(Debug, Clone, Copy)]
struct Run {
    /// Bytes of an element.
    width: usize,
    moves: bool,
    backwards: bool,
    /// Offsets in the two pages of the first element.
    to: usize,
    from: usize,
    count: usize,
}

fn runs() -> Vec<Run> {
    let mut runs = Vec::new();
    for width in [1, 2, 4, 8] {
        for moves in [false, true] {
            let run =
                Run { width, moves, backwards: false, to: 0x1fb, from: 0x800, count: 0x60 / width };
            runs.push(run);
            runs.push(Run { backwards: true, to: 0x240, ..run });
            // From page to page.
            runs.push(Run { to: 0xff5, count: 5, ..run });
            runs.push(Run { count: 0, ..run });
        }
        // Overlapping: each element is the source of the next.
        let run = Run {
            width,
            moves: true,
            backwards: false,
            to: 0x1fb,
            from: 0x1fb - width,
            count: 0x60 / width,
        };
        runs.push(run);
        runs.push(Run { backwards: true, to: 0x240, from: 0x240 + width, ..run });
        // More than is carried out at once.
        runs.push(Run { to: 0x300, from: 0x300 - 1, count: 300, ..run });
    }
    runs
}

/// What memory becomes, and the offset and bytes of each denied element.
fn expected(run: &Run, memory: &mut [u8], rax: u64) -> Vec<(usize, Vec<u8>)> {
    let mut denied = Vec::new();
    for element in 0..run.count {
        let place = |start: usize| {
            let by = element * run.width;
            if run.backwards { start - by } else { start + by }
        };
        let (to, from) = (place(run.to), place(run.from));
        let bytes = if run.moves {
            memory[from..from + run.width].to_vec()
        } else {
            rax.to_le_bytes()[..run.width].to_vec()
        };
        if to < DENIED.end && DENIED.start < to + run.width {
            denied.push((to, bytes));
        } else {
            memory[to..to + run.width].copy_from_slice(&bytes);
        }
    }
    denied
}

fn emit(code: &mut CodeAssembler, run: &Run) {
    let rep = code.rep();
    match (run.moves, run.width) {
        (false, 1) => rep.stosb(),
        (false, 2) => rep.stosw(),
        (false, 4) => rep.stosd(),
        (false, _) => rep.stosq(),
        (true, 1) => rep.movsb(),
        (true, 2) => rep.movsw(),
        (true, 4) => rep.movsd(),
        (true, _) => rep.movsq(),
    }
    .unwrap();
}

#[test]
fn denied_elements_have_no_effect_and_the_others_do() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        for level in LEVELS {
            let stepper = Stepper::new(&configuration, level, &[]);
            let (start, bytes) = (PAGE + DENIED.start as u64, DENIED.len() as u64);
            stepper.guest.guard(start, bytes, Action::Deny);
            stepper.guest.map(PAGE + 0x1000, !(1 << 31));
            for (seed, run) in (0..).zip(runs()) {
                let context = format!("{run:x?}, {:?} at {level:?}", configuration.trap);
                let random = &mut Random(seed);
                let mut memory = random.bytes(BYTES);
                stepper.guest.write(PAGE, &memory);
                let before = kvm_regs {
                    rip: CODE_AT,
                    rax: random.next(),
                    rcx: run.count as u64,
                    rdi: PAGE + run.to as u64,
                    rsi: PAGE + run.from as u64,
                    rflags: FLAGS | u64::from(run.backwards) << 10,
                    ..kvm_regs::default()
                };
                let code = assemble(CODE_AT, |code| emit(code, &run));
                let extended = Box::new(XsaveArea::INITIAL);
                let after = stepper
                    .step(&code, &Registers { general: before, extended })
                    .unwrap_or_else(|ending| panic!("{context}: {ending}"))
                    .general;
                let denied = expected(&run, &mut memory, before.rax);
                assert!(stepper.guest.read::<BYTES>(PAGE) == memory.as_slice(), "{context}");
                let by = (run.count * run.width) as u64;
                let by = if run.backwards { by.wrapping_neg() } else { by };
                let from_by = if run.moves { by } else { 0 };
                assert_eq!(after.rcx, 0, "{context}");
                assert_eq!(after.rdi, before.rdi.wrapping_add(by), "{context}");
                assert_eq!(after.rsi, before.rsi.wrapping_add(from_by), "{context}");
                let told: Vec<_> = stepper
                    .guest
                    .events()
                    .iter()
                    .map(|record| {
                        let event = &record.event;
                        assert_eq!(event.verdict, Verdict::Denied, "{context}");
                        assert_eq!(event.origin.rip, Some(CODE_AT), "{event:?}, {context}");
                        assert_eq!(event.gla, Some(event.gpa.as_u64()), "{event:?}, {context}");
                        (usize::try_from(event.gpa.as_u64() - PAGE).unwrap(), event.bytes.clone())
                    })
                    .collect();
                assert_eq!(told, denied, "{context}");
            }
        }
    }
}

#[test]
fn a_rule_that_stops_stops_at_the_first_element() {
    if !kvm() {
        return;
    }
    for configuration in both_ways() {
        for level in LEVELS {
            for backwards in [false, true] {
                stops_at_the_first(&configuration, level, backwards);
            }
        }
    }
}

fn stops_at_the_first(
    configuration: &subpage_kvm::vm::Configuration,
    level: Level,
    backwards: bool,
) {
    const COUNT: u64 = 64;
    let (start, stopping) = if backwards { (0x400, 0x3c8) } else { (0x300, 0x338) };
    let mut guest = Guest::new(configuration, |code| {
        code.mov(rcx, COUNT).unwrap();
        code.mov(rdi, PAGE + start).unwrap();
        code.mov(rsi, PAGE + start).unwrap();
        if backwards {
            code.std().unwrap();
        }
        code.rep().stosq().unwrap();
        exit(code, 0);
    });
    place_first(&guest, level);
    guest.write(PAGE, &[0x77; 0x1000]);
    guest.guard(PAGE + stopping, 8, Action::Stop);
    let Ending::Stopped { event } = guest.run() else { panic!("it must be stopped") };
    let event = &event.event;
    assert_eq!((event.gpa.as_u64(), event.bytes.len()), (PAGE + stopping, 8));
    let after = guest.vm.with_processors(|processors| processors[0].fd.get_regs().unwrap());
    assert_eq!(after.rcx, COUNT - 8, "seven are done, the eighth is gone");
    let bytes: [u8; 0x1000] = guest.read(PAGE);
    let written = if backwards { 0x3d0..0x408 } else { 0x300..0x338 };
    for (offset, byte) in bytes.into_iter().enumerate() {
        let expected = if written.contains(&offset) { 0 } else { 0x77 };
        assert_eq!(byte, expected, "{offset:#x}, {:?} at {level:?}", configuration.trap);
    }
}

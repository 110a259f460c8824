//! One form at all spots, both ways to trap, both privilege levels.
//!
//! The judge is the processor: the same instruction from the same registers, at CPL 3, in a guest of
//! the same shape without any rule.

use std::fmt::Debug;
use std::ops::Range;
use std::time::Duration;

use subpage_kvm::vm::{Configuration, Ending, TrapChoice};
use subpage_trap::{Record, Verdict};

use super::form::{Form, Quirk, SOURCE};
use super::spot::{Spot, guard, spots, window};
use crate::guest::{assemble, both_ways, kvm, small};
use crate::privilege::{LEVELS, Level};
use crate::random::Random;
use crate::stepper::{Registers, Stepper};

/// Where the code of a form is, by its number.
const fn code_at(number: usize) -> u64 {
    0x21_0000 + number as u64 * 0x80
}

/// What a form has done.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Done {
    /// General registers, RIP, RFLAGS.
    general: [u64; 18],
    /// x87, SSE, AVX.
    extended: Vec<u8>,
    /// Both pages.
    memory: Vec<u8>,
}

/// Most differences that are shown.
const SHOWN: usize = 20;

/// Compares forms in all guests, and shows the differences.
pub(super) fn compare(forms: &[Form]) {
    if !kvm() {
        return;
    }
    let plain = LEVELS.map(|level| Stepper::new(&small(), level, &window()));
    let steps: Vec<_> = forms
        .iter()
        .enumerate()
        .flat_map(|(number, form)| {
            let steps = spots(form).into_iter().enumerate();
            steps.map(move |(at, spot)| Step::new(form, code_at(number), spot, number * 100 + at))
        })
        .map(|step| {
            let judge = &plain[usize::from(step.quirk != Quirk::Hidden)];
            let expected = step.run(judge);
            let expected = expected.unwrap_or_else(|ending| panic!("{}: {ending}", step.context));
            (step, expected)
        })
        .collect();
    let mut differences = Vec::new();
    for configuration in both_ways() {
        for level in LEVELS {
            let native = configuration.trap == TrapChoice::Mprotect && level == Level::User;
            let mut bench = Bench::new(&configuration, level);
            for (step, expected) in &steps {
                if step.quirk == Quirk::Native && !native {
                    continue;
                }
                let Err(difference) = step.compare(expected, &bench) else { continue };
                let (context, trap) = (&step.context, configuration.trap);
                differences.push(format!("{context}, {trap:?} at {level:?}: {difference}"));
                if bench.stepper.guest.vm.wait(Duration::ZERO).is_some() {
                    bench = Bench::new(&configuration, level);
                }
            }
        }
    }
    let shown = differences.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>();
    assert!(differences.is_empty(), "{} differ:\n{}", differences.len(), shown.join("\n"));
}

struct Bench {
    stepper: Stepper,
    level: Level,
}

impl Bench {
    fn new(configuration: &Configuration, level: Level) -> Self {
        let stepper = Stepper::new(configuration, level, &window());
        guard(&stepper.guest);
        Self { stepper, level }
    }
}

/// One store.
struct Step {
    /// For messages.
    context: String,
    spot: Spot,
    quirk: Quirk,
    code: Vec<u8>,
    before: Registers,
    /// Both pages of the spot.
    memory: Vec<u8>,
    /// Of the page that it reads.
    source: Vec<u8>,
    /// The bytes it stores, in the two pages.
    span: Range<usize>,
}

impl Step {
    fn new(form: &Form, rip: u64, spot: Spot, seed: usize) -> Self {
        let code = assemble(rip, |code| (form.assemble)(code, spot.linear).unwrap());
        let next = rip + code.len() as u64;
        let random = &mut Random(seed as u64);
        let memory = random.bytes(0x2000);
        let mut source = random.bytes(0x1000);
        // What a call by memory goes to.
        source[0x800..0x808].copy_from_slice(&next.to_le_bytes());
        let offset = usize::try_from(spot.linear - spot.pair.linear()).unwrap();
        let span = offset..offset + usize::try_from(form.bytes).unwrap();
        let before = form.registers(random, rip, next, spot.linear, &memory[span.clone()]);
        let context = format!(
            "{} at {:#x} ({:?}), seed {seed}, code {code:02x?}",
            form.name, spot.linear, spot.pair
        );
        let quirk = form.quirk;
        Self { context, spot, quirk, code, before, memory, source, span }
    }

    fn run(&self, stepper: &Stepper) -> Result<Done, Ending> {
        stepper.guest.write(SOURCE, &self.source);
        stepper.guest.write(self.spot.pair.page(0), &self.memory[..0x1000]);
        stepper.guest.write(self.spot.pair.page(1), &self.memory[0x1000..]);
        let after = stepper.step(&self.code, &self.before)?;
        let pages = [0, 1].map(|page| stepper.guest.read::<0x1000>(self.spot.pair.page(page)));
        Ok(done(&after, pages.concat()))
    }

    fn compare(&self, expected: &Done, bench: &Bench) -> Result<(), String> {
        let got = self.run(&bench.stepper).map_err(|ending| ending.to_string())?;
        for (number, (got, expected)) in got.general.iter().zip(expected.general).enumerate() {
            same(&format!("register {number}"), got, &expected)?;
        }
        if got.extended != expected.extended {
            return Err("extended registers differ".to_owned());
        }
        let events = bench.stepper.guest.events();
        let Some(denied) = self.spot.denied else {
            let pairs = got.memory.iter().zip(&expected.memory).enumerate();
            for (at, (got, expected)) in pairs.skip(self.span.start) {
                same(&format!("byte {} of the store", at - self.span.start), got, expected)?;
            }
            same("memory before the store", &(got.memory == expected.memory), &true)?;
            return same("events", &events.len(), &0);
        };
        same("events", &events.len(), &1)?;
        let event = &events[0];
        let told = self.check_denial(event, bench.level, denied, &got, expected);
        told.map_err(|difference| format!("{difference}: {event:?}"))
    }

    fn check_denial(
        &self,
        record: &Record,
        level: Level,
        denied: u64,
        got: &Done,
        expected: &Done,
    ) -> Result<(), String> {
        let (pair, event) = (self.spot.pair, &record.event);
        let mut span = self.span.clone();
        // A processor may make a store of ten bytes in parts, of which the first is done when the second
        // faults (SDM Vol. 3A, "Guaranteed Atomic Operations"). Some do.
        let early = self.quirk == Quirk::Early && level == Level::Supervisor
            || self.quirk == Quirk::Pieces
            || span.len() == 10;
        match pair.half() {
            // Where KVM emulates a store, it has stored what goes to a page that does not trap, and
            // tells of the rest (docs/kvm.md).
            Some(half) if early || !event.origin.rip_exact => {
                let trapping = if half == 0 { 0..0x1000 } else { 0x1000..0x2000 };
                if !event.origin.rip_exact {
                    span = span.start.max(trapping.start)..span.end.min(trapping.end);
                }
                let kept = got.memory[trapping.clone()] == self.memory[trapping];
                same("guarded bytes are as they were", &kept, &true)?;
            }
            _ => same("memory is as it was", &(got.memory == self.memory), &true)?,
        }
        let linear = pair.linear() + span.start as u64;
        same("verdict", &event.verdict, &Verdict::Denied)?;
        same("first byte", &event.gpa.as_u64(), &pair.gpa(linear))?;
        same("first denied byte", &event.at.as_u64(), &pair.gpa(denied))?;
        same("CPL", &event.origin.cpl, &Some(level.cpl()))?;
        same("bytes", &event.bytes.as_slice(), &&expected.memory[span])?;
        if self.quirk == Quirk::Lost && !event.origin.rip_exact {
            return Ok(());
        }
        same("linear address", &event.gla, &Some(linear))?;
        same("RIP", &event.origin.rip, &Some(self.before.general.rip))?;
        let whole = self.code.starts_with(&event.instruction) && record.text.is_some();
        same("instruction found", &whole, &true)
    }
}

fn same<T: PartialEq + Debug>(what: &str, got: &T, expected: &T) -> Result<(), String> {
    if got == expected {
        return Ok(());
    }
    Err(format!("{what} is {got:x?} and not {expected:x?}"))
}

fn done(after: &Registers, memory: Vec<u8>) -> Done {
    const RESUME: u64 = 1 << 16;
    let r = &after.general;
    let area = &after.extended.0;
    let mut extended = area[..28].to_vec();
    extended.extend(&area[32..416]);
    extended.extend(&area[576..832]);
    Done {
        general: [
            r.rax,
            r.rcx,
            r.rdx,
            r.rbx,
            r.rsp,
            r.rbp,
            r.rsi,
            r.rdi,
            r.r8,
            r.r9,
            r.r10,
            r.r11,
            r.r12,
            r.r13,
            r.r14,
            r.r15,
            r.rip,
            r.rflags & !RESUME,
        ],
        extended,
        memory,
    }
}

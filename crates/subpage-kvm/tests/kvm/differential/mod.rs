//! Streams of random instructions under guard and without one: all of the machine is the same.
//!
//! Where every byte is permitted, the judge is the same stream in a guest without a rule. Where a page is
//! denied, the judge runs one instruction after the other, and after each that stores there memory is put
//! back, as over a ROM.
//!
//! `SUBPAGE_FUZZ_SECONDS` is how long each of the two runs, by default some seconds;
//! `SUBPAGE_FUZZ_SEED` is where the first stream begins. A difference is shown with its seed and the
//! shortest part of its stream that shows one.

mod generate;
mod host;
mod judge;
mod machine;

use std::time::{Duration, Instant};

use kvm_bindings::kvm_regs;
use subpage::rules::Action;
use subpage_emulate::XsaveArea;
use subpage_kvm::vm::{Configuration, TrapChoice};

use crate::guest::{both_ways, kvm, rule, small};
use crate::privilege::{LEVELS, Level};
use crate::random::Random;
use crate::stepper::Registers;
use generate::{is_repeated, is_wide, repeated, text};
use host::Host;
use judge::{
    Judged, Undecided, differs_from_events, enters_in_part, is_short_call, over_rom, refuses_oddly,
};
use machine::{CODE, FIRST, PAGES, Page, Start, Subject, page};

/// Single steps.
const TF: u64 = 1 << 8;

/// How long each test runs by default.
const SECONDS: u64 = 5;

/// Differences that are shown.
const SHOWN: usize = 5;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// Random registers whose addresses lie in the pages, and random pages.
fn start(random: &mut Random) -> Start {
    let mut any = || random.next();
    let mut general = kvm_regs {
        r8: any(),
        r9: any(),
        r11: any(),
        r12: any(),
        r13: any(),
        r14: any(),
        r15: any(),
        rdx: any(),
        rip: CODE,
        rflags: 2 | any() & 0x8d5,
        ..kvm_regs::default()
    };
    general.rcx = random.below(24);
    if random.below(8) == 0 {
        general.rflags |= TF;
    }
    if random.below(6) == 0 {
        // DF.
        general.rflags |= 0x400;
    }
    let mut address = || {
        let end = FIRST + 0x1000 * random.below(PAGES + 1);
        match random.below(4) {
            0 => FIRST + random.below(PAGES * 0x1000),
            1 if random.below(2) == 0 => end.wrapping_sub(random.below(0x40)),
            // What has no displacement crosses it.
            1 => end.wrapping_sub(1 + random.below(8)),
            2 => FIRST + (random.below(PAGES * 0x1000) & !0x3f),
            // A vector register, or FXSAVE, across a page end.
            _ => end.wrapping_sub(random.below(8) * 64),
        }
    };
    general.rax = address();
    general.rbx = address();
    general.rsp = address();
    general.rbp = address();
    general.rsi = address();
    general.rdi = address();
    general.r10 = address();
    let extended = extended(random);
    let memory = random.bytes(usize::try_from(PAGES * 0x1000).expect("small"));
    Start { registers: Registers { general, extended }, memory }
}

/// Random extended registers; often all zero, sometimes with exceptions unmasked.
fn extended(random: &mut Random) -> Box<XsaveArea> {
    let mut area = Box::new(XsaveArea::INITIAL);
    let bytes = &mut area.0;
    let any = random.next().to_le_bytes();
    if random.below(2) == 0 {
        bytes[0] = 0x40 | if random.below(4) == 0 { any[0] & 0x3f } else { 0x3f };
        bytes[1] = any[1] & 0x0f;
        bytes[3] = any[3] & 0x38;
        bytes[4] = any[4];
        for register in 0..8 {
            let at = 32 + 16 * register;
            bytes[at..at + 10].copy_from_slice(&random.bytes(10));
        }
    }
    if random.below(2) == 0 {
        bytes[160..416].copy_from_slice(&random.bytes(256));
        bytes[576..832].copy_from_slice(&random.bytes(256));
    }
    if random.below(2) == 0 {
        // Flags, DAZ, rounding, FZ; at times unmasked.
        let masks = if random.below(2) == 0 { any[6] & 0x1f } else { 0x1f };
        bytes[24] = any[5] & 0x7f | masks << 7;
        bytes[25] = masks >> 1 | any[7] & 0xe0;
    }
    bytes[512] = 7;
    area
}

/// Rules for the pages.
fn guard(machine: &Subject, pages: &[Page]) {
    let rules: Vec<_> = (0..)
        .zip(pages)
        .filter_map(|(number, kind)| {
            let name = format!("page{number}");
            let at = page(number);
            Some(match kind {
                Page::Plain => return None,
                Page::Traps => rule(&name, at + 0x800, 1, Action::Log),
                Page::Reported => rule(&name, at, 0x1000, Action::Log),
                Page::Denied => rule(&name, at, 0x1000, Action::Deny),
            })
        })
        .collect();
    machine.guest().vm.add_rules(&rules).expect("memory of the guest");
}

/// A pair of guests in each way to trap and at each level: under guard, and the judge.
struct Pairs {
    guarded: Vec<(Configuration, Level, Subject)>,
    judges: Vec<Subject>,
    /// What the judges have said of a stream from these flags on.
    judged: Vec<(Level, u64, Option<Judged>)>,
    host: Host,
    pages: &'static [Page],
}

impl Pairs {
    fn new(pages: &'static [Page]) -> Self {
        let mut pairs = Self {
            guarded: Vec::new(),
            judges: Vec::new(),
            judged: Vec::new(),
            host: Host::find(),
            pages,
        };
        pairs.judges = LEVELS.map(|level| Subject::new(&small(), level)).into();
        for configuration in both_ways() {
            for level in LEVELS {
                let machine = pairs.fresh(&configuration, level);
                pairs.guarded.push((configuration.clone(), level, machine));
            }
        }
        pairs
    }

    fn fresh(&self, configuration: &Configuration, level: Level) -> Subject {
        let machine = Subject::new(configuration, level);
        guard(&machine, self.pages);
        machine
    }

    fn judge(&self, level: Level) -> &Subject {
        &self.judges[usize::from(level == Level::User)]
    }

    /// The difference that a stream makes with one of the guests; `None` if there is none, or the judge
    /// cannot do it.
    fn compare(&mut self, which: usize, start: &Start, stream: &[Vec<u8>]) -> Option<String> {
        let level = self.guarded[which].1;
        let slots = self.guarded[which].0.trap == TrapChoice::Slots;
        if (slots || self.host.calls_oddly) && stream.iter().any(|bytes| is_short_call(bytes)) {
            // KVM's emulator, and QEMU, give the prefix Intel's meaning (docs/kvm.md).
            return None;
        }
        let emulated = self.host.emulates && level == Level::Supervisor;
        let denies = self.pages.contains(&Page::Denied);
        if (emulated || denies && slots) && stream.iter().any(|bytes| is_wide(bytes)) {
            // KVM's emulator has an FXSAVE of its own, and stores it page by page (docs/kvm.md).
            return None;
        }
        let mut start = start.clone();
        if slots {
            // KVM forgets the single-step trap of a store that it tells of (docs/kvm.md).
            start.registers.general.rflags &= !TF;
        }
        if self.host.steps_oddly && stream.iter().any(|bytes| is_repeated(bytes)) {
            start.registers.general.rflags &= !TF;
        }
        if emulated {
            // Its emulator steps over what follows the instruction, too.
            start.registers.general.rflags &= !TF;
        }
        let start = &start;
        let Judged { after: expected, halves } = self.judgement(level, start, stream)?;
        if (slots || emulated) && halves {
            // KVM's emulator has stored in the first page before it tells of the second (docs/kvm.md).
            return None;
        }
        let (configuration, _, machine) = &self.guarded[which];
        machine.set_memory(&start.memory);
        let got = match machine.run(&stream.concat(), &start.registers) {
            Ok((_, after)) => after,
            Err(ending) => {
                let machine = self.fresh(&configuration.clone(), level);
                self.guarded[which].2 = machine;
                return Some(format!("  the guest ended: {ending}\n"));
            }
        };
        let events = machine.guest().events();
        // Where this KVM's emulator does what a processor would not, and how far an ENTER gets whose frame
        // pointers cannot be read (docs/kvm.md).
        let oddly = self.host.emulates
            && level == Level::User
            && [&got, &expected].iter().any(|after| refuses_oddly(after, stream));
        if oddly || enters_in_part(&expected, stream) {
            return None;
        }
        got.differs(&expected).or_else(|| differs_from_events(self.pages, start, &got, &events))
    }

    /// What the judge says, asked once for each level and flags.
    fn judgement(&mut self, level: Level, start: &Start, stream: &[Vec<u8>]) -> Option<Judged> {
        let flags = start.registers.general.rflags;
        let mut known = self.judged.iter();
        if let Some((.., judged)) = known.find(|(at, from, _)| (*at, *from) == (level, flags)) {
            return judged.clone();
        }
        let judged = self.expected(level, start, stream).ok();
        if judged.is_none() {
            // The guest may have ended.
            let number = usize::from(level == Level::User);
            self.judges[number] = Subject::new(&small(), LEVELS[number]);
        }
        self.judged.push((level, flags, judged.clone()));
        judged
    }

    fn expected(
        &self,
        level: Level,
        start: &Start,
        stream: &[Vec<u8>],
    ) -> Result<Judged, Undecided> {
        let judge = self.judge(level);
        judge.set_memory(&start.memory);
        if !self.pages.contains(&Page::Denied) {
            let (_, after) =
                judge.run(&stream.concat(), &start.registers).map_err(|_| Undecided)?;
            return Ok(Judged { after, halves: false });
        }
        over_rom(judge, self.pages, start, stream)
    }
}

/// Compares streams for as long as is set, and shows the differences, each as short as it can be.
fn compare(pages: &'static [Page], several: bool, longest: u64) {
    if !kvm() {
        return;
    }
    let mut pairs = Pairs::new(pages);
    let choice = pairs.host.choice(several);
    let first = setting("SUBPAGE_FUZZ_SEED", 1);
    let deadline = Instant::now() + Duration::from_secs(setting("SUBPAGE_FUZZ_SECONDS", SECONDS));
    let mut differences = Vec::new();
    let mut seed = first;
    while Instant::now() < deadline && differences.len() < SHOWN {
        let random = &mut Random(seed);
        let mut start = start(random);
        if pages.contains(&Page::Denied) {
            // The judge steps itself.
            start.registers.general.rflags &= !TF;
        }
        let length = 1 + random.below(longest);
        let mut stream = Vec::new();
        let mut rip = CODE;
        let steps = start.registers.general.rflags & TF != 0;
        for number in 0..length {
            let bytes = if several && steps && number == 0 && random.below(2) == 0 {
                // The step ends behind its first element.
                repeated(random)
            } else {
                choice.instruction(random, rip, &stream)
            };
            rip += bytes.len() as u64;
            stream.push(bytes);
        }
        pairs.judged.clear();
        for which in 0..pairs.guarded.len() {
            if let Some(difference) = pairs.compare(which, &start, &stream) {
                let (shorter, difference) =
                    shrink(&mut pairs, which, &start, stream.clone(), difference);
                let (configuration, level, _) = &pairs.guarded[which];
                let trap = configuration.trap;
                let text = text(&shorter, choice);
                differences
                    .push(format!("seed {seed}, {trap:?} at {level:?}:\n{text}\n{difference}"));
                break;
            }
        }
        seed += 1;
    }
    println!("{:?}", pairs.host);
    println!("{} streams from seed {first} on, {} differ", seed - first, differences.len());
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Leaves out instructions for as long as the rest makes a difference.
fn shrink(
    pairs: &mut Pairs,
    which: usize,
    start: &Start,
    mut stream: Vec<Vec<u8>>,
    mut difference: String,
) -> (Vec<Vec<u8>>, String) {
    let mut at = 0;
    while at < stream.len() && stream.len() > 1 {
        let mut without = stream.clone();
        without.remove(at);
        pairs.judged.clear();
        match pairs.compare(which, start, &without) {
            Some(other) => (stream, difference) = (without, other),
            None => at += 1,
        }
    }
    (stream, difference)
}

#[test]
fn permitted_streams_leave_the_machine_as_without_a_guard() {
    use Page::{Plain, Reported, Traps};
    compare(&[Traps, Reported, Plain, Traps, Plain], true, 6);
}

#[test]
fn denied_streams_leave_the_machine_as_over_a_rom() {
    use Page::{Denied, Plain, Traps};
    compare(&[Plain, Denied, Traps, Denied, Plain], false, 4);
}

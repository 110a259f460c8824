//! The same rules, maps and writes on the model and on KVM: the same outcomes and the same memory.

use std::collections::BTreeMap;

use iced_x86::code_asm::*;
use subpage::access::AccessMap;
use subpage::address::{GfnRange, Gpa, Hpa, PhysicalWidth};
use subpage::domain::Domain;
use subpage::frames::HeapFrames;
use subpage::rules::{Action, Rule};
use subpage::slots::{AddressSpace, SlotFlags, SlotId};
use subpage_kvm::vm::{Configuration, Ending};
use subpage_model::{AccessOutcome, Features, GuestMemory as _, Machine, Setup, SparseMemory};
use subpage_trap::Verdict;

use crate::guest::{Guest, PAGE, both_ways, exit, gfn, kvm, rule, share};
use crate::privilege::{LEVELS, Level, place_first};
use crate::random::Random;

/// Pages of a scenario, from [`PAGE`] on.
const PAGES: usize = 3;
const BYTES: usize = PAGES * 4096;

/// Most writes of a scenario: each stores its number in every byte.
const MAX_WRITES: usize = 200;

/// Offsets count from [`PAGE`].
#[derive(Debug, Clone, Default)]
struct Scenario {
    /// Start, length, action.
    rules: Vec<(u64, u64, Action)>,
    /// One for each page.
    maps: [u32; PAGES],
    /// Offset, length.
    writes: Vec<(u64, usize)>,
}

/// What became of a write that is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Told {
    denied: bool,
    stopped: bool,
    /// The rule that decided; none for a map.
    rule: Option<u64>,
    /// First byte of it.
    at: u64,
}

/// By the number of the write; and all bytes.
type Result = (BTreeMap<u8, Told>, Vec<u8>);

impl Scenario {
    fn rules(&self) -> Vec<Rule> {
        let rules = self.rules.iter();
        rules.map(|(start, bytes, action)| rule("rule", PAGE + start, *bytes, *action)).collect()
    }

    fn numbered(&self) -> impl Iterator<Item = (u8, u64, usize)> {
        (1..=u8::MAX)
            .zip(&self.writes)
            .map(|(number, (offset, bytes))| (number, PAGE + offset, *bytes))
    }

    /// On the model; with or without a processor that knows sub-pages.
    fn on_model(&self, sub_pages: bool) -> Result {
        let width = PhysicalWidth::try_new(40).unwrap();
        let mut domain = Domain::new(HeapFrames::new(), width);
        let memory = GfnRange::new(gfn(0), 0x1000).unwrap();
        domain.add_slot(AddressSpace::Normal, SlotId(0), memory, SlotFlags::default()).unwrap();
        let mut features = Features::new(width);
        features.sub_page_write_permissions = sub_pages;
        let mut machine = Machine::new(Setup::new(features), domain, SparseMemory::new()).unwrap();
        let maps = self.maps.map(AccessMap::from_bits);
        let token = machine.domain_mut().set_access(gfn(PAGE), &maps).unwrap();
        let _done = machine.complete(token);
        if !self.rules.is_empty() {
            let (_, token) = machine.domain_mut().add_rules(&self.rules()).unwrap();
            let _done = machine.complete(token);
        }
        let mut told = BTreeMap::new();
        for (number, gpa, bytes) in self.numbered() {
            let outcome = machine.write(0, Gpa::new(gpa), &vec![number; bytes]).unwrap();
            let seen = match outcome {
                AccessOutcome::Done => continue,
                AccessOutcome::Reported { rule, at } => {
                    Told { denied: false, stopped: false, rule: Some(rule.0), at: at.as_u64() }
                }
                AccessOutcome::Denied(denial) => Told {
                    denied: true,
                    stopped: denial.stop,
                    rule: denial.rule.map(|rule| rule.0),
                    at: denial.at.as_u64(),
                },
                other => panic!("{other:?}"),
            };
            told.insert(number, seen);
            if seen.stopped {
                break;
            }
        }
        let mut memory = vec![0; BYTES];
        for (page, bytes) in (0..).zip(memory.chunks_mut(4096)) {
            machine.memory().read(Hpa::new(PAGE + page * 4096), bytes);
        }
        (told, memory)
    }

    fn on_kvm(&self, configuration: &Configuration, level: Level) -> Result {
        let mut guest = Guest::new(configuration, |code| self.code(code));
        place_first(&guest, level);
        guest.vm.set_access(gfn(PAGE), &self.maps.map(AccessMap::from_bits)).unwrap();
        if !self.rules.is_empty() {
            guest.vm.add_rules(&self.rules()).unwrap();
        }
        let ending = guest.run();
        let told: BTreeMap<_, _> = guest
            .events()
            .iter()
            .map(|record| {
                let event = &record.event;
                let number = event.bytes[0];
                assert!(event.bytes.iter().all(|byte| *byte == number), "{event:?}");
                let write = self.numbered().find(|(other, ..)| *other == number).unwrap();
                assert_eq!(
                    (event.gpa.as_u64(), event.bytes.len()),
                    (write.1, write.2),
                    "{event:?}"
                );
                let denied = event.verdict.is_denial();
                let stopped = event.verdict == Verdict::Stopped;
                (
                    number,
                    Told {
                        denied,
                        stopped,
                        rule: event.rule.map(|rule| rule.0),
                        at: event.at.as_u64(),
                    },
                )
            })
            .collect();
        if told.values().any(|told| told.stopped) {
            assert!(matches!(ending, Ending::Stopped { .. }), "{ending}");
        } else {
            assert_eq!(ending, Ending::Exited { code: 0 });
        }
        (told, guest.read::<BYTES>(PAGE).to_vec())
    }

    fn code(&self, code: &mut CodeAssembler) {
        for (number, gpa, bytes) in self.numbered() {
            code.mov(rax, u64::from_le_bytes([number; 8])).unwrap();
            code.mov(rbx, gpa).unwrap();
            match bytes {
                1 => code.mov(byte_ptr(rbx), al),
                2 => code.mov(word_ptr(rbx), ax),
                4 => code.mov(dword_ptr(rbx), eax),
                8 => code.mov(qword_ptr(rbx), rax),
                _ => {
                    code.mov(rdi, crate::guest::PLAIN).unwrap();
                    code.mov(qword_ptr(rdi), rax).unwrap();
                    code.mov(qword_ptr(rdi + 8), rax).unwrap();
                    code.movups(xmm0, xmmword_ptr(rdi)).unwrap();
                    code.movups(xmmword_ptr(rbx), xmm0)
                }
            }
            .unwrap();
        }
        exit(code, 0);
    }

    fn check(&self) {
        if !kvm() {
            return;
        }
        assert!(self.writes.len() <= MAX_WRITES);
        let expected = self.on_model(true);
        assert!(expected == self.on_model(false), "the model at one with itself: {self:?}");
        for configuration in both_ways() {
            for level in LEVELS {
                let got = self.on_kvm(&configuration, level);
                let context = format!("{:?} at {level:?}: {self:x?}", configuration.trap);
                assert_eq!(got.0, expected.0, "{context}");
                assert!(got.1 == expected.1, "memory: {context}");
            }
        }
    }
}

/// One sub-page that is denied in each page, so that all of them trap: see docs/kvm.md about stores
/// of which only a part traps.
const TRAPS: [u32; PAGES] = [!(1 << 13), !(1 << 7), !(1 << 31)];

#[test]
fn a_path_beside_a_counter() {
    Scenario {
        rules: vec![(0x100, 0x40, Action::Deny)],
        maps: TRAPS,
        writes: vec![
            (0xf8, 8),
            (0x100, 8),
            (0x13f, 1),
            (0x140, 8),
            (0xfc, 8),
            (0x13e, 4),
            (0xf0, 16),
        ],
    }
    .check();
}

#[test]
fn rules_of_every_action_over_each_other() {
    Scenario {
        rules: vec![
            (0x0, 0x1000, Action::Log),
            (0x200, 0x80, Action::AllowOnce),
            (0x240, 0x10, Action::Deny),
            (0xff0, 0x20, Action::Deny),
            (0x1800, 8, Action::Stop),
        ],
        maps: TRAPS,
        writes: vec![
            (0x10, 4),
            (0x1fc, 8),
            (0x208, 8),
            (0x23c, 8),
            (0x680, 8),
            (0x690, 2),
            (0xfec, 4),
            (0xfed, 4),
            (0x100f, 1),
            (0x1010, 16),
            (0xff8, 16),
            (0x17f8, 8),
            (0x17f9, 8),
            (0x10, 1),
        ],
    }
    .check();
}

#[test]
fn maps_alone() {
    let boundaries =
        (0..32).flat_map(|sub| [(sub * 128, 4), (sub * 128 + 124, 8), (sub * 128 + 127, 1)]);
    Scenario { rules: vec![], maps: [0x5555_5555, 0, 0xff00_00fe], writes: boundaries.collect() }
        .check();
}

/// Rules, maps and writes that look random, near to each other.
fn random(seed: u64) -> Scenario {
    let random = &mut Random(seed);
    // The first and the last sub-pages of the pages: within them, across them, across pages.
    let near = |random: &mut Random, room: u64| {
        let sub_page = random.pick(&[0, 1, 2, 3, 29, 30, 31]);
        let offset = random.pick(&[0, 1, 2]) * 4096 + sub_page * 128 + random.below(128);
        offset.min(BYTES as u64 - room)
    };
    let mut actions = vec![Action::Log, Action::AllowOnce, Action::Deny, Action::Deny];
    if seed.is_multiple_of(4) {
        actions.push(Action::Stop);
    }
    let rules = (0..=random.below(8))
        .map(|_| {
            let longest = random.pick(&[4, 64, 200]);
            let bytes = 1 + random.below(longest);
            (near(random, bytes), bytes, random.pick(&actions))
        })
        .collect();
    let maps = TRAPS.map(|map| map & !(1 << random.below(32)));
    let writes = (0..MAX_WRITES)
        .map(|_| {
            let bytes = random.pick(&[1, 2, 4, 8, 16]);
            (near(random, bytes as u64), bytes)
        })
        .collect();
    Scenario { rules, maps, writes }
}

#[test]
fn random_rules_and_writes() {
    for seed in 0..share(24) {
        random(seed).check();
    }
}

//! Guests whose code is random bytes: the tool never panics, guarded bytes never change, and where
//! all bytes may be written a guarded guest ends as the same machine that an unguarded one does.

use std::time::Duration;

use kvm_bindings::{kvm_regs, kvm_sregs};
use subpage::address::Gpa;
use subpage::rules::Action;
use subpage_emulate::guest::PhysicalMemory as _;
use subpage_kvm::probe::is_native;
use subpage_kvm::vm::{Configuration, Ending};

use crate::guest::{CODE, EXIT_PORT, Guest, PAGE, PLAIN, both_ways, kvm, share};
use crate::privilege::{LEVELS, Level, place_first};
use crate::random::Random;

/// How long a guest may run. Most fault at once; what runs on is stopped.
const BOUND: Duration = Duration::from_millis(200);

/// Guests of each kind.
const GUESTS: u64 = 30;

/// Opcodes that store, with a ModRM byte.
const STORES: [&[u8]; 24] = [
    &[0x88],
    &[0x89],
    &[0xc6],
    &[0xc7],
    &[0x01],
    &[0x81],
    &[0x83],
    &[0x87],
    &[0xfe],
    &[0xff],
    &[0xd3],
    &[0xf7],
    &[0x8f],
    &[0x0f, 0xc1],
    &[0x0f, 0xb1],
    &[0x0f, 0xc7],
    &[0x0f, 0xab],
    &[0x0f, 0xa5],
    &[0x0f, 0x11],
    &[0x0f, 0x29],
    &[0x0f, 0xae],
    &[0x0f, 0x94],
    &[0xdd],
    &[0x0f, 0x01],
];

const PREFIXES: [&[u8]; 8] = [&[], &[], &[0x66], &[0xf0], &[0xf2], &[0xf3], &[0x48], &[0x66, 0xf0]];

const IMPLIED: [[u8; 2]; 4] = [[0xf3, 0xaa], [0xf3, 0xa5], [0x90, 0xab], [0x50, 0x9c]];

/// Adds bytes that are likely to store something.
fn add_store(code: &mut Vec<u8>, random: &mut Random) {
    if random.below(8) == 0 {
        code.extend(random.pick(&IMPLIED));
        return;
    }
    code.extend(random.pick(&PREFIXES));
    code.extend(random.pick(&STORES));
    // A register and a displacement of 8 bits: no SIB.
    let register = random.pick(&[0, 1, 2, 3, 6, 7]);
    let field = random.pick(&[0, 1, 2, 3, 4, 5, 6, 7]) << 3;
    code.push(0x40 | field | register);
    code.extend(random.bytes(1));
    // Perhaps an immediate, perhaps the next instruction.
    if random.below(3) == 0 {
        let bytes = random.pick(&[1, 2, 4]);
        code.extend(random.bytes(bytes));
    }
}

/// Stores without end.
fn stores(random: &mut Random) -> Vec<u8> {
    let mut code = Vec::new();
    while code.len() < 400 {
        add_store(&mut code, random);
    }
    // Over and over.
    let back = -5 - i32::try_from(code.len()).expect("short code");
    code.push(0xe9);
    code.extend(back.to_le_bytes());
    code
}

/// RFLAGS with which a program at CPL 3 may use the port by which it ends. A KVM that emulates the
/// guest's kernel lets it without, and hides these bits from it.
const IOPL_3: u64 = 2 | 3 << 12;

fn registers(random: &mut Random) -> kvm_regs {
    let mut near = || PAGE + 0x800 - 0x200 + random.below(0x400);
    kvm_regs {
        rax: near(),
        rcx: near() & 0xff,
        rdx: near(),
        rbx: near(),
        rsp: near(),
        rbp: near(),
        rsi: near(),
        rdi: near(),
        rip: CODE,
        rflags: if is_native() { IOPL_3 } else { 2 },
        ..kvm_regs::default()
    }
}

/// True if it was carried out at all: something was asked of the guard.
fn run(configuration: &Configuration, level: Level, seed: u64, likely: bool) -> bool {
    let random = &mut Random(seed);
    let code = if likely { stores(random) } else { random.bytes(512) };
    let mut guest = Guest::from_bytes(configuration, &code);
    place_first(&guest, level);
    let memory = random.bytes(0x1000);
    guest.write(PAGE, &memory);
    let general = registers(random);
    guest.vm.with_processors(|processors| processors[0].fd.set_regs(&general).unwrap());
    let guarded = [0x780..0x800, 0x8c1..0x8c2, 0x900..0x908];
    for range in &guarded {
        let (start, bytes) = (PAGE + range.start as u64, range.len() as u64);
        guest.guard(start, bytes, Action::Deny);
    }
    guest.vm.start().unwrap();
    let ending = guest.vm.wait(BOUND).unwrap_or_else(|| {
        guest.vm.stop();
        guest.end()
    });
    let context = format!("seed {seed}, {:?} at {level:?}: {ending}", configuration.trap);
    if let Ending::Failed(failure) = &ending {
        assert!(!failure.reason.contains("bug"), "{context}");
    }
    let after: [u8; 0x1000] = guest.read(PAGE);
    for range in guarded {
        assert!(after[range.clone()] == memory[range], "guarded bytes have changed: {context}");
    }
    guest.vm.trap_counts().writes() > 0
}

fn all(likely: bool) -> u64 {
    let mut asked = 0;
    for configuration in both_ways() {
        for level in LEVELS {
            for seed in 0..share(GUESTS) {
                asked += u64::from(run(&configuration, level, seed, likely));
            }
        }
    }
    asked
}

#[test]
fn random_bytes_as_code() {
    if kvm() {
        println!("{} of {} guests stored to the page", all(false), 4 * share(GUESTS));
    }
}

#[test]
fn random_stores_as_code() {
    if kvm() {
        let asked = all(true);
        println!("{asked} of {} guests stored to the page", 4 * share(GUESTS));
        assert!(asked > share(GUESTS), "most of these guests store something");
    }
}

/// Where a guest leaves RAX and RDX, which the port that ends it needs.
const LEFT: u64 = PLAIN;

const PUSHF: u8 = 0x9c;
const NOP: u8 = 0x90;

/// A few stores, and a normal end that keeps every register: in the machine, or at [`LEFT`].
fn ending_stores(random: &mut Random) -> Vec<u8> {
    let mut code = Vec::new();
    for _ in 0..=random.below(5) {
        add_store(&mut code, random);
    }
    // At CPL 3 a KVM without the processor's help lets PUSHF store RFLAGS.IF as the host has it.
    for byte in &mut code {
        *byte = if *byte == PUSHF { NOP } else { *byte };
    }
    // A store that takes the next bytes for its immediate ends in these.
    code.extend([0x90; 8]);
    let [low, high] = [LEFT, LEFT + 8].map(u64::to_le_bytes);
    // MOV [LEFT], RAX; MOV RAX, RDX; MOV [LEFT + 8], RAX. No flag changes from here on.
    code.extend([&[0x48, 0xa3][..], &low, &[0x48, 0x89, 0xd0, 0x48, 0xa3], &high].concat());
    // MOV EAX, 0; MOV EDX, port; OUT DX, AL.
    code.extend([0xb8, 0, 0, 0, 0, 0xba]);
    code.extend(EXIT_PORT.to_le_bytes());
    code.push(0xee);
    code
}

/// All that a guest leaves.
struct Left {
    general: kvm_regs,
    special: kvm_sregs,
    extended: Vec<u32>,
    memory: Vec<u8>,
}

impl Left {
    /// The first difference of each kind.
    fn differences(&self, other: &Self) -> impl Iterator<Item = String> {
        let general = (self.general != other.general)
            .then(|| format!("{:x?}, not {:x?}", self.general, other.general));
        let special = (self.special != other.special)
            .then(|| format!("{:x?}, not {:x?}", self.special, other.special));
        let first =
            |what: &str, at: Option<usize>| at.map(|at| format!("{what} from byte {at:#x}"));
        let extended = self.extended.iter().zip(&other.extended).position(|(a, b)| a != b);
        let memory = self.memory.iter().zip(&other.memory).position(|(a, b)| a != b);
        let extended = first("extended state", extended.map(|word| word * 4));
        [general, special, extended, first("memory", memory)].into_iter().flatten()
    }
}

/// What is different about a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum With {
    /// Nothing.
    Plain,
    /// A rule guards bytes of the page that no store reaches, so every store to the page traps and is
    /// permitted.
    Rule,
    /// A rule denies all that they reach.
    Denials,
    /// One bit of the machine that it starts as.
    Bit(Part),
}

/// A part of a machine that is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    General,
    Special,
    Extended,
    Memory,
}

impl Part {
    /// Changes one bit of a guest that no instruction of [`ending_stores`] reaches.
    fn change(self, guest: &Guest) {
        guest.vm.with_processors(|processors| {
            let fd = &processors[0].fd;
            match self {
                Self::General => {
                    let mut general = fd.get_regs().unwrap();
                    general.r15 ^= 1 << 40;
                    fd.set_regs(&general).unwrap();
                }
                Self::Special => {
                    let mut special = fd.get_sregs().unwrap();
                    special.fs.base ^= 1 << 12;
                    fd.set_sregs(&special).unwrap();
                }
                Self::Extended => {
                    let mut area = processors[0].extended().unwrap();
                    // A byte of XMM15; the second component is in use.
                    area.0[160 + 15 * 16 + 3] ^= 4;
                    area.0[512] |= 2;
                    processors[0].set_extended(&area).unwrap();
                }
                Self::Memory => {}
            }
        });
        if self == Self::Memory {
            let [byte] = guest.read(UNREACHED);
            guest.write(UNREACHED, &[byte ^ 0x10]);
        }
    }
}

/// Memory that no guest uses.
const UNREACHED: u64 = 0x9f_f123;

/// Runs a guest; `None` if it does not end with the status of its last instruction. Beside it, how many
/// of its stores trapped.
fn left_by(
    configuration: &Configuration,
    level: Level,
    seed: u64,
    with: With,
) -> (Option<Left>, Ending, u64) {
    let random = &mut Random(seed);
    let code = ending_stores(random);
    let mut guest = Guest::from_bytes(configuration, &code);
    place_first(&guest, level);
    guest.write(PAGE, &random.bytes(0x1000));
    let general = registers(random);
    guest.vm.with_processors(|processors| processors[0].fd.set_regs(&general).unwrap());
    match with {
        With::Plain => {}
        With::Rule => guest.guard(PAGE + 0xff8, 8, Action::Deny),
        With::Denials => guest.guard(PAGE, 0x1000, Action::Deny),
        With::Bit(part) => part.change(&guest),
    }
    guest.vm.start().unwrap();
    // What ends without a rule ends with one, but a loop of stores that trap takes its time.
    let in_time = if matches!(with, With::Rule | With::Bit(_)) {
        Some(guest.end())
    } else {
        guest.vm.wait(BOUND)
    };
    let ending = in_time.unwrap_or_else(|| {
        guest.vm.stop();
        guest.end()
    });
    let writes = guest.vm.trap_counts().writes();
    if ending != (Ending::Exited { code: 0 }) {
        return (None, ending, writes);
    }
    let (general, special, mut extended) = guest.vm.with_processors(|processors| {
        let fd = &processors[0].fd;
        (fd.get_regs().unwrap(), fd.get_sregs().unwrap(), fd.get_xsave().unwrap().region.to_vec())
    });
    // XSTATE_BV: a processor may tell of a component in its initial state that it is in use, or that it
    // is not, and changes its mind between two runs (SDM Vol. 1, "Processor Tracking of XSAVE-Managed
    // State"). KVM fills such a component in, so that its bytes are compared.
    extended[512 / 4..][..2].fill(0);
    let mut memory = vec![0; configuration.memory.try_into().expect("some MiB")];
    guest.vm.ram().read(Gpa::new(0), &mut memory).expect("memory");
    (Some(Left { general, special, extended, memory }), ending, writes)
}

/// Every register, the extended state and all memory of guests that end: with a rule in the page
/// that they store to, and without one.
#[test]
fn a_guarded_machine_is_the_unguarded_one() {
    if !kvm() {
        return;
    }
    let (mut compared, mut trapped) = (0, 0);
    let (mut refused, mut different) = (Vec::<String>::new(), Vec::<String>::new());
    for configuration in both_ways() {
        for level in LEVELS {
            for seed in 1000..1000 + 2 * share(GUESTS) {
                let (expected, ..) = left_by(&configuration, level, seed, With::Plain);
                let Some(expected) = expected else { continue };
                let (left, ending, writes) = left_by(&configuration, level, seed, With::Rule);
                let context = format!("seed {seed}, {:?} at {level:?}", configuration.trap);
                let Some(left) = left else {
                    refused.push(format!("{context}: {ending}"));
                    continue;
                };
                compared += 1;
                trapped += u64::from(writes > 0);
                different
                    .extend(left.differences(&expected).map(|what| format!("{context}: {what}")));
            }
        }
    }
    println!("{compared} machines compared, {trapped} with trapped stores");
    assert_eq!(different, [""; 0], "a rule that no store touches changes nothing");
    assert_eq!(refused, [""; 0], "guests that end without a rule end with one");
    // Fewer where a host takes a part of the guests.
    assert!(compared >= 5 && trapped > compared / 2, "most of these guests store to the page");
}

/// The comparison sees one bit, in each part of a machine, and a rule that denies stores.
#[test]
fn the_comparison_sees_what_is_different() {
    if !kvm() {
        return;
    }
    let configuration = crate::guest::small();
    let (mut compared, mut denied) = (0, 0);
    for seed in 1000..1000 + GUESTS {
        let (expected, ..) = left_by(&configuration, Level::User, seed, With::Plain);
        let Some(expected) = expected else { continue };
        compared += 1;
        for part in [Part::General, Part::Special, Part::Extended, Part::Memory] {
            let (left, ending, _) = left_by(&configuration, Level::User, seed, With::Bit(part));
            let left = left.unwrap_or_else(|| panic!("seed {seed}, {part:?}: {ending}"));
            let differences: Vec<_> = left.differences(&expected).collect();
            assert_eq!(differences.len(), 1, "seed {seed}, {part:?}: {differences:?}");
        }
        let (left, _, writes) = left_by(&configuration, Level::User, seed, With::Denials);
        if let Some(left) = left.filter(|_| writes > 0) {
            denied += u64::from(left.differences(&expected).next().is_some());
        }
    }
    println!("{compared} machines, {denied} other ones by denials");
    assert!(compared > 5 && denied > 2, "{compared} machines, {denied} by denials");
}

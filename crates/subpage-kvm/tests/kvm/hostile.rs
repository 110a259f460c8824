//! Guests whose code is random bytes: the tool never panics, and guarded bytes never change.

use std::time::Duration;

use kvm_bindings::kvm_regs;
use subpage::rules::Action;
use subpage_kvm::vm::{Configuration, Ending};

use crate::guest::{CODE, Guest, PAGE, both_ways, kvm};
use crate::privilege::{FLAGS, LEVELS, Level, place_first};
use crate::random::Random;

/// How long a guest may go on. Most fault at once; what runs on is stopped.
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

/// Bytes that are likely to store something.
fn stores(random: &mut Random) -> Vec<u8> {
    let mut code = Vec::new();
    while code.len() < 400 {
        if random.below(8) == 0 {
            code.extend(random.pick(&IMPLIED));
            continue;
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
    // Over and over.
    let back = -5 - i32::try_from(code.len()).expect("short code");
    code.push(0xe9);
    code.extend(back.to_le_bytes());
    code
}

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
        rflags: FLAGS,
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
    guest.vm.ledger().writes() > 0
}

fn all(likely: bool) -> u64 {
    let mut asked = 0;
    for configuration in both_ways() {
        for level in LEVELS {
            for seed in 0..GUESTS {
                asked += u64::from(run(&configuration, level, seed, likely));
            }
        }
    }
    asked
}

#[test]
fn random_bytes_as_code() {
    if kvm() {
        println!("{} of {} guests stored to the page", all(false), 4 * GUESTS);
    }
}

#[test]
fn random_stores_as_code() {
    if kvm() {
        let asked = all(true);
        println!("{asked} of {} guests stored to the page", 4 * GUESTS);
        assert!(asked > GUESTS, "most of these guests store something");
    }
}

//! Stores that write some bytes of a stretch, and what is left of an instruction that is skipped.

use subpage::rules::Action;
use subpage_emulate::guest::Register;
use subpage_trap::{StoreOutcome, Verdict};

use crate::guest::{CODE, DATA, Guest};

/// MASKMOVDQU XMM1, XMM2
const MASKMOVDQU: [u8; 4] = [0x66, 0x0f, 0xf7, 0xca];

/// Only the bytes under the mask are decided about and written: a rule between them is not met.
#[test]
fn only_bytes_under_the_mask_are_written() {
    for (ruled, denied) in [(2, false), (3, true), (12, true), (15, false)] {
        for action in [Action::Log, Action::Deny] {
            let mut guest = Guest::new(true);
            guest.add_rule("one byte", action, guest.pages[0] + ruled, 1);
            guest.state.registers[Register::Rdi] = DATA;
            let value: Vec<u8> = (1..17).collect();
            guest.extended.0[176..192].copy_from_slice(&value);
            for byte in [0, 3, 12] {
                guest.extended.0[192 + byte] = 0x80;
            }
            assert_eq!(guest.run(&MASKMOVDQU), Ok(StoreOutcome::Done));
            let context = format!("{ruled} {action:?}");
            let mut expected = vec![0; 16];
            if !(denied && action == Action::Deny) {
                (expected[0], expected[3], expected[12]) = (1, 4, 13);
            }
            assert_eq!(guest.bytes(DATA, 16), expected, "{context}");
            let verdicts: Vec<Verdict> = guest.events.iter().map(|event| event.verdict).collect();
            let verdict = if action == Action::Log { Verdict::Logged } else { Verdict::Denied };
            assert_eq!(verdicts, if denied { vec![verdict] } else { vec![] }, "{context}");
            assert_eq!(guest.state.rip, CODE + 4);
        }
    }
}

/// Outside of 64-bit code an instruction pointer has 32 bits, also behind an instruction that is skipped.
#[test]
fn skipping_stays_within_32_bits_outside_of_64_bit_code() {
    for access in [0xa09b, 0xc09b] {
        let mut guest = Guest::new(true);
        guest.state.segments.cs.access = access;
        guest.add_rule("rule", Action::Deny, guest.pages[0], 8);
        guest.state.registers[Register::Rbx] = DATA;
        // mov [rbx], eax
        assert_eq!(guest.run(&[0x89, 0x03]), Ok(StoreOutcome::Done));
        assert_eq!((guest.state.rip, guest.events.len()), (CODE + 2, 1));
    }
}

//! Stores that software does not carry out, denied all the same.

use subpage::address::{ByteRange, Gpa};
use subpage::domain::WriteParts;
use subpage::rules::Action;
use subpage_emulate::{Exception, Refusal, Store};
use subpage_trap::{Met, Obstacle, Response, StoreOutcome, Verdict, deny_unknown};

use crate::guest::{CODE, DATA, Guest};

/// T12: what is skipped is as long as it was decoded, in 64-bit code and elsewhere.
#[test]
fn skipping_goes_by_the_decoded_length() {
    // INSB; INSW.
    let codes: [&[u8]; 2] = [&[0x6c], &[0x66, 0x6d]];
    for code in codes {
        for (response, stop) in
            [(Response::Skip, false), (Response::Fault, false), (Response::Fault, true)]
        {
            let mut guest = Guest::new(true);
            let action = if stop { Action::Stop } else { Action::Deny };
            let rule = guest.add_rule("unknown", action, guest.pages[0], 8);
            guest.response = response;
            let instruction = guest.decode(code);
            let refusal = Store::of(&instruction, &guest.state).unwrap_err();
            assert!(matches!(refusal, Refusal::Unsupported(_)), "{refusal:?}");
            let obstacle = Obstacle::<()>::from(refusal);
            assert!(obstacle.may_step(), "{obstacle:?}");
            let at = Gpa::new(guest.pages[0]);
            let parts = WriteParts::one(ByteRange::new(at, 1).unwrap());
            let met = Met::Forbidden { rule: Some(rule), at, stop };
            let mut state = guest.state;
            state.rflags |= 1 << 16;
            let outcome =
                deny_unknown(&mut guest, &instruction, &parts, Some(DATA), &mut state, met);
            let behind = CODE + code.len() as u64;
            match (response, stop) {
                (_, true) => assert_eq!((outcome, state.rip), (StoreOutcome::Stopped(1), behind)),
                (Response::Skip, _) => {
                    assert_eq!((outcome, state.rip), (StoreOutcome::Done, behind));
                    assert_eq!(state.rflags & 1 << 16, 0, "RF ends with the instruction");
                }
                (Response::Fault, _) => {
                    let refused = StoreOutcome::Refused(Exception::general_protection(0));
                    assert_eq!((outcome, state.rip), (refused, CODE));
                }
            }
            let event = &guest.events[0];
            let verdict = if stop { Verdict::Stopped } else { Verdict::Denied };
            assert_eq!((event.verdict, event.gla), (verdict, Some(DATA)));
            assert_eq!(event.instruction.as_slice(), code);
            assert!(event.bytes.is_empty(), "software does not know them");
        }
    }
}

//! Stores that software does not carry out, denied all the same.

use subpage::address::{ByteRange, Gpa};
use subpage::domain::WriteParts;
use subpage::rules::Action;
use subpage_emulate::guest::{Register, State};
use subpage_emulate::{Exception, Refusal, Store, Unsupported};
use subpage_trap::{
    Met, Obstacle, Response, StoreOutcome, Trapped, Verdict, Wanted, complete, deny, deny_unknown,
    locate_store, settle,
};

use crate::guest::{CODE, DATA, FRESH_CODE, Guest, set_stack};

/// What a rule says of the instruction that it denies: the response, and whether the guest stops.
const ANSWERS: [(Response, bool); 3] =
    [(Response::Skip, false), (Response::Fault, false), (Response::Fault, true)];

/// What came of the first instruction at [`CODE`], whose store to `at` is denied and whose bytes nobody
/// knows.
fn check(
    guest: &Guest,
    code: &[u8],
    (response, stop): (Response, bool),
    outcome: StoreOutcome<u64>,
    state: &State,
    at: u64,
) {
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
    let [event] = &guest.events[..] else { panic!("{:?}", guest.events) };
    let verdict = if stop { Verdict::Stopped } else { Verdict::Denied };
    assert_eq!((event.verdict, event.gla), (verdict, Some(at)));
    assert_eq!(event.instruction.as_slice(), code);
    assert!(event.bytes.is_empty(), "software does not know them");
}

/// T12: what is skipped is as long as it was decoded, in 64-bit code and elsewhere.
#[test]
fn skipping_goes_by_the_decoded_length() {
    // INSB; INSW.
    let codes: [&[u8]; 2] = [&[0x6c], &[0x66, 0x6d]];
    for code in codes {
        for (response, stop) in ANSWERS {
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
            check(&guest, code, (response, stop), outcome, &state, DATA);
        }
    }
}

/// CALL FAR [RBX]
const CALL: [u8; 2] = [0xff, 0x1b];

/// A guest whose far call pushes to `DATA + 0xf8` and leads to a segment that was not used before.
fn calling(action: Action) -> Guest {
    let mut guest = Guest::new(true);
    guest.add_rule("stack", action, guest.pages[0] + 0xf8, 8);
    guest.memory.put(guest.pages[0] + 0x800, &[0, 0, 0x40, 0]);
    guest.memory.put(guest.pages[0] + 0x804, &FRESH_CODE.to_le_bytes());
    guest.state.registers[Register::Rbx] = DATA + 0x800;
    guest.state.rflags |= 1 << 16;
    set_stack(&mut guest, DATA + 0x100);
    guest
}

/// What only the rehearsal finds to be unknown is denied like what is unknown from the start: by a backend
/// whose engine has decided already, and by one that asks and cannot step.
#[test]
fn a_denied_store_that_cannot_be_rehearsed_is_skipped() {
    for decided in [true, false] {
        for (response, stop) in ANSWERS {
            let action = if stop { Action::Stop } else { Action::Deny };
            let mut guest = calling(action);
            (guest.response, guest.steps) = (response, false);
            let before = guest.bytes(DATA, 0x1000);
            let instruction = guest.decode(&CALL);
            let store = Store::of(&instruction, &guest.state).unwrap();
            let mut state = guest.state;
            let trapped = Trapped { instruction: &instruction, store: &store };
            let store = settle(&mut guest, trapped, &mut state).unwrap().unwrap();
            let trapped = Trapped { store: &store, ..trapped };
            let located = locate_store(&mut guest, &store, &state, Wanted::InTraps).unwrap();
            let outcome = if decided {
                let at = Gpa::new(guest.pages[0] + 0xf8);
                let rule = guest.domain.rules().touching(ByteRange::new(at, 1).unwrap()).next();
                let met = Met::Forbidden { rule: rule.map(|active| active.id), at, stop };
                deny(&mut guest, trapped, &located, &mut state, met).unwrap()
            } else {
                complete(&mut guest, trapped, &located, &mut state).unwrap()
            };
            check(&guest, &CALL, (response, stop), outcome, &state, DATA + 0xf8);
            assert_eq!(guest.events[0].length, Some(8));
            assert_eq!(guest.bytes(DATA, 0x1000), before);
            assert_eq!(state.segments, guest.state.segments, "nothing of it happens");
        }
    }
}

/// A backend that lets the processor take the step hears of it before anything is decided, and so does
/// everyone where the store is not denied.
#[test]
fn what_may_be_stepped_over_is_no_denial() {
    for (action, steps) in [(Action::Deny, true), (Action::Log, true), (Action::Log, false)] {
        let mut guest = calling(action);
        guest.steps = steps;
        let outcome = guest.run(&CALL);
        assert_eq!(outcome, Err(Obstacle::Unknown(Unsupported::DescriptorMark)));
        assert!(guest.events.is_empty());
    }
}

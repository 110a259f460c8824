//! What a backend hears of a write, and what it need not answer.

use subpage::rules::Action;
use subpage_emulate::guest::Register;
use subpage_emulate::{EventKind, VectoringEvent};
use subpage_trap::{Delivered, Frame, Response, StoreOutcome, Verdict};

use crate::guest::{CODE, DATA, EDGE, Guest, set_stack};

/// mov [rbx], rax
const MOV: [u8; 3] = [0x48, 0x89, 0x03];

/// Each write is heard of once before it is decided about, and once more if it has happened, in a
/// sub-page that is restricted and in one that is not.
#[test]
fn a_write_is_heard_of_once_and_again_when_it_has_happened() {
    for (action, offset, happens) in [
        (Action::Deny, 0, false),
        (Action::Stop, 0, false),
        (Action::Log, 0, true),
        (Action::AllowOnce, 0, true),
        (Action::Deny, 8, true),
        (Action::Deny, 0x800, true),
    ] {
        let mut guest = Guest::new(true);
        guest.add_rule("rule", action, guest.pages[0], 8);
        guest.state.registers[Register::Rbx] = DATA + offset;
        let outcome = guest.run(&MOV).unwrap();
        assert_eq!(matches!(outcome, StoreOutcome::Stopped(_)), action == Action::Stop);
        let write = (guest.pages[0] + offset, 8);
        assert_eq!(guest.checked, [write], "{action:?} {offset}");
        assert_eq!(
            guest.written,
            if happens { vec![write] } else { vec![] },
            "{action:?} {offset}"
        );
    }
}

/// The same for the frame of an event.
#[test]
fn a_frame_is_heard_of_like_a_store() {
    let timer = VectoringEvent { vector: 0x20, error_code: None, kind: EventKind::Interrupt };
    for (action, happens) in [(Action::Deny, false), (Action::Log, true)] {
        let mut guest = Guest::new(true);
        guest.add_rule("stack", action, guest.pages[0] + 0xff0, 8);
        set_stack(&mut guest, EDGE);
        let mut state = guest.state;
        let delivered = Frame::deliver(&mut guest, &mut state, &timer).unwrap();
        assert_eq!(delivered == Delivered::Handler, happens);
        let frame = (guest.pages[0] + 0x1000 - 40, 40);
        assert_eq!(guest.checked, [frame]);
        assert_eq!(guest.written, if happens { vec![frame] } else { vec![] });
    }
}

/// A backend without exits has no qualification of one, and decides in software.
#[test]
fn without_exits_there_is_no_qualification() {
    let mut guest = Guest::new(true);
    guest.add_rule("rule", Action::Deny, guest.pages[0], 8);
    guest.state.registers[Register::Rbx] = DATA;
    assert_eq!(guest.run(&MOV), Ok(StoreOutcome::Done));
    let event = &guest.events[0];
    assert_eq!((event.qualification, event.in_software), (None, true));
    assert_eq!((event.response, event.during_delivery), (Response::Skip, false));
    assert_eq!((event.origin.rip, event.instruction.as_slice()), (Some(CODE), &MOV[..]));
}

#[test]
fn verdicts_in_words() {
    for (verdict, word, denied) in [
        (Verdict::Denied, "denied", true),
        (Verdict::Stopped, "stopped", true),
        (Verdict::Logged, "logged", false),
        (Verdict::AllowedOnce, "allowed once", false),
    ] {
        assert_eq!((verdict.word(), verdict.is_denial()), (word, denied));
    }
}

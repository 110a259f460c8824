//! Frames of interrupts and exceptions: one decision, an event for each that meets something.

use subpage::rules::Action;
use subpage_emulate::{EventKind, VectoringEvent};
use subpage_trap::{Delivered, Frame, Obstacle, Verdict, software_interrupt};

use crate::guest::{CODE, EDGE, Guest, HANDLER, set_stack};
use crate::judge::Setup;

const TIMER: VectoringEvent =
    VectoringEvent { vector: 0x20, error_code: None, kind: EventKind::Interrupt };
const PROTECTION: VectoringEvent =
    VectoringEvent { vector: 13, error_code: Some(0x18), kind: EventKind::Exception };
const DOUBLE: VectoringEvent =
    VectoringEvent { vector: 8, error_code: Some(0), kind: EventKind::Exception };

fn frame_of(guest: &Guest, event: &VectoringEvent, rsp: u64) -> Vec<u8> {
    let fault = event.kind == EventKind::Exception && event.vector == 13;
    let flags = guest.state.rflags | if fault { 1 << 16 } else { 0 };
    let error = event.error_code.map(u64::from);
    let words = error.into_iter().chain([guest.state.rip, 0x08, flags, rsp, 0x10]);
    words.flat_map(u64::to_le_bytes).collect()
}

/// Every frame at and over a page end, under all rules and maps, three times in a row.
#[test]
fn every_frame_at_a_page_end() {
    let mut cases = 0;
    for setup in Setup::all() {
        for event in [TIMER, PROTECTION, DOUBLE] {
            for top in (EDGE - 16..=EDGE + 64).step_by(16) {
                let (mut guest, mut judge) = setup.build();
                let rsp = top + 5;
                let length = if event.error_code.is_some() { 48 } else { 40 };
                let linear = top - length;
                for _ in 0..3 {
                    set_stack(&mut guest, rsp);
                    cases += 1;
                    let frame = frame_of(&guest, &event, rsp);
                    let expected = judge.judge(linear, length);
                    let touched = judge_traps(&guest, linear, length);
                    let mut state = guest.state;
                    let old = guest.bytes(linear, length);
                    let delivered = Frame::deliver(&mut guest, &mut state, &event);
                    if !touched {
                        assert_eq!(delivered, Err(Obstacle::NotOurs));
                        continue;
                    }
                    let delivered = delivered.unwrap();
                    let stored = if expected.stored { &frame } else { &old };
                    assert_eq!(guest.bytes(linear, length), *stored, "{setup:?} {top:#x}");
                    judge.check_event(&mut guest, expected, linear, &frame);
                    match expected.event {
                        _ if expected.stored => {
                            assert_eq!(delivered, Delivered::Handler);
                            assert_eq!(state.rip, HANDLER);
                            assert_eq!(state.registers.0[4], linear);
                        }
                        Some((Verdict::Stopped, _)) => {
                            assert_eq!(delivered, Delivered::Stopped(1));
                        }
                        _ if event == DOUBLE => assert_eq!(delivered, Delivered::TripleFault),
                        _ => {
                            let Delivered::Inject(exception) = delivered else {
                                panic!("{delivered:?}")
                            };
                            assert_eq!((exception.vector, exception.error_code), (8, Some(0)));
                        }
                    }
                    if !expected.stored {
                        assert_eq!(state, guest.state, "nothing was delivered");
                    }
                    // The bytes of the next round are told from these.
                    guest.state.rflags ^= 1;
                }
            }
        }
    }
    assert!(cases > 8_000, "{cases}");
}

fn judge_traps(guest: &Guest, linear: u64, length: u64) -> bool {
    use subpage_trap::Backend;
    [linear, linear + length - 1]
        .into_iter()
        .any(|at| guest.traps(subpage::address::Gpa::new(guest.physical(at)).gfn()))
}

/// T12: a frame that a rule wants to know of makes an event, with its bytes.
#[test]
fn a_logged_frame_makes_an_event() {
    let mut guest = Guest::new(true);
    guest.add_rule("stack", Action::Log, guest.pages[0] + 0xf00, 0x100);
    set_stack(&mut guest, EDGE);
    let mut state = guest.state;
    let expected = frame_of(&guest, &TIMER, EDGE);
    assert_eq!(Frame::deliver(&mut guest, &mut state, &TIMER), Ok(Delivered::Handler));
    let [event] = &guest.events[..] else { panic!("{:?}", guest.events) };
    assert_eq!((event.verdict, event.during_delivery), (Verdict::Logged, true));
    assert_eq!(event.bytes, expected);
    assert!(event.instruction.is_empty());
}

/// T12: `deny` in the first page hides no `stop` in the second.
#[test]
fn the_strongest_rule_of_both_pages_decides() {
    for neighbours in [true, false] {
        let mut guest = Guest::new(neighbours);
        guest.add_rule("deny", Action::Deny, guest.pages[0] + 0xff8, 8);
        let stop = guest.add_rule("stop", Action::Stop, guest.pages[1], 8);
        set_stack(&mut guest, EDGE + 16);
        let mut state = guest.state;
        let delivered = Frame::deliver(&mut guest, &mut state, &TIMER);
        assert_eq!(delivered, Ok(Delivered::Stopped(1)));
        assert_eq!(guest.events[0].rule, Some(stop));
    }
}

/// T12: one "allow once" over both pages lets one frame through, whole, and no second one.
#[test]
fn allow_once_over_two_pages_is_one_write() {
    let mut guest = Guest::new(true);
    guest.add_rule("once", Action::AllowOnce, guest.pages[0] + 0xf00, 0x200);
    set_stack(&mut guest, EDGE + 16);
    let frame = frame_of(&guest, &TIMER, EDGE + 16);
    let mut state = guest.state;
    assert_eq!(Frame::deliver(&mut guest, &mut state, &TIMER), Ok(Delivered::Handler));
    assert_eq!(guest.bytes(EDGE + 16 - 40, 40), frame);
    assert_eq!(guest.events.len(), 1);
    assert_eq!(guest.events[0].verdict, Verdict::AllowedOnce);
    guest.state.rflags ^= 1;
    let mut state = guest.state;
    let delivered = Frame::deliver(&mut guest, &mut state, &TIMER).unwrap();
    assert!(matches!(delivered, Delivered::Inject(_)), "{delivered:?}");
    assert_eq!(guest.bytes(EDGE + 16 - 40, 40), frame, "not a byte of the second");
}

/// A code descriptor whose accessed flag the delivery sets: logged like any write, and left alone
/// where it may not be written.
#[test]
fn the_accessed_flag_of_a_descriptor() {
    for (action, sets, events) in
        [(None, true, 0), (Some(Action::Log), true, 1), (Some(Action::Deny), false, 0)]
    {
        let mut guest = Guest::new(true);
        guest.memory.put(0x7008 + 5, &[0x9a]);
        if let Some(action) = action {
            guest.add_rule("gdt", action, 0x7000, 0x80);
        }
        guest.add_rule("elsewhere", Action::Deny, guest.pages[0], 8);
        set_stack(&mut guest, EDGE);
        let mut state = guest.state;
        assert_eq!(Frame::deliver(&mut guest, &mut state, &TIMER), Ok(Delivered::Handler));
        assert_eq!(guest.memory.get::<1>(0x7008 + 5), [0x9a | u8::from(sets)], "{action:?}");
        assert_eq!(guest.events.len(), events, "{action:?}");
        if let [event] = &guest.events[..] {
            assert_eq!((event.gpa.as_u64(), &event.bytes[..]), (0x700d, &[0x9b][..]));
        }
    }
}

/// What comes up during the delivery of a fault escalates; with an interrupt it does not.
#[test]
fn exceptions_during_a_delivery() {
    for (event, vector) in [(TIMER, 14), (PROTECTION, 14), (DOUBLE, 0)] {
        let mut guest = Guest::new(true);
        guest.add_rule("deny", Action::Deny, guest.pages[0], 8);
        guest.set_page_table_entry(EDGE, 0);
        set_stack(&mut guest, EDGE + 16);
        let mut state = guest.state;
        let delivered = Frame::deliver(&mut guest, &mut state, &event).unwrap();
        match (vector, delivered) {
            (0, Delivered::TripleFault) => {}
            (vector, Delivered::Inject(exception)) => assert_eq!(exception.vector, vector),
            other => panic!("{other:?}"),
        }
        assert_eq!(guest.page_table_entry(EDGE - 1) & 0x60, 0, "the first page is not marked");
        assert_eq!(guest.events, []);
    }
}

/// Outside of IA-32e mode nothing is known of the frame.
#[test]
fn legacy_deliveries_are_for_the_processor() {
    let mut guest = Guest::new(true);
    guest.state.efer = 0;
    let mut state = guest.state;
    let obstacle = Frame::deliver(&mut guest, &mut state, &TIMER).unwrap_err();
    assert_eq!(obstacle, Obstacle::LegacyDelivery);
    assert!(obstacle.may_step());
}

#[test]
fn software_interrupts_are_told_from_their_bytes() {
    let mut guest = Guest::new(true);
    for (code, event) in [
        (&[0xcd, 0x80][..], Some((0x80, 2))),
        (&[0xcc], Some((3, 1))),
        (&[0x66, 0xcc], Some((3, 2))),
        (&[0xcd, 0xcc], Some((0xcc, 2))),
        (&[0x48, 0xcd, 0x21], Some((0x21, 3))),
        (&[0xf1], None),
        (&[0x90], None),
        (&[0xb0, 0xcc], None),
        (&[0x66, 0xb8, 0xcd, 0x80], None),
    ] {
        guest.state.rip = CODE;
        let found = software_interrupt(&guest.decode(code));
        let expected = event.map(|(vector, instruction_bytes)| VectoringEvent {
            vector,
            error_code: None,
            kind: EventKind::Software { instruction_bytes },
        });
        assert_eq!(found, expected, "{code:x?}");
    }
}

/// INTO is an instruction outside of 64-bit code only.
#[test]
fn into_is_told_from_its_byte() {
    let mut guest = Guest::new(true);
    guest.state.segments.cs.access = 0xc09b;
    for (code, bytes) in [(&[0xce][..], 1), (&[0x2e, 0xce], 2)] {
        let event = software_interrupt(&guest.decode(code));
        let kind = EventKind::Software { instruction_bytes: bytes };
        assert_eq!(event, Some(VectoringEvent { vector: 4, error_code: None, kind }), "{code:x?}");
    }
}

/// The accessed flag of a code descriptor stays clear where a page table forbids the write, and the
/// delivery is none the worse.
#[test]
fn the_accessed_flag_of_a_descriptor_in_a_read_only_page() {
    for (writable, sets) in [(2, true), (0, false)] {
        let mut guest = Guest::new(true);
        let entry = guest.page_table_entry(CODE + 0x7000);
        guest.set_page_table_entry(CODE + 0x7000, entry & !2 | writable);
        guest.memory.put(0x7008 + 5, &[0x9a]);
        guest.add_rule("elsewhere", Action::Deny, guest.pages[0], 8);
        set_stack(&mut guest, EDGE);
        let mut state = guest.state;
        assert_eq!(Frame::deliver(&mut guest, &mut state, &TIMER), Ok(Delivered::Handler));
        assert_eq!(guest.memory.get::<1>(0x7008 + 5), [0x9a | u8::from(sets)]);
    }
}

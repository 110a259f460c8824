//! Stores at and over a page end: one decision, all bytes or none, one event.

use subpage::address::{ByteRange, Gpa};
use subpage::rules::Action;
use subpage_emulate::Exception;
use subpage_emulate::guest::Register;
use subpage_trap::{Obstacle, Response, StoreOutcome, Verdict};

use crate::guest::{CODE, DATA, EDGE, Guest};
use crate::judge::Setup;

/// Stores to [RBX]: their code and how many bytes they write.
const STORES: [(&[u8], u64); 6] = [
    (&[0x88, 0x03], 1),                   // mov [rbx], al
    (&[0x66, 0x89, 0x03], 2),             // mov [rbx], ax
    (&[0x89, 0x03], 4),                   // mov [rbx], eax
    (&[0x48, 0x89, 0x03], 8),             // mov [rbx], rax
    (&[0x0f, 0x11, 0x03], 16),            // movups [rbx], xmm0
    (&[0xf0, 0x48, 0x0f, 0xc1, 0x03], 8), // lock xadd [rbx], rax
];

/// Every store, at every distance from the page end at which some of its bytes meet a rule or
/// map, under all rules and maps, three times in a row.
#[test]
fn every_store_at_a_page_end() {
    let mut cases = 0;
    for setup in Setup::all() {
        for (code, length) in STORES {
            for before in 0..=length + 5 {
                let (mut guest, mut judge) = setup.build();
                let linear = EDGE + 4 - before;
                guest.state.registers[Register::Rbx] = linear;
                for round in 0..3_u64 {
                    let value = 0x1122_3344_5566_7788_u64.wrapping_mul(round + 1);
                    guest.state.registers[Register::Rax] = value;
                    guest.state.rip = CODE;
                    guest.executed = 0;
                    cases += 1;
                    round_of(&mut guest, &mut judge, code, linear, length);
                }
            }
        }
    }
    assert!(cases > 30_000, "{cases}");
}

fn round_of(
    guest: &mut Guest,
    judge: &mut crate::judge::Judge,
    code: &[u8],
    linear: u64,
    length: u64,
) {
    let expected = judge.judge(linear, length);
    let old = guest.bytes(linear, length);
    guest.decode(code);
    let whole = guest.memory.0.borrow().clone();
    let value = guest.state.registers[Register::Rax];
    let new = match (code[0], length) {
        (0xf0, _) => {
            let sum = value.wrapping_add(u64::from_le_bytes(old.clone().try_into().unwrap()));
            sum.to_le_bytes().to_vec()
        }
        (_, 16) => vec![0xa7; 16],
        _ => value.to_le_bytes()[..usize::try_from(length).unwrap()].to_vec(),
    };
    let traps = [linear, linear + length - 1].into_iter().any(|at| {
        subpage_trap::Backend::traps(guest, subpage::address::Gpa::new(guest.physical(at)).gfn())
    });
    let outcome = guest.run(code);
    if !traps {
        assert_eq!(outcome, Err(Obstacle::NotOurs));
        assert!(*guest.memory.0.borrow() == whole, "no mark, no byte");
        assert_eq!(guest.executed, 0);
        return;
    }
    match outcome.unwrap() {
        StoreOutcome::Stopped(_) => {
            assert_eq!(expected.event.map(|(verdict, _)| verdict), Some(Verdict::Stopped));
        }
        outcome => assert_eq!(outcome, StoreOutcome::Done),
    }
    let stored = if expected.stored { &new } else { &old };
    assert_eq!(guest.bytes(linear, length), *stored, "all bytes or none at {linear:#x}");
    judge.check_event(guest, expected, linear, &new);
    // Whether the bytes are stored or forgotten, the registers are those behind the instruction.
    assert_eq!(guest.state.rip, CODE + code.len() as u64);
    if code[0] == 0xf0 {
        let register = guest.state.registers[Register::Rax];
        assert_eq!(register.to_le_bytes().to_vec(), old);
    }
    // Nothing else has changed but flags of the page tables.
    let mut there = guest.memory.0.borrow().clone();
    let mut before = whole;
    for memory in [&mut there, &mut before] {
        memory[0x1000..0x6000].fill(0);
        for at in linear..linear + length {
            memory[usize::try_from(guest.physical(at)).unwrap()] = 0;
        }
    }
    assert!(there == before, "nothing else has changed");
    // What a MOV stores is known without a rehearsal.
    let is_move = code[0] != 0xf0 && length != 16;
    let executed = match (is_move, expected.stored, expected.event.is_some()) {
        (true, false, true) => 0,
        (false, true, true) => 2,
        _ => 1,
    };
    assert_eq!(guest.executed, executed);
}

/// A denied instruction leaves the extended registers of a ROM; one that is refused, those before it.
#[test]
fn extended_registers_follow_the_outcome() {
    // fstp qword [rbx]: pops.
    let code = [0xdd, 0x1b];
    for (action, response, pops) in [
        (Action::Log, Response::Skip, true),
        (Action::Deny, Response::Skip, true),
        (Action::Deny, Response::Fault, false),
    ] {
        let mut guest = Guest::new(true);
        guest.add_rule("fpu", action, guest.pages[0], 8);
        guest.response = response;
        guest.state.registers[Register::Rbx] = DATA;
        // TOP is 7, register 7 valid: 1.0.
        guest.extended.0[0..2].copy_from_slice(&0x37f_u16.to_le_bytes());
        guest.extended.0[2..4].copy_from_slice(&(7_u16 << 11).to_le_bytes());
        guest.extended.0[4] = 0x80;
        guest.extended.0[32..42].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
        let before = guest.extended;
        let outcome = guest.run(&code).unwrap();
        let refused = StoreOutcome::Refused(Exception::general_protection(0));
        assert_eq!(outcome, if pops { StoreOutcome::Done } else { refused });
        let top = guest.extended.0[3] >> 3 & 7;
        assert_eq!(top, if pops { 0 } else { 7 }, "{action:?} {response:?}");
        if !pops {
            assert_eq!(guest.extended.0, before.0);
            assert_eq!(guest.state.rip, CODE);
        }
        assert_eq!(guest.events.len(), 1);
        assert_eq!(guest.events[0].bytes, 1.0_f64.to_le_bytes());
        let stored = guest.bytes(DATA, 8) == 1.0_f64.to_le_bytes();
        assert_eq!(stored, action == Action::Log);
    }
}

/// One element of a repeated string instruction is one write.
#[test]
fn each_element_is_decided_by_itself() {
    let mut guest = Guest::new(true);
    guest.add_rule("middle", Action::Deny, guest.pages[0] + 9, 1);
    guest.state.registers[Register::Rdi] = DATA;
    guest.state.registers[Register::Rcx] = 3;
    guest.state.registers[Register::Rax] = 0x55;
    // rep stosq
    let code = [0xf3, 0x48, 0xab];
    for (left, outcome) in
        [(2, StoreOutcome::Repeats), (1, StoreOutcome::Repeats), (0, StoreOutcome::Done)]
    {
        assert_eq!(guest.run(&code), Ok(outcome));
        assert_eq!(guest.state.registers[Register::Rcx], left);
    }
    let stored: Vec<bool> = (0..3).map(|n| guest.bytes(DATA + 8 * n, 1) == [0x55]).collect();
    assert_eq!(stored, [true, false, true]);
    assert_eq!(guest.events.len(), 1);
    assert_eq!(guest.events[0].gla, Some(DATA + 8));
}

/// Of a store under a mask that is zero nothing is written and nothing told, and it is over: processors
/// may ask for its page all the same, again and again.
#[test]
fn a_store_whose_mask_is_zero_is_over() {
    let mut guest = Guest::new(true);
    guest.add_rule("deny", Action::Deny, guest.pages[0], 0x1000);
    guest.state.registers[Register::Rdi] = DATA;
    // MASKMOVDQU XMM1, XMM2; MASKMOVQ MM0, MM0.
    for code in [&[0x66, 0x0f, 0xf7, 0xca][..], &[0x0f, 0xf7, 0xc0]] {
        guest.state.rip = CODE;
        guest.state.rflags |= 1 << 16;
        assert_eq!(guest.run(code), Ok(StoreOutcome::Done));
        assert_eq!(guest.state.rip, CODE + code.len() as u64);
        assert_eq!(guest.state.rflags & 1 << 16, 0, "RF ends with the instruction");
    }
    assert_eq!((guest.bytes(DATA, 16), guest.events.len()), (vec![0; 16], 0));
}

/// ENTER asks for the right to write where the stack pointer then is, so the page there may trap although
/// nothing is written to it.
#[test]
fn enter_is_carried_out_although_only_its_room_lies_in_a_page_that_traps() {
    let mut guest = Guest::new(true);
    guest.add_rule("room", Action::Deny, guest.pages[0] + 0xf80, 8);
    guest.state.registers[Register::Rsp] = EDGE + 0x40;
    // ENTER 0x60, 0.
    assert_eq!(guest.run(&[0xc8, 0x60, 0, 0]), Ok(StoreOutcome::Done));
    assert_eq!(guest.state.registers[Register::Rsp], EDGE + 0x40 - 8 - 0x60);
    assert_eq!(guest.state.registers[Register::Rbp], EDGE + 0x38);
    assert_eq!((guest.state.rip, guest.events.len()), (CODE + 4, 0));
}

/// A write to a read-only slot completes as over a ROM, without an event.
#[test]
fn a_read_only_slot_is_a_rom() {
    use subpage::slots::{SlotFlags, SlotId};
    let mut guest = Guest::new(true);
    guest.add_rule("log", Action::Log, guest.pages[0], 8);
    let flags = SlotFlags { read_only: true, log_dirty: false };
    let token = guest.domain.set_slot_flags(crate::guest::SPACE, SlotId(0), flags).unwrap();
    guest.domain.finish(&token.without_processors());
    guest.state.registers[Register::Rbx] = DATA;
    guest.state.registers[Register::Rax] = 5;
    assert_eq!(guest.run(&[0x48, 0x89, 0x03]), Ok(StoreOutcome::Done));
    assert_eq!(guest.bytes(DATA, 8), [0; 8]);
    assert_eq!((guest.state.rip, guest.events.len()), (CODE + 3, 0));
}

/// P14: however little an exit tells of the length, all bytes of the store are judged: `deny` at the
/// first hides no `stop` at a later one.
#[test]
fn deny_at_the_first_byte_hides_no_stop_at_a_later_one() {
    for (neighbours, first) in [(true, DATA), (true, EDGE - 4), (false, EDGE - 4)] {
        for later in 1..8 {
            let mut guest = Guest::new(neighbours);
            let (from, to) = (guest.physical(first), guest.physical(first + later));
            guest.add_rule("deny", Action::Deny, from, 1);
            let stop = guest.add_rule("stop", Action::Stop, to, 1);
            guest.state.registers[Register::Rbx] = first;
            guest.state.registers[Register::Rax] = u64::MAX;
            // mov [rbx], rax
            assert_eq!(guest.run(&[0x48, 0x89, 0x03]), Ok(StoreOutcome::Stopped(1)));
            let [event] = &guest.events[..] else { panic!("{:?}", guest.events) };
            assert_eq!((event.rule, event.at.as_u64(), event.length), (Some(stop), to, Some(8)));
            assert_eq!(guest.bytes(first, 8), [0; 8]);
        }
    }
}

/// P14: a write that is denied in its second page has written none of the tracked bytes in its first.
#[test]
fn a_write_denied_in_its_second_page_marks_no_tracked_sub_page() {
    for (action, harvested) in [(Action::Deny, 0), (Action::Log, 1)] {
        let mut guest = Guest::new(true);
        guest.add_rule("second", action, guest.pages[1], 8);
        let first = ByteRange::new(Gpa::new(guest.pages[0]), 4096).unwrap();
        let (id, token) = guest.domain.track(first).unwrap();
        guest.domain.finish(&token.without_processors());
        guest.state.registers[Register::Rbx] = EDGE - 4;
        assert_eq!(guest.run(&[0x48, 0x89, 0x03]), Ok(StoreOutcome::Done));
        let (pending, token) = guest.domain.harvest_written(id).unwrap();
        let written = pending.ready(&token.without_processors()).unwrap();
        assert_eq!(written.len(), harvested, "{action:?}");
    }
}

/// Another processor changes the source between the rehearsal and the store: what the event tells is what
/// memory has got, and nothing that it never held.
#[test]
fn an_event_tells_the_bytes_that_were_stored() {
    // movsq; push qword [rsi]
    let stores: [(&[u8], u64); 2] = [(&[0x48, 0xa5], DATA), (&[0xff, 0x36], DATA)];
    for (code, linear) in stores {
        for action in [Action::Log, Action::AllowOnce, Action::Deny] {
            let mut guest = Guest::new(true);
            guest.add_rule("raced", action, guest.pages[0], 8);
            guest.memory.put(0x6800, &[0x11; 8]);
            guest.raced = Some((0x6800, 0x22));
            guest.state.registers[Register::Rsi] = CODE + 0x6800;
            guest.state.registers[Register::Rdi] = linear;
            guest.state.registers[Register::Rsp] = linear + 8;
            assert_eq!(guest.run(code), Ok(StoreOutcome::Done));
            let event = &guest.events[0];
            if action == Action::Deny {
                assert_eq!(event.bytes, [0x11; 8]);
                continue;
            }
            assert_eq!(event.bytes, guest.bytes(linear, 8), "{action:?}");
            assert_eq!(event.bytes[0], 0x22, "{action:?}");
        }
    }
}

//! `ReadEvents`, and what holds for every result in guest memory.

use zerocopy::FromBytes;

use super::*;
use crate::abi::{EventRecord, event_flag, query};
use crate::event::{CAPACITY, samples};

fn records(guest: &Guest, address: u64, count: i64) -> Vec<EventRecord> {
    let count = usize::try_from(count).expect("a success");
    let bytes = guest.memory.at(address, count * 168);
    bytes.chunks_exact(168).map(|r| EventRecord::read_from_bytes(r).expect("168 bytes")).collect()
}

fn sequences(guest: &Guest, count: i64) -> Vec<u64> {
    records(guest, RESULT, count).iter().map(|record| record.sequence.get()).collect()
}

#[test]
fn events_leave_the_ring_in_order() {
    let mut guest = Guest::new();
    assert_eq!(guest.call(Call::ReadEvents, &[u64::MAX, 5]), 0, "nothing to write");
    for _ in 0..3 {
        guest.ledger.events.push(&samples::full());
    }
    assert_eq!(guest.call(Call::ReadEvents, &[u64::MAX, 0]), 0);
    assert_eq!(guest.call(Call::ReadEvents, &[RESULT, 2]), 2);
    assert_eq!(sequences(&guest, 2), [1, 2]);
    assert_eq!(guest.memory.at(RESULT + 336, 168), [0; 168], "not a byte beyond the records");
    let read = records(&guest, RESULT, 1)[0];
    assert_eq!(read.as_bytes(), crate::event::record(&samples::full(), 1).as_bytes());
    assert_eq!(guest.call(Call::ReadEvents, &[RESULT, u64::MAX]), 1);
    assert_eq!(sequences(&guest, 1), [3]);
    assert_eq!(guest.call(Call::ReadEvents, &[RESULT, 1]), 0);
}

#[test]
fn a_whole_ring_crosses_pages_and_tells_of_lost_ones() {
    let mut guest = Guest::new();
    for _ in 0..CAPACITY + 7 {
        guest.ledger.events.push(&samples::full());
    }
    assert_eq!(guest.call(Call::Query, &[query::EVENTS_LOST]), 7);
    let count = guest.call(Call::ReadEvents, &[RESULT + 5, u64::MAX]);
    assert_eq!(count, 256);
    let read = records(&guest, RESULT + 5, count);
    assert!(read.iter().zip(1..).all(|(record, number)| record.sequence.get() == number));
}

#[test]
fn what_cannot_be_written_is_not_consumed() {
    let mut guest = Guest::new();
    guest.ledger.events.push(&samples::full());
    guest.ledger.events.push(&samples::full());
    let addresses = [SHARED, UNMAPPED, ROM, RAM].map(|gfn| gfn * PAGE);
    for address in addresses.into_iter().chain([SHARED * PAGE - 335, 1 << 48, u64::MAX - 335]) {
        guest.fails(Call::ReadEvents, &[address, 2], Errno::Fault);
        assert_eq!(guest.ledger.events.len(), 2);
    }
    guest.host_rule(RESULT + 335, 1, Action::Deny);
    guest.fails(Call::ReadEvents, &[RESULT, 2], Errno::Fault);
    assert_eq!(guest.call(Call::ReadEvents, &[RESULT, 1]), 1, "the part before the rule");
    // What remains: the second, and that of the call that was denied.
    assert_eq!(guest.call(Call::ReadEvents, &[0xA000, 9]), 2);
    let denied = records(&guest, 0xA000, 2)[1];
    assert_eq!((denied.sequence.get(), denied.outcome.get()), (3, 1));
    assert_eq!(denied.flags.get(), event_flag::SOFTWARE);
    assert_eq!((denied.gpa.get(), denied.length.get()), (RESULT, 336));
    assert_eq!((denied.at.get(), denied.cpu.get()), (RESULT + 335, 1));
    assert_eq!((denied.rip.get(), denied.cr3.get()), (0x20_0040, 0x5000));
    assert_eq!(denied.data[..8], 1_u64.to_le_bytes());
}

#[test]
fn rules_of_every_action_are_obeyed() {
    let mut guest = Guest::new();
    for _ in 0..5 {
        guest.ledger.events.push(&samples::full());
    }
    let log = guest.host_rule(RESULT, 1, Action::Log);
    let once = guest.host_rule(0xA000, 1, Action::AllowOnce);
    let stop = guest.host_rule(0xB000, 1, Action::Stop);
    assert_eq!(guest.call(Call::ReadEvents, &[RESULT, 1]), 1);
    let (sequence, event) = guest.heard.pop().expect("an event");
    assert_eq!((sequence, event.rule), (6, Some(log)));
    assert_eq!(event.bytes[..64], guest.memory.at(RESULT, 64));
    assert_eq!(guest.call(Call::ReadEvents, &[0xA000, 1]), 1);
    assert_eq!(guest.heard.pop().expect("an event").1.rule, Some(once));
    guest.fails(Call::ReadEvents, &[0xA000, 1], Errno::Fault);
    assert_eq!(guest.heard.pop().expect("an event").1.rule, Some(once));
    match guest.dispatch(Call::ReadEvents, &[0xB000, 1]) {
        CallOutcome::Stop { rule } => assert_eq!(rule, stop),
        other => panic!("{other:?}"),
    }
    let (_, event) = guest.heard.pop().expect("an event");
    assert_eq!(event.verdict, subpage_trap::Verdict::Stopped);
    assert_eq!(guest.memory.at(0xB000, 1), [0]);
    // Three of the five, and four events of these calls.
    assert_eq!(guest.ledger.events.len(), 7);
}

/// A map denies as a rule does, but is nobody's rule.
#[test]
fn access_maps_are_obeyed() {
    let mut guest = Guest::new();
    guest.ledger.events.push(&samples::full());
    let token = guest
        .domain
        .set_access(Gfn::new(8), &[subpage::access::AccessMap::from_bits(!0b10)])
        .expect("memory");
    guest.domain.finish(&token.without_processors());
    guest.fails(Call::ReadEvents, &[RESULT, 1], Errno::Fault);
    let (_, event) = guest.heard.pop().expect("an event");
    assert_eq!((event.rule, event.at), (None, Gpa::new(RESULT + 128)));
}

/// Results in tracked and logged pages are writes like others.
#[test]
fn results_are_noted_as_written() {
    let mut guest = Guest::new();
    guest.ledger.events.push(&samples::full());
    let flags = SlotFlags { read_only: false, log_dirty: true };
    let token = guest.domain.set_slot_flags(SPACE, SlotId(0), flags).expect("memory");
    guest.domain.finish(&token.without_processors());
    let (id, token) = guest.domain.track(range(RESULT, 4096)).expect("memory");
    guest.domain.finish(&token.without_processors());
    assert_eq!(guest.call(Call::ReadEvents, &[RESULT + 100, 1]), 1);
    assert_eq!(guest.domain.written_pages(id), Ok(1));
    let (pending, token) = guest.domain.harvest_dirty(SPACE, SlotId(0)).expect("memory");
    let dirty = pending.ready(&token.without_processors()).expect("done");
    assert_eq!(dirty.iter().collect::<Vec<_>>(), [Gfn::new(8)]);
}

/// Opening a tracked page takes memory; where there is none, nothing is written or consumed.
#[test]
fn out_of_frames_changes_nothing() {
    for left in 0.. {
        let mut guest = Guest::new();
        guest.ledger.events.push(&samples::full());
        let (_, token) = guest.domain.track(range(0, RAM * PAGE)).expect("memory");
        guest.domain.finish(&token.without_processors());
        guest.domain.frames().left.set(Some(left));
        let before = guest.state();
        let result = guest.call(Call::ReadEvents, &[RESULT, 1]);
        guest.domain.frames().left.set(None);
        if result == 1 {
            assert!(left > 0, "opening makes room");
            break;
        }
        assert_eq!(result, error(Errno::NoMemory));
        assert!(guest.state() == before);
        assert_eq!(guest.ledger.events.len(), 1);
        assert_eq!(guest.memory.at(RESULT, 168), [0; 168]);
    }
}

//! `Track`, `Harvest` and `Untrack`.

use subpage::invalidate::Shootdown;
use zerocopy::FromBytes;

use super::*;
use crate::abi::WrittenRecord;
use crate::hypercall::MAX_TRACKED;

fn track(guest: &mut Guest, first: u64, bytes: u64) -> u64 {
    u64::try_from(guest.call(Call::Track, &[first, bytes])).expect("a tracking")
}

/// Harvests with room for 64 records; gfn and sub-pages of each.
fn harvest(guest: &mut Guest, id: u64) -> Vec<(u64, u32)> {
    let count = guest.call(Call::Harvest, &[id, RESULT, 64]);
    let count = usize::try_from(count).expect("a success");
    let bytes = guest.memory.at(RESULT, count * 16);
    bytes
        .chunks_exact(16)
        .map(|bytes| {
            let record = WrittenRecord::read_from_bytes(bytes).expect("16 bytes");
            assert_eq!(record.reserved.get(), 0);
            (record.gfn.get(), record.written.get())
        })
        .collect()
}

#[test]
fn written_sub_pages_are_harvested() {
    let mut guest = Guest::new();
    let id = track(&mut guest, 0x4000, 0x3000);
    assert_eq!(harvest(&mut guest, id), []);
    assert!(guest.write(0x4080, 8) && guest.write(0x5FFF, 2));
    assert_eq!(harvest(&mut guest, id), [(4, 2), (5, 1 << 31), (6, 1)]);
    assert_eq!(harvest(&mut guest, id), []);
    assert!(guest.write(0x4080, 8));
    assert_eq!(harvest(&mut guest, id), [(4, 2)], "armed again");
    assert_eq!(guest.call(Call::Untrack, &[id]), 0);
    guest.fails(Call::Harvest, &[id, RESULT, 64], Errno::NoEntry);
    guest.fails(Call::Untrack, &[id], Errno::NoEntry);
    assert_ne!(track(&mut guest, 0x4000, 0x3000), id, "numbers are not used twice");
}

#[test]
fn nothing_is_lost_for_want_of_room() {
    let mut guest = Guest::new();
    let id = track(&mut guest, 0x4000, 0x3000);
    assert!(guest.write(0x4000, 1) && guest.write(0x5000, 1) && guest.write(0x6000, 1));
    for room in 0..3 {
        guest.fails(Call::Harvest, &[id, RESULT, room], Errno::NoSpace);
    }
    // Room that is no memory is only a claim: what is not needed is not looked at.
    assert_eq!(guest.call(Call::Harvest, &[id, RESULT, u64::MAX]), 3);
    assert_eq!(guest.memory.at(RESULT + 48, 16), [0; 16], "not a byte beyond the records");
    assert_eq!(guest.call(Call::Harvest, &[id, u64::MAX, 0]), 0, "no record needs no room");
}

#[test]
fn records_go_only_where_the_guest_could_write() {
    let mut guest = Guest::new();
    let id = track(&mut guest, 0x4000, 0x3000);
    assert!(guest.write(0x4000, 1) && guest.write(0x5000, 1));
    let pages = [SHARED, UNMAPPED, ROM, RAM].map(|gfn| gfn * PAGE);
    let others = [SHARED * PAGE - 31, RAM * PAGE - 31, (1 << 48) - 31, 1 << 48, u64::MAX - 8];
    for address in pages.into_iter().chain(others) {
        guest.fails(Call::Harvest, &[id, address, 8], Errno::Fault);
    }
    // In a tracked page, its own or another's.
    track(&mut guest, 0xA000, 1);
    for address in [0x4FF0, 0x6000, 0xA800] {
        guest.fails(Call::Harvest, &[id, address, 8], Errno::Fault);
    }
    assert!(guest.heard.is_empty());
    let rule = guest.host_rule(RESULT + 31, 1, Action::Deny);
    guest.fails(Call::Harvest, &[id, RESULT, 8], Errno::Fault);
    let (_, event) = guest.heard.pop().expect("an event");
    assert_eq!((event.rule, event.at), (Some(rule), Gpa::new(RESULT + 31)));
    let token = guest.domain.remove_rule(rule, Owner::HOST).expect("memory");
    guest.domain.finish(&token.without_processors());
    assert_eq!(harvest(&mut guest, id), [(4, 1), (5, 1)], "and nothing is lost");
}

#[test]
fn a_stop_rule_under_the_buffer_stops_and_a_log_rule_reports() {
    let mut guest = Guest::new();
    let id = track(&mut guest, 0x4000, 0x1000);
    assert!(guest.write(0x4000, 1));
    let stop = guest.host_rule(RESULT, 1, Action::Stop);
    let before = guest.state();
    match guest.dispatch(Call::Harvest, &[id, RESULT, 8]) {
        CallOutcome::Stop { rule } => assert_eq!(rule, stop),
        other => panic!("{other:?}"),
    }
    assert!(guest.state() == before);
    assert_eq!(guest.heard.pop().expect("an event").1.rule, Some(stop));
    let log = guest.host_rule(0xA000, 1, Action::Log);
    assert_eq!(guest.call(Call::Harvest, &[id, 0xA000, 8]), 1);
    let (_, event) = guest.heard.pop().expect("an event");
    assert_eq!(event.rule, Some(log));
    assert_eq!(event.bytes[..], guest.memory.at(0xA000, 16));
    assert!(guest.heard.is_empty());
}

/// The records appear only when no processor has an old translation left.
#[test]
fn a_harvest_waits_for_every_processor() {
    let mut guest = Guest::new();
    let id = track(&mut guest, 0x4000, 0x1000);
    let board = Shootdown::new(1).expect("memory");
    let entered = board.enter(0);
    board.acknowledge(0, entered);
    assert!(guest.write(0x4000, 1));
    let CallOutcome::Invalidate { token, then } = guest.dispatch(Call::Harvest, &[id, RESULT, 8])
    else {
        panic!("a harvest arms again")
    };
    assert!(token.is_required());
    board.request(&token);
    let token = board.poll(token).expect_err("the processor is in the guest");
    assert_eq!(guest.memory.at(RESULT, 16), [0; 16]);
    let epoch = board.pending(0).expect("a request");
    board.acknowledge(0, epoch);
    let done = board.poll(token).expect("acknowledged");
    assert_eq!(guest.with_context(|context| then.finish(&done, context)), 1);
    assert_eq!(guest.memory.at(RESULT, 12), [4, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
}

#[test]
fn limits_and_ranges() {
    let mut guest = Guest::new();
    for (first, bytes, errno) in [
        (0x4000, 0, Errno::Invalid),
        (1 << 48, 1, Errno::Invalid),
        (0x4000, u64::MAX, Errno::Invalid),
        ((1 << 48) - 1, 1, Errno::Fault),
        (0, 1 << 47, Errno::Fault),
        (RAM * PAGE - 1, 2, Errno::Fault),
    ] {
        guest.fails(Call::Track, &[first, bytes], errno);
    }
    let ids: Vec<_> =
        (0..MAX_TRACKED as u64).map(|page| track(&mut guest, page * PAGE, 1)).collect();
    guest.fails(Call::Track, &[20 * PAGE, 1], Errno::NoSpace);
    assert_eq!(guest.call(Call::Untrack, &[ids[3]]), 0);
    guest.fails(Call::Track, &[PAGE, 1], Errno::Busy);
    track(&mut guest, 20 * PAGE, 1);
}

#[test]
fn the_hosts_tracking_is_not_the_guests() {
    let mut guest = Guest::new();
    let (id, token) = guest.domain.track(range(0x4000, 1)).expect("memory");
    guest.domain.finish(&token.without_processors());
    assert!(guest.write(0x4000, 1));
    guest.fails(Call::Harvest, &[id.0, RESULT, 8], Errno::NoEntry);
    guest.fails(Call::Untrack, &[id.0], Errno::NoEntry);
    guest.fails(Call::Track, &[0x4800, 1], Errno::Busy);
    assert_eq!(guest.domain.written_pages(id), Ok(1));
}

#[test]
fn out_of_frames_changes_nothing() {
    let mut failures = 0;
    for left in 0.. {
        let mut guest = Guest::new();
        guest.domain.frames().left.set(Some(left));
        let before = guest.state();
        let result = guest.call(Call::Track, &[0x4000, 0x3000]);
        guest.domain.frames().left.set(None);
        if result == 1 {
            break;
        }
        failures += 1;
        assert_eq!(result, error(Errno::NoMemory));
        assert!(guest.state() == before);
    }
    assert!(failures > 2);
    // A harvest arms again, and stopping disarms: that may need room, too.
    for call in [Call::Harvest, Call::Untrack] {
        for left in 0.. {
            let mut guest = Guest::new();
            let id = track(&mut guest, 0x4000, 0x3000);
            // What is open all over has no table; arming takes one.
            for page in 4..7 {
                assert!((0..32).all(|part| guest.write(page * PAGE + part * 128, 1)));
            }
            let before = guest.state();
            guest.domain.frames().left.set(Some(left));
            let result = guest.call(call, &[id, RESULT, 8]);
            guest.domain.frames().left.set(None);
            if result >= 0 {
                break;
            }
            assert_eq!(result, error(Errno::NoMemory));
            assert!(guest.state() == before, "{call:?}");
            assert_eq!(harvest(&mut guest, id).len(), 3, "nothing is lost");
        }
    }
}

//! `GetAccess` and `SetAccess`.

use subpage::access::AccessMap;

use super::*;
use crate::policy;

/// A request in guest memory.
fn request(guest: &Guest, address: u64, gfn: u64, pages: u32, flags: u32, maps: &[u32]) {
    let mut bytes = Vec::new();
    bytes.extend(gfn.to_le_bytes());
    bytes.extend(pages.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(maps.iter().flat_map(|map| map.to_le_bytes()));
    guest.memory.put(address, &bytes);
}

fn set(guest: &mut Guest, gfn: u64, maps: &[u32]) -> i64 {
    request(guest, REQUEST, gfn, u32::try_from(maps.len()).expect("few"), 0, maps);
    guest.call(Call::SetAccess, &[REQUEST])
}

fn get(guest: &mut Guest, gfn: u64, pages: u32) -> Vec<u32> {
    request(guest, RESULT, gfn, pages, 0, &[]);
    assert_eq!(guest.call(Call::GetAccess, &[RESULT]), i64::from(pages));
    let bytes = guest.memory.at(RESULT + 16, pages as usize * 4);
    bytes.chunks_exact(4).map(|map| u32::from_le_bytes(map.try_into().expect("four"))).collect()
}

#[test]
fn maps_are_set_and_read_back() {
    let mut guest = Guest::new();
    assert_eq!(set(&mut guest, 4, &[!1, 0, u32::MAX]), 3);
    assert_eq!(get(&mut guest, 3, 4), [u32::MAX, !1, 0, u32::MAX]);
    assert!(!guest.write(0x4000, 1));
    assert!(guest.write(0x4080, 1));
    assert_eq!(set(&mut guest, 4, &[u32::MAX]), 1);
    assert!(guest.write(0x4000, 1));
    assert_eq!(guest.memory.at(RESULT + 16 + 16, 4), [0; 4], "not a byte beyond the map");
    // No page: a success that does nothing, wherever it points.
    request(&guest, REQUEST, u64::MAX, 0, 0, &[]);
    assert_eq!(guest.call(Call::SetAccess, &[REQUEST]), 0);
    assert_eq!(guest.call(Call::GetAccess, &[REQUEST]), 0);
}

#[test]
fn a_request_is_read_once() {
    for call in [Call::SetAccess, Call::GetAccess] {
        let mut guest = Guest::new();
        request(&guest, REQUEST, 4, 3, 0, &[0, 1, 2]);
        assert_eq!(guest.call(call, &[REQUEST]), 3);
        let reads = guest.memory.reads.borrow();
        let start = usize::try_from(REQUEST).expect("small");
        assert!(reads[start..start + 16].iter().all(|count| *count == 1));
        let map = &reads[start + 16..start + 28];
        if call == Call::SetAccess {
            assert!(map.iter().all(|count| *count == 1));
        }
        assert_eq!(usize::from(reads[start + 28]), 0);
    }
}

#[test]
fn bad_requests_fail_as_in_the_interface() {
    let mut guest = Guest::new();
    for call in [Call::GetAccess, Call::SetAccess] {
        for (gfn, pages, flags, errno) in [
            (4, 1, 1, Errno::Invalid),
            (4, 513, 0, Errno::Invalid),
            (4, u32::MAX, 0, Errno::Invalid),
            (1 << 36, 1, 0, Errno::Invalid),
            (u64::MAX, 2, 0, Errno::Invalid),
            ((1 << 36) - 1, 2, 0, Errno::Invalid),
            (RAM, 1, 0, Errno::Fault),
            (RAM - 1, 2, 0, Errno::Fault),
        ] {
            request(&guest, REQUEST, gfn, pages, flags, &[]);
            guest.fails(call, &[REQUEST], errno);
        }
        for address in [RAM * PAGE, RAM * PAGE - 15, (1 << 48) - 4, 1 << 48, u64::MAX] {
            guest.fails(call, &[address], Errno::Fault);
        }
        // The header is memory, the map is not.
        request(&guest, RAM * PAGE - 16, 4, 1, 0, &[]);
        guest.fails(call, &[RAM * PAGE - 16], Errno::Fault);
    }
}

#[test]
fn a_map_is_written_only_where_the_guest_could() {
    let mut guest = Guest::new();
    let denied = guest.host_rule(RESULT + 16 + 4, 4, Action::Deny);
    request(&guest, RESULT, 4, 2, 0, &[]);
    guest.fails(Call::GetAccess, &[RESULT], Errno::Fault);
    let (sequence, event) = guest.heard.pop().expect("an event");
    assert_eq!((sequence, event.rule, event.at), (1, Some(denied), Gpa::new(RESULT + 20)));
    assert_eq!((event.gpa, event.length, event.gla), (Gpa::new(RESULT + 16), Some(8), None));
    assert_eq!((event.origin, event.in_software), (ORIGIN, true));
    assert_eq!(event.bytes[..], [0xFF; 8]);
    assert_eq!(guest.ledger.events.len(), 1);
    assert_eq!(get(&mut guest, 4, 1), [u32::MAX], "next to the rule");
    for gfn in [SHARED, UNMAPPED, ROM] {
        request(&guest, gfn * PAGE, 4, 1, 0, &[]);
        guest.fails(Call::GetAccess, &[gfn * PAGE], Errno::Fault);
    }
    // A request may lie where nobody can write.
    request(&guest, ROM * PAGE, 4, 1, 0, &[0]);
    assert_eq!(guest.call(Call::SetAccess, &[ROM * PAGE]), 1);
}

#[test]
fn maps_loosen_nothing_of_the_hosts() {
    let mut guest = Guest::new();
    guest.host_rule(0x4000, 128, Action::Deny);
    assert_eq!(set(&mut guest, 4, &[u32::MAX]), 1);
    assert_eq!(get(&mut guest, 4, 1), [!1]);
    let mut locked = rule(0x5000, 1);
    locked.flags = 1.into();
    assert!(guest.add(&locked) > 0);
    request(&guest, REQUEST, 4, 2, 0, &[0, 1]);
    guest.fails(Call::SetAccess, &[REQUEST], Errno::NotPermitted);
    assert_eq!(set(&mut guest, 4, &[0, !1]), 2);
}

/// The access maps of a policy are as much the host's as its rules.
#[test]
fn maps_of_the_policy_stay() {
    let mut host = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
    host.enable().expect("memory");
    let pages = GfnRange::new(Gfn::new(0), RAM).expect("pages");
    host.add_slot(SPACE, SlotId(0), pages, SlotFlags::default()).expect("a slot");
    let maps = [AccessMap::from_bits(!0b11), AccessMap::NONE];
    let token = host.set_access(Gfn::new(6), &maps).expect("memory");
    host.finish(&token.without_processors());
    let mut guest = Guest::new();
    let (policy, token) =
        policy::load(&mut guest.domain, &host.export().expect("memory")).expect("a policy");
    guest.domain.finish(&token.without_processors());
    guest.ledger = Ledger::new(policy.maps).expect("memory");
    // A rule over a map hides it, but does not make it the guest's.
    assert!(guest.add(&rule(0x6000, 4096)) > 0);
    for maps in [&[u32::MAX][..], &[!0b10], &[!0b11, 1], &[0, 0x8000_0000]] {
        let pages = u32::try_from(maps.len()).expect("few");
        request(&guest, REQUEST, 6, pages, 0, maps);
        guest.fails(Call::SetAccess, &[REQUEST], Errno::NotPermitted);
    }
    assert_eq!(set(&mut guest, 5, &[0, !0b11, 0, u32::MAX]), 4);
    assert_eq!(set(&mut guest, 6, &[!0b111]), 1);
    assert_eq!(set(&mut guest, 6, &[!0b11]), 1, "what the guest denied it may permit");
}

/// A lack of memory at any point leaves every map as it was.
#[test]
fn out_of_frames_changes_nothing() {
    for left in 0.. {
        let mut guest = Guest::new();
        guest.domain.frames().left.set(Some(left));
        let before = guest.state();
        let result = set(&mut guest, 4, &[0, 1, 2]);
        if result == 3 {
            assert!(left > 2);
            break;
        }
        assert_eq!(result, error(Errno::NoMemory));
        assert!(guest.state() == before);
    }
}

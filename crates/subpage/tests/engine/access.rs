//! Access maps: get, set, and the shape of the SPPT that follows.

use subpage::access::{AccessMap, SppVector};
use subpage::address::{AddressError, GfnRange};
use subpage::domain::DomainError;
use subpage::invalidate::Shootdown;
use subpage::level::Level;
use subpage::slots::{SlotFlags, SlotId};

use crate::guest::{BASE, Normal, bare, done, get, gfn, gfns, guest, map, set};

#[test]
fn every_page_is_unrestricted_at_first() {
    let (domain, _) = guest(16);
    assert_eq!(get(&domain, BASE + 3), u32::MAX);
    assert_eq!(domain.frames().heap.frames_in_use(), 1, "enabling takes the root alone");
}

#[test]
fn maps_and_vectors_round_trip() {
    for bit in 0..32 {
        for bits in [1 << bit, !(1 << bit), u32::MAX << bit, 0x5A5A_1234 ^ (1 << bit)] {
            let vector = SppVector::from_map(map(bits));
            assert_eq!(vector.to_map().bits(), bits);
            assert_eq!(SppVector::try_from_bits(vector.bits()), Ok(vector));
            for odd in 0..32 {
                assert!(SppVector::try_from_bits(vector.bits() | 2 << (2 * odd)).is_err());
            }
        }
    }
}

#[test]
fn set_then_get_over_regions_and_slots() {
    let (mut domain, _) = guest(2000);
    domain
        .add_slot(Normal, SlotId(1), gfns(BASE + 2000, 500), SlotFlags::default())
        .expect("a free place");
    let maps: Vec<AccessMap> =
        (0..2300u32).map(|page| map(page.wrapping_mul(0x9E37_79B9) | 1)).collect();
    let token = domain.set_access(gfn(BASE + 100), &maps).expect("two slots, six regions");
    assert!(token.is_required());
    done(&mut domain, token);
    let mut read = vec![AccessMap::NONE; 2300];
    domain.get_access(gfn(BASE + 100), &mut read).expect("the same pages");
    assert_eq!(read, maps);
    assert_eq!(get(&domain, BASE + 99), u32::MAX);
    assert_eq!(get(&domain, BASE + 2400), u32::MAX);
}

#[test]
fn tables_exist_while_a_page_is_restricted_and_no_longer() {
    let (mut domain, _) = guest(4096);
    let root_only = domain.frames().heap.frames_in_use();
    for page in [0, 511, 512, 4095] {
        set(&mut domain, BASE + page, &[0]);
    }
    let sppt = domain.sppt().expect("enabled");
    assert!(!sppt.is_unrestricted(domain.frames(), Level::L2, gfn(BASE)));
    assert!(sppt.is_unrestricted(domain.frames(), Level::L2, gfn(BASE + 1024)));
    assert_eq!(domain.frames().heap.frames_in_use(), root_only + 2 + 3, "C6: L3, L2, three L1");
    for page in [511, 0, 4095, 512] {
        set(&mut domain, BASE + page, &[u32::MAX]);
    }
    assert_eq!(domain.frames().heap.frames_in_use(), root_only);
    assert!(sppt.is_unrestricted(domain.frames(), Level::L3, gfn(BASE)));
}

#[test]
fn tables_are_freed_only_after_the_invalidation() {
    let (mut domain, _) = guest(512);
    set(&mut domain, BASE, &[1]);
    let before = domain.frames().heap.frames_in_use();
    let token = domain.set_access(gfn(BASE), &[AccessMap::ALL]).expect("a good call");
    assert!(token.is_required(), "a processor may still walk the table");
    assert_eq!(domain.frames().heap.frames_in_use(), before);
    assert_eq!(domain.retired_frames(), 3);
    done(&mut domain, token);
    assert_eq!(domain.frames().heap.frames_in_use(), 1);
}

#[test]
fn a_token_that_asks_nothing_frees_nothing_of_an_earlier_one() {
    let (mut domain, _) = guest(512);
    set(&mut domain, BASE, &[1]);
    let first = domain.set_access(gfn(BASE), &[AccessMap::ALL]).expect("a good call");
    let second = domain.set_access(gfn(BASE), &[AccessMap::ALL]).expect("a good call");
    assert!(!second.is_required());
    done(&mut domain, second);
    assert_eq!(domain.retired_frames(), 3, "the first change is not in force yet");
    done(&mut domain, first);
    assert_eq!(domain.retired_frames(), 0);
}

/// A processor that was interrupted between its invalidation and its acknowledgement, and has served
/// a later change in the meantime, must not take that back: the initiator would wait forever.
#[test]
fn an_acknowledgement_never_goes_back() {
    let (mut domain, _) = guest(512);
    let board = Shootdown::new(1).expect("memory");
    let now = board.enter(0);
    board.acknowledge(0, now);
    let first = domain.set_access(gfn(BASE), &[map(!1)]).expect("a good call");
    board.request(&first);
    let earlier = board.pending(0).expect("the first change");
    let second = domain.set_access(gfn(BASE), &[map(!3)]).expect("a good call");
    board.request(&second);
    let later = board.pending(0).expect("the second change");
    board.acknowledge(0, later);
    board.acknowledge(0, earlier);
    assert_eq!(board.pending(0), None);
    domain.finish(&board.poll(first.and(second)).expect("both are in force"));
}

/// The completion of an earlier change frees nothing that a later one retired.
#[test]
fn frames_wait_for_the_change_that_retired_them() {
    let (mut domain, _) = guest(512);
    let tightened = domain.set_access(gfn(BASE), &[map(1)]).expect("a good call");
    let released = domain.set_access(gfn(BASE), &[AccessMap::ALL]).expect("a good call");
    assert!(tightened.is_required() && released.is_required());
    done(&mut domain, tightened);
    assert_eq!(domain.retired_frames(), 3, "a processor may still walk them");
    done(&mut domain, released);
    assert_eq!(domain.retired_frames(), 0);
}

#[test]
fn loosening_needs_no_invalidation_while_the_region_stays_restricted() {
    let (mut domain, _) = guest(512);
    set(&mut domain, BASE, &[0, 0]);
    let token = domain.set_access(gfn(BASE), &[map(0xFF)]).expect("a good call");
    assert!(!token.is_required(), "D43: none when only adding");
}

/// However many pages of a run lose the same sub-page.
#[test]
fn tightening_always_needs_an_invalidation() {
    for pages in [1, 2, 31, 32, 64, 512] {
        let (mut domain, _) = guest(512);
        set(&mut domain, BASE, &vec![!1; pages]);
        let token = domain.set_access(gfn(BASE), &vec![map(!3); pages]).expect("a good call");
        assert!(token.is_required(), "{pages} pages");
    }
}

/// D45: of a run of pages only the entries that change are stored, where a leaf stops asking for one.
#[test]
fn entries_that_stay_are_not_stored() {
    let (mut domain, _) = guest(512);
    for (bits, before) in [(0, !1), (u32::MAX, 0), (0, u32::MAX)] {
        let mut maps = [!1; 32];
        maps[5] = before;
        set(&mut domain, BASE, &maps);
        maps[5] = bits;
        domain.frames_mut().stores = 0;
        set(&mut domain, BASE, &maps);
        assert_eq!(domain.frames().stores, 1, "{before:#x} to {bits:#x}");
    }
}

#[test]
fn wrong_calls_are_refused_and_change_nothing() {
    let (mut domain, _) = guest(16);
    set(&mut domain, BASE, &[5]);
    let before = crate::guest::picture(&domain);
    let none: [AccessMap; 0] = [];
    let refused = [
        domain.set_access(gfn(BASE), &none).err(),
        domain.set_access(gfn(BASE + 15), &[AccessMap::NONE; 2]).err(),
        domain.set_access(gfn(BASE - 1), &[AccessMap::NONE; 2]).err(),
        domain.set_access(gfn((1 << 36) - 1), &[AccessMap::NONE; 2]).err(),
        domain.set_access(gfn((1 << 36) - 1), &[AccessMap::NONE]).err(),
    ];
    assert_eq!(
        refused,
        [
            Some(DomainError::Address(AddressError::Empty { first: BASE })),
            Some(DomainError::NoSlot(gfn(BASE + 16))),
            Some(DomainError::NoSlot(gfn(BASE - 1))),
            Some(DomainError::Address(AddressError::RangeTooLong {
                first: (1 << 36) - 1,
                count: 2
            })),
            Some(DomainError::NoSlot(gfn((1 << 36) - 1))),
        ]
    );
    assert_eq!(crate::guest::picture(&domain), before);
    let (mut domain, _) = bare();
    assert_eq!(
        domain.set_access(gfn(BASE), &[AccessMap::NONE]).err(),
        Some(DomainError::NotEnabled)
    );
}

#[test]
fn a_narrow_processor_bounds_what_can_be_protected() {
    use subpage::address::PhysicalWidth;
    use subpage::domain::Domain;
    use subpage::frames::HeapFrames;
    let width = PhysicalWidth::try_new(36).expect("a width");
    let mut domain = Domain::new(HeapFrames::new(), width);
    domain.enable().expect("memory");
    let beyond = GfnRange::new(gfn(1 << 24), 1).expect("a range");
    let error = domain.add_slot(Normal, SlotId(0), beyond, SlotFlags::default()).err();
    assert_eq!(
        error,
        Some(DomainError::Address(AddressError::GfnTooWide { gfn: 1 << 24, bits: 36 }))
    );
}

/// A region that becomes unrestricted and one that becomes restricted in the same call share upper
/// tables; the plan for the second counts on them.
#[test]
fn one_call_may_empty_one_region_and_fill_its_neighbour() {
    let (mut domain, _) = guest(1024);
    set(&mut domain, BASE + 511, &[7]);
    set(&mut domain, BASE + 511, &[u32::MAX, 7]);
    assert_eq!((get(&domain, BASE + 511), get(&domain, BASE + 512)), (u32::MAX, 7));
    set(&mut domain, BASE + 511, &[7, u32::MAX]);
    assert_eq!(domain.frames().heap.frames_in_use(), 4);
}

/// Two tokens joined are completed by the completion of the later one, in either order.
#[test]
fn joined_tokens_complete_both_calls() {
    for swapped in [false, true] {
        let (mut domain, _) = guest(1);
        let first = domain.set_access(gfn(BASE), &[map(1)]).expect("a good call");
        let second = domain.set_access(gfn(BASE), &[map(u32::MAX)]).expect("a good call");
        assert!(first.epoch() < second.epoch() && domain.retired_frames() == 3);
        let joined = if swapped { second.and(first) } else { first.and(second) };
        done(&mut domain, joined);
        assert_eq!(domain.retired_frames(), 0);
    }
}

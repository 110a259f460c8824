//! D20 to D27, D29: what processors meet in tables that have changed.

use subpage::access::AccessMap;
use subpage::address::{AddressError, Gfn, GfnRange, PhysicalWidth};
use subpage::domain::{Answer, Domain, DomainError, RetryState, SppEvent};
use subpage::errno::Errno;
use subpage::exit::{Delivery, SppQualification};
use subpage::frames::HeapFrames;
use subpage::level::{Level, PageSize};
use subpage::slots::{SlotFlags, SlotId};
use subpage::uapi;
use subpage_model::{Access, AccessKind, AccessOutcome, Setup};

use crate::guest::{BASE, Guest, LOGGING, Normal, REGION, SLOT, at, gfn, gfns, of_bits, stale};
use crate::requests::Request;

/// First frame of an aligned gibibyte.
const GIANT: u64 = 1 << 18;

/// The size of a mapping was decided before a lock was taken, and a large writable page could land
/// on a page that had just been protected.
#[test]
fn d20_no_large_page_covers_a_restricted_one() {
    for page_size in [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G] {
        for mapped_first in [false, true] {
            let mut guest = Guest::new(Setup { page_size, ..stale() }, 16);
            let slot = SlotId(1);
            let flags = SlotFlags::default();
            guest.domain_mut().add_slot(Normal, slot, gfns(GIANT, GIANT), flags).expect("free");
            if mapped_first {
                guest.warm(GIANT + 9);
                guest.warm(GIANT + 600);
            }
            let neighbours = [0, u32::MAX, !1];
            guest.set(GIANT + 599, &neighbours);
            // Restrictions that go next to it, and a dirty log that ends, try to merge the region.
            guest.set(GIANT + 599, &[u32::MAX]);
            for flags in [flags, LOGGING, flags] {
                guest.change(|domain| domain.set_slot_flags(Normal, slot, flags).expect("a slot"));
                guest.warm(GIANT + 600);
                for cpu in 0..3 {
                    guest.denies(cpu, (GIANT + 601) << 12);
                    guest.permits(cpu, ((GIANT + 601) << 12) + 128);
                    guest.permits(cpu, (GIANT + 599) << 12);
                }
            }
        }
    }
}

/// The flush stepped over the first page of each next region: its vectors stayed in force.
#[test]
fn d21_no_page_at_a_region_end_is_passed_over() {
    let edges = [510, 511, 512, 513, 1023, 1024, 1025];
    for (first, after) in edges.iter().flat_map(|first| edges.map(|after| (*first, after))) {
        if first >= after {
            continue;
        }
        let mut guest = Guest::new(stale(), 3 * REGION);
        guest.set(BASE, &vec![!1; 1536]);
        for page in edges {
            guest.warm(BASE + page);
        }
        guest.set(BASE + first, &vec![!2; usize::try_from(after - first).expect("small")]);
        for page in edges {
            let changed = (first..after).contains(&page);
            assert_eq!(guest.get(BASE + page), if changed { !2 } else { !1 });
            guest.denies(1, at(page, if changed { 128 } else { 0 }));
            guest.permits(1, at(page, if changed { 0 } else { 128 }));
        }
    }
}

/// Where a large page was zapped, page numbers jumped ahead and the map index did not.
#[test]
fn d22_each_page_gets_its_own_map() {
    let mut guest = Guest::new(stale(), 4 * REGION);
    // A large leaf, small leaves, nothing mapped, a large leaf.
    guest.set(BASE + REGION, &[0]);
    for region in [0, 1, 3] {
        guest.warm(BASE + region * REGION);
    }
    let own = |page: u64| 1 << (page % 32);
    let maps: Vec<u32> = (200..1900).map(|page| !own(page)).collect();
    guest.set(BASE + 200, &maps);
    for page in 200..1900 {
        assert_eq!(guest.get(BASE + page), !own(page));
        guest.denies(2, at(page, page % 32 * 128));
        guest.permits(2, at(page, (page + 1) % 32 * 128));
    }
    assert_eq!((guest.get(BASE + 199), guest.get(BASE + 1900)), (u32::MAX, u32::MAX));
}

/// 1 GiB pages were left to a walk that skipped them if their first page was not restricted.
#[test]
fn d23_a_gibibyte_page_is_split_wherever_the_restriction_lies() {
    for offset in [0, 1, 511, 512, 513, 1000, GIANT - 1] {
        let mut guest = Guest::new(Setup { page_size: PageSize::Size1G, ..stale() }, 16);
        let flags = SlotFlags::default();
        guest.domain_mut().add_slot(Normal, SlotId(1), gfns(GIANT, GIANT), flags).expect("free");
        let page = GIANT + offset;
        guest.warm(page);
        let place = guest.domain().mapping(Normal, gfn(page)).expect("mapped");
        assert_eq!(place.level, Level::L3);
        let before = offset.min(3);
        let mut maps = vec![u32::MAX; usize::try_from(before).expect("small")];
        maps.push(!1);
        guest.set(page - before, &maps);
        for cpu in 0..3 {
            guest.denies(cpu, page << 12);
            guest.permits(cpu, (page << 12) + 128);
            guest.permits(cpu, (page ^ 1) << 12);
        }
    }
}

/// Arming the dirty log took bit 61 away and reported that nothing had to be flushed, so writes went
/// on through old translations and were lost to the log.
#[test]
fn d24_losing_bit_61_is_losing_a_right() {
    for accessed_dirty in [false, true] {
        let mut guest = Guest::new(Setup { accessed_dirty, ..stale() }, 16);
        guest.set(BASE, &[!1]);
        guest.change(|domain| domain.set_slot_flags(Normal, SLOT, LOGGING).expect("a slot"));
        for round in 0..4 {
            for cpu in 0..3 {
                guest.permits(cpu, at(0, 128));
                guest.denies(cpu, at(0, 0));
            }
            let (pending, token) = guest.domain_mut().harvest_dirty(Normal, SLOT).expect("it logs");
            assert!(token.is_required(), "round {round}");
            let done = guest.complete(token);
            let dirty = pending.ready(&done).expect("completed");
            assert_eq!(dirty.iter().collect::<Vec<_>>(), [gfn(BASE)], "round {round}");
        }
        guest.denies(0, at(0, 0));
        assert_eq!(guest.harvest(), [], "a denied write is not dirty");
    }
}

/// Unprotecting cleared bit 61 but not the bit that it had been saved in: the next write brought SPP
/// back to a page without a vector.
#[test]
fn d25_nothing_is_left_of_a_restriction_that_goes() {
    let mut guest = Guest::new(stale(), 16);
    guest.set(BASE, &[!1, !1]);
    guest.change(|domain| domain.set_slot_flags(Normal, SLOT, LOGGING).expect("a slot"));
    for cpu in 0..3 {
        guest.permits(cpu, at(0, 128));
    }
    assert_eq!(guest.harvest(), [0]);
    guest.set(BASE, &[u32::MAX]);
    for cpu in 0..3 {
        guest.permits(cpu, at(0, 0));
    }
    let leaf = guest.domain().mapping(Normal, gfn(BASE)).expect("mapped").entry;
    assert!(leaf.write() && !leaf.sub_page_write());
    assert_eq!(guest.harvest(), [0]);
    guest.set(BASE + 1, &[u32::MAX]);
    guest.permits(0, at(0, 0));
    assert_eq!(guest.harvest(), [0]);
    assert_eq!(guest.domain().counters().spp_misses, 0);
}

/// A variable that was tested before it was set decided whether an L2 entry became valid again.
#[test]
fn d26_a_region_can_be_restricted_again_and_again() {
    let mut guest = Guest::new(stale(), 16);
    for round in 0..5 {
        guest.warm(BASE);
        guest.set(BASE, &[!1]);
        for cpu in 0..3 {
            guest.denies(cpu, at(0, 0));
            guest.permits(cpu, at(0, 128));
        }
        if round % 2 == 0 {
            guest.set(BASE, &[u32::MAX]);
            guest.permits(1, at(0, 0));
        }
    }
    let counters = guest.domain().counters();
    assert_eq!((counters.spp_misses, counters.spp_misconfigurations), (0, 0));
}

/// A miss in a region with nothing restricted was answered with "try again", forever.
#[test]
fn d27_a_miss_with_nothing_behind_it_makes_progress() {
    let mut guest = Guest::new(stale(), 16);
    let read = Access::new(AccessKind::Read, gfn(BASE).gpa(), 8).expect("a legal access");
    guest.set(BASE, &[!1]);
    for cpu in 0..3 {
        // Processors remember bit 61, but no vector.
        assert_eq!(guest.touch(cpu, &read), AccessOutcome::Done);
    }
    let token = guest.domain_mut().set_access(gfn(BASE), &[AccessMap::ALL]).expect("good");
    for cpu in 0..3 {
        guest.permits(cpu, at(0, 0));
    }
    assert_eq!(guest.domain().counters().spp_misses, 3, "the old translations met no table");
    let _done = guest.complete(token);

    // Also if the same instruction misses again and again, there is an end to retrying.
    let miss = SppEvent {
        qualification: SppQualification::new().with_miss(true),
        gpa: gfn(BASE).gpa(),
        rip: 0x1234,
        space: Normal,
        delivery: Delivery::default(),
    };
    let mut retry = RetryState::default();
    let answers = [(); 3].map(|()| guest.domain_mut().spp_event(&mut retry, &miss).0);
    assert_eq!(answers, [Answer::Retry, Answer::Emulate, Answer::Emulate]);
}

/// Frame arithmetic wrapped, and a huge frame number cleared the tables of others.
#[test]
fn d29_numbers_that_wrap_are_refused() {
    let mut guest = Guest::new(stale(), 16);
    // The slot's first frames, under numbers that wrap to them.
    guest.set(BASE, &[!1]);
    for gfn_base in [BASE + (1 << 52), BASE + (1 << 36), u64::MAX, u64::MAX - 511, (1 << 36) - 1] {
        let mut request = Request::new(gfn_base, 512, 0, &[u32::MAX; 512]);
        let refused = uapi::set_access(guest.domain_mut(), &mut request).err();
        assert_eq!(refused, Some(Errno::Invalid), "{gfn_base:#x}");
    }
    assert!(Gfn::try_new(1 << 36).is_err());
    let wrapping = GfnRange::new(Gfn::MAX, 2);
    assert!(matches!(wrapping, Err(AddressError::RangeTooLong { .. })), "{wrapping:?}");
    let last = guest.domain_mut().set_access(Gfn::MAX, &[AccessMap::NONE]);
    assert_eq!(last.err(), Some(DomainError::NoSlot(Gfn::MAX)));

    let width = PhysicalWidth::try_new(36).expect("legal");
    let mut narrow = Domain::new(HeapFrames::new(), width);
    narrow.enable().expect("memory");
    assert!(matches!(
        narrow.set_access(gfn((1 << 24) - 1), &of_bits(&[0, 0])),
        Err(DomainError::Address(_))
    ));
    assert_eq!(guest.get(BASE), !1);
    guest.denies(0, at(0, 0));
}

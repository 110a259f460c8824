//! D17 to D19, D28: what a processor sees that looks between any two stores of a call.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use subpage::access::AccessMap;
use subpage::address::PhysicalWidth;
use subpage::domain::{Domain, DomainError};
use subpage::exit::ExitReason;
use subpage::frames::TableFrames;
use subpage::level::PageSize;
use subpage::rules::Action;
use subpage::slots::SlotFlags;
use subpage_model::sppt_walk::{self, SpptOutcome, SpptStart};
use subpage_model::{Access, Deviations, Roots, Staleness, Vcpu};

use crate::guest::{
    Normal, REGION, SLOT, bytes, features, get, gfn, gfns, host_page, of_bits, rule, write_of,
};
use crate::watched::{Watch, WatchedFrames};

/// First frame of an aligned gibibyte with a slot of two.
const GIANT: u64 = 1 << 18;

/// A domain on watched frames with two gibibytes of slot; a page at the end of the second is mapped,
/// so that the root exists.
fn watched() -> (Domain<WatchedFrames>, Watch) {
    let (frames, watch) = WatchedFrames::new();
    let mut domain = Domain::new(frames, PhysicalWidth::MAX);
    domain.enable().expect("memory");
    domain.add_slot(Normal, SLOT, gfns(GIANT, 2 * GIANT), SlotFlags::default()).expect("free");
    let last = 3 * GIANT - 1;
    domain.map(Normal, gfn(last), host_page(last, PageSize::Size4K)).expect("memory");
    (domain, watch)
}

fn roots(domain: &Domain<WatchedFrames>) -> Roots {
    Roots {
        ept: domain.ept(Normal).expect("mapped").root(),
        ept_accessed_dirty: false,
        sppt: domain.sppt().map(subpage::sppt::Sppt::root),
    }
}

/// What a processor that remembers nothing gets for an access: nothing, or an exit.
fn seen(frames: &mut impl TableFrames, roots: &Roots, access: &Access) -> Result<(), ExitReason> {
    let mut vcpu = Vcpu::new(features(), Deviations::NONE, Staleness::None);
    vcpu.access(roots, frames, access).map(|_| ()).map_err(|exit| exit.reason)
}

fn set(domain: &mut Domain<WatchedFrames>, first: u64, maps: &[AccessMap]) {
    let token = domain.set_access(gfn(first), maps).expect("a good call");
    domain.finish(&token.without_processors());
}

/// SET invalidated first and stored the new maps later; what came in between brought the old ones
/// back. Here a processor tries after every single store: it meets the old permission or the new,
/// and never a hole in the tables.
#[test]
fn d17_between_two_stores_there_is_only_old_or_new() {
    let (mut domain, watch) = watched();
    let pages = 1100;
    let first = GIANT + 300;
    for region in 0..3 {
        let start = GIANT + region * REGION;
        domain.map(Normal, gfn(start), host_page(start, PageSize::Size2M)).expect("memory");
    }
    let patterns = [u32::MAX, 0, 0x0000_FFFF, 0xFFFF_0000, 0xFFFF_FFFE];
    let of_round = |round: usize| -> Vec<AccessMap> {
        (0..pages)
            .map(|page| AccessMap::from_bits(patterns[(page / 3 + round * page) % 5]))
            .collect()
    };
    for round in 0..8 {
        // The last round opens everything again.
        let maps = if round == 7 { vec![AccessMap::ALL; pages] } else { of_round(round) };
        let roots = roots(&domain);
        let mut probes = Vec::new();
        for page in (0..pages).step_by(31).chain([211, 212, 723, 724]) {
            for sub in [0, 5, 20] {
                let access = write_of(((first + page as u64) << 12) + sub * 128, 8);
                let old = seen(&mut domain.frames_mut().heap, &roots, &access).is_ok();
                let new = maps[page].bits() >> sub & 1 == 1;
                probes.push((access, old, new));
            }
        }
        let looks = Rc::new(Cell::new(0));
        let (counter, watched_probes) = (Rc::clone(&looks), probes.clone());
        watch.look(move |heap| {
            counter.set(counter.get() + 1);
            for (access, old, new) in &watched_probes {
                match seen(heap, &roots, access) {
                    Ok(()) => assert!(old | new, "{access:?} was never allowed"),
                    Err(ExitReason::EPT_VIOLATION) => {
                        assert!(!(old & new), "{access:?} was always allowed");
                    }
                    Err(reason) => panic!("{access:?}: {reason:?}"),
                }
            }
        });
        let token = domain.set_access(gfn(first), &maps).expect("a good call");
        watch.stop();
        assert!(looks.get() > pages, "most pages changed in round {round}");
        for (access, _, new) in &probes {
            assert_eq!(seen(&mut domain.frames_mut().heap, &roots, access).is_ok(), *new);
        }
        domain.finish(&token.without_processors());
    }
}

/// An L2 entry became valid before the vectors behind it were there.
#[test]
fn d18_an_l1_table_is_complete_before_it_is_linked() {
    let (mut domain, watch) = watched();
    let first = GIANT + 500;
    let maps: Vec<_> =
        (0..800).map(|page| AccessMap::from_bits(0x9E37_79B1_u32.wrapping_mul(page))).collect();
    let root = domain.sppt().expect("enabled").root();
    let linked = Rc::new(RefCell::new([false; 3]));
    let seen = Rc::clone(&linked);
    let expected = maps.clone();
    watch.look(move |heap| {
        let walk =
            |page| sppt_walk::walk(heap, SpptStart::root(root), gfn(page), &features()).outcome;
        for (start, linked) in (GIANT..).step_by(512).zip(&mut *seen.borrow_mut()) {
            if *linked || walk(start) == SpptOutcome::Miss {
                continue;
            }
            *linked = true;
            for page in start..start + REGION {
                let index = page.checked_sub(first).and_then(|at| usize::try_from(at).ok());
                let map = index.and_then(|at| expected.get(at)).copied().unwrap_or(AccessMap::ALL);
                assert_eq!(walk(page), SpptOutcome::Vector(map), "page {page:#x}");
            }
        }
    });
    let token = domain.set_access(gfn(first), &maps).expect("a good call");
    watch.stop();
    assert_eq!(*linked.borrow(), [true; 3]);
    domain.finish(&token.without_processors());
}

/// The fault path installed a writable entry and took the right away afterwards.
#[test]
fn d19_a_leaf_is_never_more_than_it_will_be() {
    for size in [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G] {
        let (mut domain, watch) = watched();
        let page = GIANT + 700;
        set(&mut domain, page, &of_bits(&[!1]));
        set(&mut domain, page + 1, &of_bits(&[0]));
        if size == PageSize::Size4K {
            // A neighbour, so that the page's entry is stored into a table in use.
            let neighbour = host_page(page - 1, size);
            domain.map(Normal, gfn(page - 1), neighbour).expect("memory");
        }
        let roots = roots(&domain);
        let allowed = Rc::new(Cell::new(0));
        let counter = Rc::clone(&allowed);
        watch.look(move |heap| {
            for denied in [page << 12, (page << 12) + 124, (page + 1) << 12] {
                let result = seen(heap, &roots, &write_of(denied, 8));
                assert_eq!(result, Err(ExitReason::EPT_VIOLATION), "{denied:#x}");
            }
            let permitted = seen(heap, &roots, &write_of((page << 12) + 128, 8));
            counter.set(counter.get() + u32::from(permitted.is_ok()));
        });
        let first = size.level().region_start(gfn(page));
        domain.map(Normal, first, host_page(first.as_u64(), size)).expect("memory");
        watch.stop();
        assert!(allowed.get() > 0, "{size:?}: somebody looked once the page was mapped");
    }
}

/// An error in the middle left the first pages changed and everything flushed.
#[test]
fn d28_a_refused_call_has_stored_nothing() {
    let (mut domain, watch) = watched();
    let slot_end = 3 * GIANT;
    domain.map(Normal, gfn(GIANT), host_page(GIANT, PageSize::Size1G)).expect("memory");
    let mut locked = rule(bytes((GIANT + 600) << 12, 128), Action::Deny);
    locked.locked = true;
    let (locked, token) = domain.add_rule(locked).expect("memory");
    domain.finish(&token.without_processors());
    let roots = roots(&domain);
    let frames = domain.frames().heap.frames_in_use();
    watch.reset();

    let no_slot = domain.set_access(gfn(slot_end - 512), &[AccessMap::NONE; 513]);
    assert_eq!(no_slot.err(), Some(DomainError::NoSlot(gfn(slot_end))));
    let loosening = domain.set_access(gfn(GIANT), &vec![AccessMap::from_bits(!2); 700]);
    assert_eq!(loosening.err(), Some(DomainError::Locked(locked)));
    assert_eq!(watch.stores(), 0, "refused before anything was touched");

    let maps = vec![AccessMap::NONE; 2000];
    for from in 0.. {
        watch.fail_from(Some(from));
        let result = domain.set_access(gfn(GIANT + 700), &maps);
        watch.fail_from(None);
        let Err(error) = result else { break };
        assert_eq!(error, DomainError::OutOfMemory);
        assert_eq!(domain.frames().heap.frames_in_use(), frames);
        for page in [700, 701, 1023, 1024, 2699] {
            assert_eq!(get(&domain, GIANT + page), u32::MAX);
            let write = write_of((GIANT + page) << 12, 8);
            assert_eq!(seen(&mut domain.frames_mut().heap, &roots, &write), Ok(()));
        }
    }
    assert_eq!(get(&domain, GIANT + 2699), 0, "with memory enough it succeeds");
}

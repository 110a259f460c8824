//! D42 to D51: cost, and what was missing. Costs are counted, never timed.

use std::cell::RefCell;
use std::rc::Rc;

use subpage::access::AccessMap;
use subpage::address::{Gfn, GfnRange, Gpa, PhysicalWidth};
use subpage::domain::{
    Answer, Denial, Domain, DomainError, HostError, ImportError, Observer, RetryState, SppEvent,
};
use subpage::exit::{Delivery, SppQualification};
use subpage::frames::{EntryIndex, HeapFrames, TableFrames};
use subpage::level::{Level, PageSize};
use subpage::rules::{Action, Owner};
use subpage::slots::{SlotFlags, SlotId};
use subpage_model::{AccessOutcome, Setup};

use crate::guest::{
    BASE, Guest, Normal, REGION, SLOT, Smm, at, bytes, gfn, gfns, host_page, of_bits, rule, stale,
    write_violation,
};
use crate::watched::{Watch, WatchedFrames};

/// First frame of an aligned gibibyte.
const GIANT: u64 = 1 << 18;

fn watched(pages: u64) -> (Domain<WatchedFrames>, Watch) {
    let (frames, watch) = WatchedFrames::new();
    let mut domain = Domain::new(frames, PhysicalWidth::MAX);
    domain.enable().expect("memory");
    domain.add_slot(Normal, SLOT, gfns(0, pages), SlotFlags::default()).expect("free");
    (domain, watch)
}

fn set(domain: &mut Domain<WatchedFrames>, first: u64, maps: &[AccessMap]) {
    let token = domain.set_access(gfn(first), maps).expect("a good call");
    domain.finish(&token.without_processors());
}

/// One mebibyte of maps for each gibibyte, in both address spaces, for a single restricted page.
#[test]
fn d42_memory_follows_restricted_regions_and_comes_back() {
    let (mut domain, _) = watched(1 << 28);
    domain.add_slot(Smm, SLOT, gfns(0, 1 << 28), SlotFlags::default()).expect("free");
    let frames = |domain: &Domain<WatchedFrames>| domain.frames().heap.frames_in_use();
    assert_eq!(frames(&domain), 1, "a tebibyte enabled is the root");
    set(&mut domain, 5, &[AccessMap::NONE]);
    assert_eq!(frames(&domain), 4);
    set(&mut domain, 511, &[AccessMap::NONE]);
    assert_eq!(frames(&domain), 4, "the same region");
    set(&mut domain, 512, &[AccessMap::NONE]);
    assert_eq!(frames(&domain), 5, "the next one");
    set(&mut domain, 1 << 27, &[AccessMap::NONE]);
    assert_eq!(frames(&domain), 8, "far away");
    set(&mut domain, 100, &[AccessMap::ALL; 100]);
    assert_eq!(frames(&domain), 8, "what is unrestricted already costs nothing");
    for page in [5, 511, 512, 1 << 27] {
        set(&mut domain, page, &[AccessMap::ALL]);
    }
    assert_eq!((frames(&domain), domain.retired_frames()), (1, 0));
}

/// The miss handler flushed all processors once for each of 512 pages.
#[test]
fn d43_a_call_asks_for_one_invalidation() {
    let mut guest = Guest::new(stale(), 4 * REGION);
    let mut epochs = Vec::new();
    for maps in [vec![!2; 1500], vec![!1; 1500], (0..1500).collect()] {
        for region in 0..3 {
            guest.warm(BASE + region * REGION);
        }
        let token =
            guest.domain_mut().set_access(gfn(BASE + 10), &of_bits(&maps)).expect("a good call");
        epochs.push(token.epoch().get());
        let _done = guest.complete(token);
    }
    assert_eq!(epochs, [epochs[0], epochs[0] + 1, epochs[0] + 2]);
    let adding = guest.domain_mut().set_access(gfn(BASE + 10), &[AccessMap::ALL]).expect("good");
    assert!(!adding.is_required(), "what only adds rights waits for nobody");
    let _done = guest.complete(adding);
    for page in [20, 600, 1200] {
        guest.permits(0, at(page, 0) + u64::from((page - 10_u64).trailing_zeros()) * 128);
    }
    assert_eq!(guest.domain().counters().spp_misses, 0, "and there is no routine miss to handle");
}

/// Each fault scanned the maps of 512 pages, or of 262144, to find the size of a mapping.
#[test]
fn d44_the_size_of_a_mapping_takes_one_look() {
    for (size, restricted_neighbours) in [
        (PageSize::Size2M, false),
        (PageSize::Size2M, true),
        (PageSize::Size1G, false),
        (PageSize::Size1G, true),
    ] {
        let (mut domain, watch) = watched(8 * GIANT);
        domain.map(Normal, gfn(0), host_page(0, PageSize::Size4K)).expect("memory");
        if restricted_neighbours {
            set(&mut domain, 2 * GIANT - 1, &[AccessMap::NONE]);
            set(&mut domain, 3 * GIANT, &[AccessMap::NONE]);
        }
        watch.reset();
        domain.map(Normal, gfn(2 * GIANT), host_page(2 * GIANT, size)).expect("memory");
        assert!(watch.loads() <= 32, "{size:?}: {} entries read", watch.loads());
        let place = domain.mapping(Normal, gfn(2 * GIANT)).expect("mapped");
        assert_eq!(place.leaf_size(), Some(size));
    }
}

/// SET of one page threw 512 vectors away, and the next write built all of them again.
#[test]
fn d45_setting_one_page_changes_one_vector() {
    let (mut domain, watch) = watched(4096);
    for start in [0, REGION] {
        domain.map(Normal, gfn(start), host_page(start, PageSize::Size2M)).expect("memory");
    }
    set(&mut domain, 0, &[AccessMap::from_bits(!1); 1024]);
    for map in [!2, 0, u32::MAX, 7] {
        watch.reset();
        set(&mut domain, 300, &of_bits(&[map]));
        assert!(watch.stores() <= 2, "{} entries for a vector and a leaf", watch.stores());
    }
}

/// Nobody had said who may take protection away, on a reboot or by overwriting it.
#[test]
fn d48_a_locked_rule_outlives_everything_but_the_domain() {
    let mut guest = Guest::new(stale(), 16);
    let open = guest.add_rule(rule(bytes(at(0, 0), 128), Action::Deny));
    let mut locked = rule(bytes(at(0, 128), 128), Action::Deny);
    locked.locked = true;
    let locked = guest.add_rule(locked);
    let owner = Owner(7);
    let domain = guest.domain_mut();
    let stranger = domain.remove_rule(open, Owner(8)).err();
    assert_eq!(stranger, Some(DomainError::NotOwner { rule: open, owner }));
    for by in [owner, Owner::HOST] {
        assert_eq!(domain.remove_rule(locked, by).err(), Some(DomainError::Locked(locked)));
    }
    let overwritten = domain.set_access(gfn(BASE), &[AccessMap::ALL]).err();
    assert_eq!(overwritten, Some(DomainError::Locked(locked)));
    let other = Guest::new(stale(), 16).domain().export().expect("memory");
    assert_eq!(domain.import(&other, 1 << 20).err(), Some(ImportError::NotEmpty));
    domain.enable().expect("nothing to do");
    guest.change(|domain| domain.remove_rule(open, owner).expect("its owner"));
    // A reboot: all memory is given back and mapped again.
    guest.change(|domain| domain.remove_slot(Normal, SLOT).expect("there is one"));
    let again = gfns(BASE, 16);
    guest.domain_mut().add_slot(Normal, SlotId(3), again, SlotFlags::default()).expect("free");
    for cpu in 0..3 {
        guest.denies(cpu, at(0, 128));
        guest.permits(cpu, at(0, 0));
    }
}

/// The bound of the map index was right only by the wrap of an unsigned subtraction.
#[test]
fn d49_pages_beside_a_slot_are_not_in_it() {
    let mut guest = Guest::new(stale(), 16);
    let mut maps = of_bits(&[5, 5, 5]);
    for (first, missing) in [
        (BASE - 1, BASE - 1),
        (BASE - 3, BASE - 3),
        (BASE + 14, BASE + 16),
        (BASE + 16, BASE + 16),
        (0, 0),
        (Gfn::MAX.as_u64() - 2, Gfn::MAX.as_u64() - 2),
    ] {
        let refused = Err(DomainError::NoSlot(gfn(missing)));
        assert_eq!(guest.domain().get_access(gfn(first), &mut maps), refused);
        assert_eq!(guest.domain_mut().set_access(gfn(first), &maps).map(|_| ()), refused);
    }
    assert_eq!(maps, of_bits(&[5, 5, 5]), "a refused GET fills nothing");
    assert!(guest.domain().get_access(gfn(BASE), &mut []).is_err(), "no page is no range");
    for (gpa, inside) in
        [(at(0, 0) - 1, false), (at(0, 0), true), (at(16, 0) - 1, true), (at(16, 0), false)]
    {
        let outcome = guest.write_bytes(0, gpa, &[1]);
        let expected =
            if inside { AccessOutcome::Done } else { AccessOutcome::NoSlot(Gpa::new(gpa)) };
        assert_eq!(outcome, expected, "{gpa:#x}");
    }
}

/// There was no way to save what was protected, or to find out.
#[test]
fn d50_permissions_survive_a_migration_bit_for_bit() {
    let mut guest = Guest::new(stale(), 2 * REGION);
    let maps: Vec<u32> = (0..700).map(|page| page * 12_345).collect();
    guest.set(BASE + 100, &maps);
    let mut locked = rule(bytes(at(3, 77), 9000), Action::Deny);
    locked.locked = true;
    guest.add_rule(locked);
    guest.add_rule(rule(bytes(at(50, 0), 1), Action::AllowOnce));
    assert!(matches!(guest.write(0, at(50, 0)), AccessOutcome::Reported { .. }));
    let state = guest.domain().export().expect("memory");

    let mut target = Guest::new(Setup { page_size: PageSize::Size4K, ..stale() }, 2 * REGION);
    target.warm(BASE + 200);
    target.change(|domain| domain.import(&state, 1 << 20).expect("good state"));
    assert_eq!(target.domain().export().expect("memory"), state);
    let pages = |guest: &Guest| {
        let next = |from| guest.domain().next_restricted(from);
        let first = next(gfn(0));
        std::iter::successors(first, |gfn| next(gfn.checked_add(1)?)).collect::<Vec<_>>()
    };
    assert_eq!(pages(&target), pages(&guest));
    assert!(pages(&guest).len() > 690, "they can be enumerated");
    for page in 0..2 * REGION {
        for sub in [0, 1, 13, 31] {
            let gpa = at(page, sub * 128);
            let outcomes = [guest.write(1, gpa), target.write(1, gpa)];
            assert_eq!(
                outcomes[0] == AccessOutcome::Done,
                outcomes[1] == AccessOutcome::Done,
                "{gpa:#x}"
            );
        }
    }
}

/// What looking at and changing tables costs: to track 64 GiB, and to add and remove a rule of eight
/// bytes meanwhile.
fn costs_while_tracking(aliased: bool) -> [usize; 3] {
    const ALL: u64 = 1 << 24;
    let (mut domain, watch) = watched(ALL);
    if aliased {
        let (pages, original) = (gfns(ALL + 8, 16), gfn(3 * REGION + 5));
        let flags = SlotFlags::default();
        let token = domain.add_alias(Normal, SlotId(9), pages, flags, original).expect("free");
        domain.finish(&token.without_processors());
    }
    let mut costs = [0; 3];
    let cost = |watch: &Watch| watch.loads() + watch.stores();
    watch.reset();
    let range = bytes(0, ALL * 4096);
    let (_, token) = domain.track(range).expect("memory");
    domain.finish(&token.without_processors());
    costs[0] = cost(&watch);
    watch.reset();
    let place = bytes(100 * REGION * 4096 + 8, 8);
    let (id, token) = domain.add_rule(rule(place, Action::Deny)).expect("memory");
    domain.finish(&token.without_processors());
    costs[1] = cost(&watch);
    watch.reset();
    let token = domain.remove_rule(id, Owner::HOST).expect("there is one");
    domain.finish(&token.without_processors());
    costs[2] = cost(&watch);
    costs
}

/// Memory with several names costs a change no more than the pages of it that the change touches.
#[test]
fn a_change_pays_for_the_names_of_what_it_touches() {
    let [track, add, remove] = costs_while_tracking(false);
    let [track_too, add_too, remove_too] = costs_while_tracking(true);
    assert_eq!((add, remove), (add_too, remove_too), "none of it has another name");
    // One region is looked at page by page, and the one with the other names.
    let more = track_too - track;
    assert!(more < 20 * 512, "{more} more than {track}");
}

/// What an observer has heard.
#[derive(Clone, Default)]
struct Heard(Rc<RefCell<Vec<u64>>>);

impl Observer for Heard {
    fn maps_set(&mut self, pages: GfnRange, _: &[AccessMap]) {
        self.0.borrow_mut().push(pages.first().as_u64());
    }

    fn spp_event(&mut self, gpa: Gpa, qualification: SppQualification) {
        self.0.borrow_mut().extend([gpa.as_u64(), qualification.into()]);
    }

    fn denied(&mut self, denial: &Denial) {
        self.0.borrow_mut().push(denial.at.as_u64());
    }
}

/// The trace point cut the qualification to 32 bits, and a misconfiguration filled the host's log.
#[test]
fn d51_all_bits_are_heard_and_a_misconfiguration_is_an_answer() {
    let heard = Heard::default();
    let domain = Domain::with_observer(HeapFrames::new(), PhysicalWidth::MAX, heard.clone());
    let mut guest = Guest::around(stale(), domain, 16);
    guest.set(BASE, &[!1]);
    guest.warm(BASE);
    heard.0.borrow_mut().clear();
    let (answer, _) =
        guest.domain_mut().ept_violation(&mut RetryState::default(), &write_violation(at(0, 5)));
    assert!(matches!(answer, Answer::Deny(_)));

    // Somebody else writes the tables: a reserved bit in the L2 entry.
    let mut table = guest.domain().sppt().expect("enabled").root();
    for level in [Level::L4, Level::L3] {
        table = next_table(&guest, table, level.index(gfn(BASE)));
    }
    let index = Level::L2.index(gfn(BASE));
    let frames = guest.domain_mut().frames_mut();
    let damaged = frames.load(table, index) | 1 << 62;
    frames.store(table, index, damaged);
    let qualification = 0xDEAD_BEEF_0000_0000;
    let event = SppEvent {
        qualification: SppQualification::from(qualification),
        gpa: Gpa::new(at(0, 128)),
        rip: 0,
        space: Normal,
        delivery: Delivery::default(),
    };
    for _ in 0..3 {
        let (answer, _) = guest.domain_mut().spp_event(&mut RetryState::default(), &event);
        let damage = HostError::DamagedSppt { level: Level::L2, entry: damaged };
        assert_eq!(answer, Answer::Host(damage));
    }
    let event = [at(0, 128), qualification];
    assert_eq!(heard.0.borrow()[..], [&[at(0, 5)][..], &event, &event, &event].concat());
    assert_eq!(guest.domain().counters().spp_misconfigurations, 3);
}

fn next_table(
    guest: &Guest<Heard>,
    table: subpage::frames::TableFrame,
    index: EntryIndex,
) -> subpage::frames::TableFrame {
    let entry = subpage::sppt::SpptEntry::from(guest.domain().frames().load(table, index));
    entry.table().expect("linked")
}

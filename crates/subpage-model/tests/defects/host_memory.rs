//! D1 to D10: memory safety of the host.

use std::sync::{Arc, Mutex};
use std::thread;

use subpage::access::AccessMap;
use subpage::address::{Gpa, PhysicalWidth};
use subpage::domain::{Answer, Domain, DomainError, HostError, RetryState, SppEvent};
use subpage::errno::Errno;
use subpage::exit::{Delivery, ExitReason, SppQualification};
use subpage::frames::HeapFrames;
use subpage::level::PageSize;
use subpage::rules::Action;
use subpage::slots::{SlotFlags, SlotId};
use subpage::uapi;
use subpage_model::{AccessOutcome, EntryError, Features, Setup};

use crate::guest::{
    BASE, Guest, LOGGING, Normal, REGION, SLOT, Smm, at, bytes, features, get, gfn, gfns,
    host_page, of_bits, rule, stale, write_of, write_violation,
};
use crate::requests::Request;
use crate::watched::{Watch, WatchedFrames};

/// A domain without a machine, on watched frames, with one slot that is mapped in pages of a size.
fn watched(pages: u64, size: PageSize) -> (Domain<WatchedFrames>, Watch) {
    let (frames, watch) = WatchedFrames::new();
    let mut domain = Domain::new(frames, PhysicalWidth::MAX);
    domain.enable().expect("memory");
    domain.add_slot(Normal, SLOT, gfns(BASE, pages), SlotFlags::default()).expect("free");
    for page in (0..pages).step_by(usize::try_from(size.frames()).expect("small")) {
        let first = BASE + page;
        domain.map(Normal, gfn(first), host_page(first, size)).expect("memory");
    }
    (domain, watch)
}

/// The series enabled itself without a vCPU and without a root; root 0 counted as valid, and a vCPU
/// that came later walked physical page 0.
#[test]
fn d1_the_root_does_not_wait_for_a_processor() {
    let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
    domain.add_slot(Normal, SlotId(1), gfns(0, 4), SlotFlags::default()).expect("free");
    assert_eq!(domain.sppt(), None, "no root is a state of its own");
    let early = domain.set_access(gfn(0), &[AccessMap::NONE]);
    assert_eq!(early.err(), Some(DomainError::NotEnabled));

    domain.enable().expect("memory");
    let root = domain.sppt().expect("enabled").root();
    assert_ne!(root.hpa().as_u64(), 0);
    let token = domain.set_access(gfn(0), &of_bits(&[!1])).expect("no processor is needed");
    domain.finish(&token.without_processors());

    let mut guest = Guest::around(stale(), domain, 16);
    assert_eq!(
        guest.domain().sppt().expect("enabled").root(),
        root,
        "enabling again changes nothing"
    );
    for cpu in 0..3 {
        guest.denies(cpu, 0);
        guest.permits(cpu, 128);
    }
}

/// On AMD the series called a hook that is not there.
#[test]
fn d2_processors_without_the_control_are_no_fault() {
    let features = Features { sub_page_write_permissions: false, ..features() };
    let mut guest = Guest::new(Setup { features, ..stale() }, 16);
    guest.set(BASE, &[!1]);
    guest.warm(BASE);
    for cpu in 0..3 {
        guest.denies(cpu, at(0, 0));
        guest.permits(cpu, at(0, 128));
    }
    let refused = guest.roots(Normal).check(&features);
    assert_eq!(refused, Err(EntryError::NoSubPageWritePermissions), "asked, not assumed");
}

/// GET and SET read the header a second time and trusted the second reading.
#[test]
fn d3_a_header_that_changes_is_not_read_again() {
    let (mut domain, _) = watched(512, PageSize::Size2M);
    let enlarged = || Request::new(BASE, 512, 0, &[5; 512]);
    let mut request = Request::new(BASE, 1, 0, &[7; 1]).becoming(enlarged());
    let (pages, token) = uapi::set_access(&mut domain, &mut request).expect("one page");
    domain.finish(&token.without_processors());
    assert_eq!((pages, get(&domain, BASE), get(&domain, BASE + 1)), (1, 5, u32::MAX));

    let mut request = Request::new(BASE, 1, 0, &[9]).becoming(enlarged());
    assert_eq!(uapi::get_access(&domain, &mut request), Ok(1));
    assert_eq!(request.maps()[..2], [5, 5]);
    assert_eq!(request.maps().len(), 512, "one page of the larger request was written");
    let mut request = Request::new(BASE, 2, 0, &[9, 9]).becoming(Request::new(BASE, 1, 0, &[9]));
    assert_eq!(uapi::get_access(&domain, &mut request), Err(Errno::Fault));
}

/// Error paths after the first allocation leaked what had been allocated.
#[test]
fn d4_failed_calls_keep_no_memory() {
    let (mut domain, watch) = watched(2048, PageSize::Size2M);
    let maps = vec![AccessMap::NONE; 1200];
    let frames = domain.frames().heap.frames_in_use();
    for from in 0.. {
        watch.fail_from(Some(from));
        let result = domain.set_access(gfn(BASE + 100), &maps);
        watch.fail_from(None);
        let Err(error) = result else {
            assert!(from >= 9, "{from} requests for three tables and three splits");
            break;
        };
        assert_eq!(error, DomainError::OutOfMemory);
        assert_eq!(domain.frames().heap.frames_in_use(), frames, "after request {from} failed");
    }
}

/// The series looked every page up in the slot of the first one.
#[test]
fn d5_each_page_has_the_slot_that_holds_it() {
    let mut guest = Guest::new(stale(), 700);
    let (second, third, end) = (BASE + 700, BASE + 703, BASE + 706);
    let read_only = SlotFlags { read_only: true, log_dirty: false };
    for (id, first, flags) in [(8, second, SlotFlags::default()), (9, third, read_only)] {
        let pages = gfns(first, 3);
        guest.domain_mut().add_slot(Normal, SlotId(id), pages, flags).expect("free");
    }
    for page in [BASE + 698, BASE + 699, second, second + 2, third, third + 2] {
        guest.warm(page);
    }
    guest.set(BASE + 698, &[!1, !2, !4, !8, !16, !32, !64]);
    for (page, sub) in (BASE + 698..third).zip(0..) {
        assert_eq!(guest.get(page), !(1 << sub));
        for cpu in 0..3 {
            guest.denies(cpu, (page << 12) + sub * 128);
            guest.permits(cpu, (page << 12) + (sub + 1) * 128);
        }
    }
    for page in third..end {
        let gpa = Gpa::new(page << 12);
        assert_eq!(
            guest.write(0, page << 12),
            AccessOutcome::ReadOnlySlot(gpa),
            "restricted or not"
        );
    }
    let beyond = guest.domain_mut().set_access(gfn(end - 1), &of_bits(&[0, 0]));
    assert_eq!(beyond.err(), Some(DomainError::NoSlot(gfn(end))));
    assert_eq!(guest.get(end - 1), u32::MAX);
}

/// The series removed reverse mappings inside the loop over them; a frame with two mappings was
/// followed into freed memory.
#[test]
fn d6_a_frame_with_several_mappings_loses_them_all() {
    let mut guest = Guest::new(Setup { page_size: PageSize::Size4K, ..stale() }, 16);
    guest.domain_mut().add_slot(Smm, SLOT, gfns(BASE, 16), SlotFlags::default()).expect("free");
    guest.warm(BASE);
    guest.domain_mut().map(Smm, gfn(BASE), host_page(BASE, PageSize::Size4K)).expect("memory");
    guest.set(BASE, &[!1]);
    for space in [Normal, Smm] {
        let leaf = guest.domain().mapping(space, gfn(BASE)).expect("mapped").entry;
        assert!(!leaf.write() && leaf.sub_page_write(), "{space:?}");
    }
    let held = guest.domain().frames().frames_in_use();
    for space in [Normal, Smm] {
        guest.change(|domain| domain.unmap(space, gfns(BASE, 16)).expect("memory"));
        assert!(guest.domain().mapping(space, gfn(BASE)).is_none());
    }
    assert_eq!(guest.domain().retired_frames(), 0);
    assert_eq!(guest.domain().frames().frames_in_use(), held - 6, "three tables of each space");
    guest.denies(2, at(0, 0));
}

/// After zapping a large leaf the walk went on through the entry it had just cleared, to physical
/// page 0. (Frames that are not allocated panic when they are read.)
#[test]
fn d7_a_walk_ends_at_an_absent_entry() {
    let mut guest = Guest::new(stale(), 4 * REGION);
    for region in 0..4 {
        guest.warm(BASE + region * REGION);
    }
    guest.change(|domain| domain.unmap(Normal, gfns(BASE + REGION, REGION)).expect("memory"));
    guest.change(|domain| domain.unmap(Normal, gfns(BASE + 2 * REGION + 7, 9)).expect("memory"));
    // From a large leaf, over a hole without a table, over holes in a table, into a large leaf.
    guest.set(BASE + 500, &vec![0; 1100]);
    assert_eq!(guest.get(BASE + 499), u32::MAX);
    for page in [500, 511, 512, 700, 1023, 1024 + 7, 1024 + 200, 1599] {
        guest.denies(1, at(page, 0));
    }
    guest.permits(1, at(1600, 0));
}

/// The miss handler allocated from a cache that nobody had filled, and ended in BUG_ON.
#[test]
fn d8_no_memory_is_an_answer() {
    let (mut domain, watch) = watched(512, PageSize::Size2M);
    let token = domain.set_slot_flags(Normal, SLOT, LOGGING).expect("memory");
    domain.finish(&token.without_processors());
    let mut retry = RetryState::default();
    watch.fail_from(Some(0));
    let (answer, _) = domain.ept_violation(&mut retry, &write_violation(at(0, 0)));
    assert_eq!(answer, Answer::Host(HostError::OutOfMemory));
    let miss = SppEvent {
        qualification: SppQualification::new().with_miss(true),
        gpa: gfn(BASE).gpa(),
        rip: 0,
        space: Normal,
        delivery: Delivery::default(),
    };
    for _ in 0..100 {
        let (answer, _) = domain.spp_event(&mut RetryState::default(), &miss);
        assert_eq!(answer, Answer::Retry, "a miss needs no table");
    }
    watch.fail_from(None);
    let (answer, _) = domain.ept_violation(&mut retry, &write_violation(at(0, 0)));
    assert_eq!(answer, Answer::Resume, "and the first answer left nothing half done");
}

/// Bit 61 was set whether or not the host let the guest write the page: permitted sub-pages of
/// shared, copy-on-write and read-only pages could be written.
#[test]
fn d9_sub_pages_open_only_what_the_host_has_open() {
    let mut guest = Guest::new(stale(), 16);
    let shared = gfns(BASE, 1);
    guest.set(BASE, &[!1]);
    guest.warm(BASE);
    guest.permits(0, at(0, 128));
    guest.change(|domain| domain.protect(Normal, shared, false).expect("memory"));
    for round in 0..3 {
        for cpu in 0..3 {
            let exit = guest.raw(cpu, Normal, &write_of(at(0, 128), 8)).expect_err("shared page");
            assert_eq!(exit.reason, ExitReason::EPT_VIOLATION, "round {round}");
        }
        // Neither other permissions nor a new mapping open it.
        guest.set(BASE, &[[!2, u32::MAX, 3][round]]);
    }
    let demand = guest.traps().demand;
    guest.permits(1, at(0, 128));
    assert_eq!(guest.traps().demand, demand + 1, "the host was asked to break the sharing first");

    let read_only = SlotFlags { read_only: true, log_dirty: false };
    guest.change(|domain| domain.set_slot_flags(Normal, SLOT, read_only).expect("memory"));
    let before = guest.peek::<8>(at(0, 128));
    for cpu in 0..3 {
        let gpa = Gpa::new(at(0, 128));
        assert_eq!(guest.write(cpu, gpa.as_u64()), AccessOutcome::ReadOnlySlot(gpa));
    }
    assert_eq!(guest.peek::<8>(at(0, 128)), before);
    let decision = guest.domain().check_write(Normal, bytes(at(0, 128), 8));
    assert!(!decision.permits());
}

/// D9 for writes that no table can let through: before one is emulated, the host has broken the
/// sharing of every page that it touches.
#[test]
fn d9_emulated_writes_wait_for_the_host_too() {
    let mut guest = Guest::new(Setup { page_size: PageSize::Size4K, ..stale() }, 16);
    guest.add_rule(rule(bytes(at(1, 0) - 4, 4), Action::Log));
    for page in 0..2 {
        guest.warm(BASE + page);
    }
    for (shared, start) in [(0, at(1, 0) - 4), (0, at(1, 0) - 8), (1, at(1, 0) - 4)] {
        let page = gfns(BASE + shared, 1);
        guest.change(|domain| domain.protect(Normal, page, false).expect("memory"));
        let demand = guest.traps().demand;
        let outcome = guest.write(0, start);
        assert!(matches!(outcome, AccessOutcome::Reported { .. }), "{outcome:?}");
        assert_eq!(guest.traps().demand, demand + 1, "page {shared}, {start:#x}");
        let leaf = guest.domain().mapping(Normal, page.first()).expect("mapped").entry;
        assert!(leaf.host_writable());
    }
}

/// Enabling took no lock. Here it takes the domain itself, so callers cannot meet inside.
#[test]
fn d10_callers_that_enable_at_once_get_one_root() {
    let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
    domain.add_slot(Normal, SLOT, gfns(BASE, 8), SlotFlags::default()).expect("free");
    let domain = Arc::new(Mutex::new(domain));
    let callers: Vec<_> = (0..8)
        .map(|page| {
            let domain = Arc::clone(&domain);
            thread::spawn(move || {
                let mut domain = domain.lock().expect("nobody panics");
                domain.enable().expect("memory");
                let token = domain.set_access(gfn(BASE + page), &[AccessMap::NONE]).expect("good");
                domain.finish(&token.without_processors());
                domain.sppt().expect("enabled").root()
            })
        })
        .collect();
    let mut roots: Vec<_> = callers.into_iter().map(|c| c.join().expect("no panic")).collect();
    roots.dedup();
    assert_eq!(roots.len(), 1);
    let domain = domain.lock().expect("nobody panicked");
    assert!((0..8).all(|page| get(&*domain, BASE + page) == 0), "no rule was lost");
}

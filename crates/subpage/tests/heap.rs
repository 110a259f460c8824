//! The heap itself runs out, at every point of every call (contract C2).
//!
//! `engine/failures.rs` fails what the engine asks of its frames; here every allocation can fail,
//! the engine's own lists included. One that cannot report it would end this process.

use std::alloc::System;
use std::fmt::Debug;

use cap::Cap;

use subpage::access::AccessMap;
use subpage::address::{ByteRange, Gfn, GfnRange, Gpa, Hpa, PhysicalWidth};
use subpage::domain::{Domain, DomainError, HostPage, ImportError};
use subpage::frames::{HeapFrames, TableFrames as _};
use subpage::invalidate::Invalidation;
use subpage::level::PageSize;
use subpage::rules::{Action, Owner, Rule, RuleId, RuleName};
use subpage::slots::{AddressSpace::Normal, SlotFlags, SlotId};
use subpage::track::TrackId;

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

const LOGGING: SlotFlags = SlotFlags { read_only: false, log_dirty: true };

fn range(first: u64, length: u64) -> ByteRange {
    ByteRange::new(Gpa::new(first), length).expect("a range")
}

fn rule(first: u64, length: u64) -> Rule {
    Rule {
        name: RuleName::new("test").expect("a name"),
        range: range(first, length),
        owner: Owner(1),
        action: Action::Deny,
        locked: false,
    }
}

/// A guest with 2 MiB pages, a rule, a restricted page and a tracked range.
fn guest() -> Domain<HeapFrames> {
    let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
    domain.enable().expect("memory");
    let pages = GfnRange::new(Gfn::new(0), 2048).expect("a range");
    domain.add_slot(Normal, SlotId(0), pages, SlotFlags::default()).expect("a free place");
    for first in (0..2048).step_by(512) {
        domain.map(Normal, Gfn::new(first), page(first)).expect("memory");
    }
    let token = domain.set_access(Gfn::new(3), &[AccessMap::NONE; 2]).expect("memory");
    domain.finish(&token.without_processors());
    let (_, token) = domain.add_rule(rule(0x3010, 300)).expect("memory");
    domain.finish(&token.without_processors());
    let (_, token) = domain.track(range(0x20_0000, 9000)).expect("memory");
    domain.finish(&token.without_processors());
    domain
}

fn page(first: u64) -> HostPage {
    HostPage {
        hpa: Hpa::new(first * 4096),
        size: PageSize::Size2M,
        writable: true,
        executable: true,
        memory_type: subpage::ept::MemoryType::WriteBack,
    }
}

/// What must not change: the exported state, and how many frames there are.
fn picture(domain: &Domain<HeapFrames>) -> (Vec<u8>, usize, usize) {
    let state = domain.export().expect("memory");
    (state, domain.frames().frames_in_use(), domain.retired_frames())
}

/// Runs `call` with ever more memory until it has enough.
fn starve<T, E: Debug>(
    name: &str,
    prepare: impl Fn() -> Domain<HeapFrames>,
    call: impl Fn(&mut Domain<HeapFrames>) -> Result<T, E>,
    is_want_of_memory: impl Fn(&E) -> bool,
) {
    let mut failures = 0;
    for extra in (0..).step_by(48) {
        let mut domain = prepare();
        let before = picture(&domain);
        HEAP.set_limit(HEAP.allocated() + extra).expect("no less than is allocated");
        let result = call(&mut domain);
        HEAP.set_limit(usize::MAX).expect("more than is allocated");
        match result {
            Ok(_) => break,
            Err(error) => {
                assert!(is_want_of_memory(&error), "{name}: {error:?}");
                assert_eq!(picture(&domain), before, "{name} with {extra} bytes");
                failures += 1;
            }
        }
    }
    assert!(failures > 0, "{name} needed no memory: the test shows nothing");
}

fn out_of_memory(error: &DomainError) -> bool {
    *error == DomainError::OutOfMemory
}

fn kept(domain: &mut Domain<HeapFrames>, token: Invalidation) {
    domain.finish(&token.without_processors());
}

#[test]
fn every_call_reports_that_the_heap_is_exhausted() {
    let maps = [AccessMap::from_bits(0x0F0F); 700];
    let rules = [rule(0x1000, 9000), rule(0x2000, 64), rule(0x60_0000, 1 << 20)];
    let state = guest().export().expect("memory");
    let set = |domain: &mut Domain<HeapFrames>| domain.set_access(Gfn::new(900), &maps);
    starve("set_access", guest, set, out_of_memory);
    starve("add_rules", guest, |domain| domain.add_rules(&rules), out_of_memory);
    let remove = |domain: &mut Domain<HeapFrames>| domain.remove_rule(RuleId(1), Owner(1));
    let overlapping = || {
        let mut domain = guest();
        let (_, token) = domain.add_rule(rule(0x3000, 200)).expect("memory");
        kept(&mut domain, token);
        domain
    };
    starve("remove_rule", overlapping, remove, out_of_memory);
    let track = |domain: &mut Domain<HeapFrames>| domain.track(range(0x40_0000, 1 << 20));
    starve("track", guest, track, out_of_memory);
    let written = || {
        let mut domain = guest();
        for first in (0x20_0000..0x20_2000).step_by(300) {
            let decision = domain.authorize_write(Normal, range(first, 8)).expect("memory");
            assert!(decision.permits());
        }
        domain
    };
    let harvest = |domain: &mut Domain<HeapFrames>| domain.harvest_written(TrackId(1));
    starve("harvest_written", written, harvest, out_of_memory);
    let log = |domain: &mut Domain<HeapFrames>| domain.set_slot_flags(Normal, SlotId(0), LOGGING);
    starve("set_slot_flags", guest, log, out_of_memory);
    let logging = || {
        let mut domain = guest();
        let token = log(&mut domain).expect("memory");
        kept(&mut domain, token);
        domain
    };
    let harvest = |domain: &mut Domain<HeapFrames>| domain.harvest_dirty(Normal, SlotId(0));
    starve("harvest_dirty", logging, harvest, out_of_memory);
    let unmap = |domain: &mut Domain<HeapFrames>| {
        domain.unmap(Normal, GfnRange::new(Gfn::new(700), 900).expect("a range"))
    };
    starve("unmap", guest, unmap, out_of_memory);
    let unmapped = || {
        let mut domain = guest();
        let token = domain.unmap(Normal, GfnRange::one(Gfn::new(3))).expect("memory");
        kept(&mut domain, token);
        let whole = GfnRange::new(Gfn::new(0), 512).expect("a range");
        let token = domain.unmap(Normal, whole).expect("memory");
        kept(&mut domain, token);
        domain
    };
    let map = |domain: &mut Domain<HeapFrames>| domain.map(Normal, Gfn::new(0), page(0));
    starve("map", unmapped, map, out_of_memory);
    let slot = GfnRange::new(Gfn::new(5000), 1 << 20).expect("a range");
    let add = |domain: &mut Domain<HeapFrames>| domain.add_slot(Normal, SlotId(1), slot, LOGGING);
    starve("add_slot", guest, add, out_of_memory);
    let fresh = || {
        let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
        domain.enable().expect("memory");
        domain
    };
    let import = |domain: &mut Domain<HeapFrames>| domain.import(&state, 1 << 20);
    starve("import", fresh, import, |error| {
        *error == ImportError::Domain(DomainError::OutOfMemory)
    });
    starve("export", guest, |domain| domain.export(), out_of_memory);
    let alias = |domain: &mut Domain<HeapFrames>| {
        let pages = GfnRange::new(Gfn::new(4096), 700).expect("a range");
        domain.add_alias(Normal, SlotId(1), pages, SlotFlags::default(), Gfn::new(100))
    };
    starve("add_alias", guest, alias, out_of_memory);
    releases_need_no_memory();
    what_is_refused_reserves_nothing();
}

/// A frame can always be given back.
fn releases_need_no_memory() {
    for count in [1, 4, 5, 64] {
        let mut frames = HeapFrames::new();
        let all: Vec<_> = (0..count).map(|_| frames.allocate().expect("memory")).collect();
        HEAP.set_limit(HEAP.allocated()).expect("no less than is allocated");
        for frame in &all {
            frames.release(*frame);
        }
        HEAP.set_limit(usize::MAX).expect("more than is allocated");
        assert_eq!(frames.frames_in_use(), 0);
    }
}

/// State about more than is allowed is refused before memory is taken for it.
fn what_is_refused_reserves_nothing() {
    let fresh = || {
        let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
        domain.enable().expect("memory");
        domain
    };
    let mut domain = fresh();
    let (_, token) = domain.track(range(0, 1 << 40)).expect("memory");
    kept(&mut domain, token);
    let state = domain.export().expect("memory");
    let mut other = fresh();
    HEAP.set_limit(HEAP.allocated() + 4096).expect("no less than is allocated");
    let refused = other.import(&state, 1000).err();
    HEAP.set_limit(usize::MAX).expect("more than is allocated");
    assert_eq!(refused, Some(ImportError::TooManyPages));
}

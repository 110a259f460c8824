//! Setting maps in a busy guest, and the first write after it.
//!
//! Half of the work of the series is done at the next write, so a call is timed together with one
//! write into the region it changed, decided by the tables as the processor does it. Every page of
//! the guest is restricted and mapped by a 4 KiB leaf. Both sides ask the guest's one processor to
//! flush whenever their algorithm has to, and neither waits for it.

use std::hint::black_box;

use subpage::access::{AccessMap, SubPage};
use subpage::address::Gfn;
use subpage::domain::Domain;
use subpage::frames::HeapFrames;
use subpage::slots::AddressSpace;

use crate::dense::Dense;
use crate::guest::{self, CALL, FlushRequests, GIB};
use subpage_bench::report::Record;
use subpage_bench::rounds::{Rounds, timed};

pub(super) const CALL_NAME: &str = "set_access_then_write";
pub(super) const ONE_NAME: &str = "set_one_then_write";

/// Regions of the guest.
const REGIONS: u32 = 512;

/// Changes in one round of [`ONE_NAME`].
const SINGLE_CHANGES: usize = 4096;

/// The same guest on both sides.
struct Sides {
    engine: Engine,
    dense: Dense,
}

/// The engine and the processor that it asks to flush.
struct Engine {
    domain: Domain<HeapFrames>,
    processor: FlushRequests,
}

impl Sides {
    fn new(maps: &Maps) -> Self {
        let engine = Engine::new();
        let mut dense = Dense::new(&guest::slots(GIB));
        dense.enable();
        (0..GIB).for_each(|gfn| dense.map_page(gfn));
        let mut sides = Self { engine, dense };
        for ((first, engine), dense) in maps.calls() {
            sides.engine.set_access(first, engine);
            sides.dense.set_access(first, dense).expect("frames of a slot");
        }
        sides
    }

    /// Whether both sides hold these maps and let the same writes through.
    fn check(&mut self, random: &mut fastrand::Rng) {
        let mut engine = vec![AccessMap::ALL; CALL];
        let mut dense = vec![0; CALL];
        for first in (0..GIB).step_by(CALL) {
            self.engine.domain.get_access(Gfn::new(first), &mut engine).expect("frames of a slot");
            self.dense.get_access(first, &mut dense).expect("frames of a slot");
            let same = engine.iter().map(|map| map.bits()).eq(dense.iter().copied());
            assert!(same, "engine and baseline hold different maps from frame {first:#x} on");
        }
        for _ in 0..100_000 {
            let (gfn, sub) = (random.u64(..GIB), random.u8(..32));
            assert_eq!(
                self.engine.write(gfn, sub),
                self.dense.write(gfn, sub.into()),
                "engine and baseline decide differently about sub-page {sub} of frame {gfn:#x}"
            );
        }
    }
}

/// Maps for the whole guest in both notations.
struct Maps {
    engine: Vec<AccessMap>,
    dense: Vec<u32>,
}

impl Maps {
    fn partial(random: &mut fastrand::Rng) -> Self {
        Self::of(guest::partial_maps(random, usize::try_from(GIB).expect("a count of pages")))
    }

    fn mixed(random: &mut fastrand::Rng) -> Self {
        Self::of(guest::mixed_maps(random, usize::try_from(GIB).expect("a count of pages")))
    }

    fn of(engine: Vec<AccessMap>) -> Self {
        let dense = engine.iter().map(|map| map.bits()).collect();
        Self { engine, dense }
    }

    fn calls(&self) -> impl Iterator<Item = ((u64, &[AccessMap]), &[u32])> {
        (0..).step_by(CALL).zip(self.engine.chunks(CALL)).zip(self.dense.chunks(CALL))
    }
}

impl Engine {
    fn new() -> Self {
        let mut domain = guest::domain(GIB);
        domain.enable().expect("memory for the root");
        guest::map_all(&mut domain, GIB);
        Self { domain, processor: FlushRequests::default() }
    }

    fn set_access(&mut self, first: u64, maps: &[AccessMap]) {
        let token = self.domain.set_access(Gfn::new(first), maps).expect("frames of a slot");
        if token.is_required() {
            self.processor.request_flush();
        }
        self.domain.finish(&token.without_processors());
    }

    /// Whether the processor lets a write through: the EPT's leaf, then the SPPT if the leaf says so.
    fn write(&self, gfn: u64, sub_page: u8) -> bool {
        let gfn = Gfn::new(gfn);
        let (Some(ept), Some(sppt)) = (self.domain.ept(AddressSpace::Normal), self.domain.sppt())
        else {
            return false;
        };
        let entry = ept.find(self.domain.frames(), gfn).entry;
        if entry.write() || !entry.sub_page_write() {
            return entry.write();
        }
        let sub_page = SubPage::new(sub_page).expect("a sub-page of 32");
        sppt.vector(self.domain.frames(), gfn).permits(sub_page)
    }
}

/// Measures [`CALL_NAME`]: calls of 512 pages over 1 GiB, each of which changes every page of one
/// 2 MiB region. All maps permit some sub-pages; with `mixed` maps one page in sixteen is wholly
/// denied, so that leaves of the EPT change too.
pub(super) fn run_call() -> Vec<Record> {
    let mut random = fastrand::Rng::with_seed(2);
    let partial = time_calls(&[Maps::partial(&mut random), Maps::partial(&mut random)]);
    let mixed = time_calls(&[Maps::mixed(&mut random), Maps::mixed(&mut random)]);
    vec![
        record(CALL_NAME, &partial, REGIONS)
            .with("mixed", mixed.nanoseconds(0, REGIONS))
            .with("mixed_baseline", mixed.nanoseconds(1, REGIONS))
            .with("mixed_ratio", mixed.ratio(1, 0).median)
            .with_note("512 pages of one region, all changed"),
    ]
}

/// Times passes over the guest that set the one and the other maps in turns.
fn time_calls(maps: &[Maps; 2]) -> Rounds<2> {
    let mut random = fastrand::Rng::with_seed(6);
    let mut sides = Sides::new(&maps[0]);
    sides.check(&mut random);
    let Sides { engine, dense } = &mut sides;
    let (mut engine_pass, mut dense_pass) = (0, 0);
    let mut by_engine = || {
        engine_pass += 1;
        timed(|| {
            for ((first, maps), _) in maps[engine_pass % 2].calls() {
                engine.set_access(first, maps);
                black_box(engine.write(first + 7, 3));
            }
        })
    };
    let mut by_dense = || {
        dense_pass += 1;
        timed(|| {
            for ((first, _), maps) in maps[dense_pass % 2].calls() {
                dense.set_access(first, maps).expect("frames of a slot");
                black_box(dense.write(first + 7, 3));
            }
        })
    };
    let rounds = Rounds::run([&mut by_engine, &mut by_dense]);
    sides.check(&mut random);
    rounds
}

/// Measures [`ONE_NAME`]: one page of a region whose 512 pages are all restricted.
pub(super) fn run_one() -> Vec<Record> {
    let mut random = fastrand::Rng::with_seed(3);
    let mut sides = Sides::new(&Maps::mixed(&mut random));
    sides.check(&mut random);
    let first = GIB / 2;
    let changes: Vec<(u64, u32)> = (0..SINGLE_CHANGES)
        .map(|_| (first + random.u64(..CALL as u64), random.u32(1..u32::MAX)))
        .collect();
    let Sides { engine, dense } = &mut sides;
    // Both sides see the same changes in the same rounds: the map of round r is rotated by r, so
    // that no change is without effect.
    let (mut engine_round, mut dense_round) = (0, 0);
    let mut by_engine = || {
        engine_round += 1;
        timed(|| {
            for (gfn, map) in &changes {
                let map = AccessMap::from_bits(map.rotate_left(engine_round));
                engine.set_access(*gfn, &[map]);
                black_box(engine.write(*gfn, 3));
            }
        })
    };
    let mut by_dense = || {
        dense_round += 1;
        timed(|| {
            for (gfn, map) in &changes {
                dense.set_access(*gfn, &[map.rotate_left(dense_round)]).expect("frames of a slot");
                black_box(dense.write(*gfn, 3));
            }
        })
    };
    let rounds = Rounds::run([&mut by_engine, &mut by_dense]);
    sides.check(&mut random);
    let changes = u32::try_from(SINGLE_CHANGES).expect("a small count");
    vec![record(ONE_NAME, &rounds, changes).with_note("random pages of one region")]
}

fn record(name: &'static str, rounds: &Rounds<2>, operations: u32) -> Record {
    let (engine, dense) = (rounds.nanoseconds(0, operations), rounds.nanoseconds(1, operations));
    Record::new(name, "ns/call", engine, "dense", dense).with_ratio(rounds.ratio(1, 0))
}

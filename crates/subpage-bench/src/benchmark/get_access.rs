//! Reading the maps of 1 GiB in calls of 512 pages, every page restricted.

use std::hint::black_box;

use subpage::access::AccessMap;
use subpage::address::Gfn;

use crate::dense::Dense;
use crate::guest::{self, CALL, GIB};
use subpage_bench::report::Record;
use subpage_bench::rounds::{Rounds, timed};

pub(super) const NAME: &str = "get_access";

/// Passes over the guest in one round.
const PASSES: u32 = 4;

/// Calls in one pass.
const CALLS: u32 = 512;

/// Bytes that one call touches: 512 entries of 8 bytes read, 512 maps of 4 bytes written. A copy of
/// half as many touches the same number, reading one half and writing the other.
const COPY: usize = 512 * (8 + 4) / 2;

/// Measures [`NAME`].
pub(super) fn run() -> Vec<Record> {
    let pages = usize::try_from(GIB).expect("a count of pages");
    let maps = guest::mixed_maps(&mut fastrand::Rng::with_seed(1), pages);
    let bits: Vec<u32> = maps.iter().map(|map| map.bits()).collect();

    let mut engine = guest::domain(GIB);
    let mut dense = Dense::new(&guest::slots(GIB));
    engine.enable().expect("memory for the root");
    dense.enable();
    for ((first, maps), bits) in (0..).step_by(CALL).zip(maps.chunks(CALL)).zip(bits.chunks(CALL)) {
        let token = engine.set_access(Gfn::new(first), maps).expect("frames of a slot");
        engine.finish(&token.without_processors());
        dense.set_access(first, bits).expect("frames of a slot");
    }

    let mut engine_out = vec![AccessMap::ALL; pages];
    let mut dense_out = vec![0; pages];
    let source = vec![1_u8; COPY * 512];
    let mut target = vec![0_u8; COPY * 512];

    let mut by_engine = || {
        timed(|| {
            for _ in 0..PASSES {
                for (first, out) in (0..).step_by(CALL).zip(engine_out.chunks_mut(CALL)) {
                    engine.get_access(Gfn::new(first), out).expect("frames of a slot");
                }
                black_box(&mut engine_out);
            }
        })
    };
    let mut by_dense = || {
        timed(|| {
            for _ in 0..PASSES {
                for (first, out) in (0..).step_by(CALL).zip(dense_out.chunks_mut(CALL)) {
                    dense.get_access(first, out).expect("frames of a slot");
                }
                black_box(&mut dense_out);
            }
        })
    };
    let mut by_copy = || {
        timed(|| {
            for _ in 0..PASSES {
                for (from, to) in source.chunks(COPY).zip(target.chunks_mut(COPY)) {
                    to.copy_from_slice(black_box(from));
                }
                black_box(&mut target);
            }
        })
    };
    let rounds = Rounds::run([&mut by_engine, &mut by_dense, &mut by_copy]);
    assert!(engine_out == maps, "the engine returns other maps than were set");
    assert!(dense_out == bits, "the baseline returns other maps than were set");

    let calls = CALLS * PASSES;
    vec![
        Record::new(
            NAME,
            "ns/call",
            rounds.nanoseconds(0, calls),
            "dense",
            rounds.nanoseconds(1, calls),
        )
        .with_ratio(rounds.ratio(1, 0))
        .with("over_memcpy", rounds.ratio(0, 2).median)
        .with("memcpy", rounds.nanoseconds(2, calls))
        .with_note("a call reads 512 pages; memcpy copies 3 KiB a call: as many bytes touched"),
    ]
}

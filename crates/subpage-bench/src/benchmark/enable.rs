//! Turning permissions on for a guest of 1 TiB whose slots exist.

use std::hint::black_box;

use crate::dense::Dense;
use crate::guest::{self, TIB};
use subpage_bench::report::Record;
use subpage_bench::rounds::{Rounds, timed};

pub(super) const NAME: &str = "enable_1tib";

/// Engines enabled in one round: one alone is too quick for the clock.
const ENGINES: usize = 1000;

/// Measures [`NAME`].
pub(super) fn run() -> Vec<Record> {
    let mut frames = 0;
    let mut by_engine = || {
        let mut engines: Vec<_> = (0..ENGINES).map(|_| guest::domain(TIB)).collect();
        let time = timed(|| {
            for engine in &mut engines {
                engine.enable().expect("memory for the root");
            }
        });
        frames = black_box(&engines)[0].frames().frames_in_use();
        time
    };
    let mut by_dense = || {
        let mut dense = Dense::new(&guest::slots(TIB));
        let time = timed(|| dense.enable());
        assert_eq!(black_box(&dense).get_access(0, &mut [0]), Ok(()));
        time
    };
    let rounds = Rounds::run([&mut by_engine, &mut by_dense]);
    #[allow(clippy::cast_precision_loss)] // Small counts.
    let (engines, frames) = (ENGINES as f64, frames as f64);
    let engine = rounds.nanoseconds(0, 1) / engines;
    let ratio = rounds.ratio(1, 0).times(engines);
    vec![
        Record::new(NAME, "ns", engine, "dense", rounds.nanoseconds(1, 1))
            .with_ratio(ratio)
            .with("frames", frames)
            .with_note("the baseline's array is for one address space"),
    ]
}

//! Two guests that take turns, several times over, and a third that shows what chance alone does.
//!
//! Processors of a host differ in speed, by their clocks and by who else uses them: a guest on one and
//! a guest on another are not compared. So all guests of a pair run on the same processor of the host.
//! And no two virtual machines are equal, even with the same guest: where its memory lies changes what
//! an exit costs by some percent, for as long as it lives. So several pairs are made, one after the
//! other, on the processors of the host in turn, and their median is what is reported.

use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use subpage_bench::report::Record;
use subpage_bench::rounds::{Ratio, Rounds};

/// Pairs that count; an odd number, so that the median is a measurement.
const PAIRS: usize = 9;

/// A guest that runs round by round.
pub(crate) trait Contender {
    /// One round; how long it took.
    fn round(&mut self) -> Duration;
}

/// The guests of one pair.
pub(crate) struct Pair {
    /// The one whose cost is asked for.
    pub(crate) measured: Box<dyn Contender>,
    /// What it is compared with.
    pub(crate) baseline: Box<dyn Contender>,
    /// Another like the baseline.
    pub(crate) control: Box<dyn Contender>,
    /// Stores of a round.
    pub(crate) stores: u32,
}

/// What is compared, and how often.
pub(crate) struct Comparison {
    pub(crate) name: &'static str,
    pub(crate) unit: Unit,
    pub(crate) baseline_name: &'static str,
    /// Rounds of each pair.
    pub(crate) rounds: usize,
    /// The ratio that it should have at most.
    pub(crate) target: Option<f64>,
}

/// The unit of a time.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Unit {
    Microseconds,
    Nanoseconds,
}

impl Unit {
    const fn name(self) -> &'static str {
        match self {
            Self::Microseconds => "us",
            Self::Nanoseconds => "ns",
        }
    }

    const fn nanoseconds(self) -> f64 {
        match self {
            Self::Microseconds => 1e3,
            Self::Nanoseconds => 1.0,
        }
    }
}

impl Comparison {
    /// Measures pair after pair. `make` gets the number of the pair: what is made first differs from
    /// one to the next.
    ///
    /// Where the host does not let this thread choose its processor, the record says for how many pairs
    /// (`unpinned_pairs`).
    pub(crate) fn run(&self, make: impl Fn(usize) -> Pair) -> Record {
        let (mut measured, mut baseline) = (Vec::new(), Vec::new());
        let (mut ratios, mut controls) = (Vec::new(), Vec::new());
        let hosts = Processors::of_this_thread().ok();
        let mut unpinned = 0_u32;
        for number in 0..PAIRS {
            // Threads that the guests start stay where this one is.
            if hosts.as_ref().is_none_or(|hosts| hosts.choose(number).is_err()) {
                unpinned += 1;
            }
            let mut pair = make(number);
            let rounds = Rounds::run_many(
                self.rounds,
                [&mut || pair.measured.round(), &mut || pair.baseline.round(), &mut || {
                    pair.control.round()
                }],
            );
            measured.push(rounds.nanoseconds(0, pair.stores));
            baseline.push(rounds.nanoseconds(1, pair.stores));
            ratios.push(rounds.ratio_in_rounds(0, 1));
            controls.push(rounds.ratio_in_rounds(2, 1));
        }
        let unit = self.unit.nanoseconds();
        let (min, max) = (lowest(&ratios), highest(&ratios));
        let ratio = Ratio { median: median(ratios), min, max };
        let record = Record::new(
            self.name,
            self.unit.name(),
            median(measured) / unit,
            self.baseline_name,
            median(baseline) / unit,
        );
        let record = record.with_cost(ratio, self.target).with("control", median(controls));
        if unpinned > 0 { record.with("unpinned_pairs", unpinned.into()) } else { record }
    }
}

/// The processors of the host that this thread may use; all of them again when the value is dropped.
struct Processors {
    all: CpuSet,
    numbers: Vec<usize>,
}

impl Processors {
    fn of_this_thread() -> nix::Result<Self> {
        let all = sched_getaffinity(THIS_THREAD)?;
        let numbers = (0..CpuSet::count()).filter(|&cpu| all.is_set(cpu) == Ok(true)).collect();
        Ok(Self { all, numbers })
    }

    /// Keeps this thread on one of them, in turns.
    fn choose(&self, turn: usize) -> nix::Result<()> {
        let mut one = CpuSet::new();
        one.set(self.numbers[turn % self.numbers.len()])?;
        sched_setaffinity(THIS_THREAD, &one)
    }
}

impl Drop for Processors {
    fn drop(&mut self) {
        // It was so before; without it, the rest is measured on one processor.
        let _ = sched_setaffinity(THIS_THREAD, &self.all);
    }
}

const THIS_THREAD: Pid = Pid::from_raw(0);

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn lowest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

fn highest(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

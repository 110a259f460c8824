//! Timing several sides of a comparison in turns.
//!
//! A machine drifts: clock speed, neighbours, memory layout. Sides that are timed one after the
//! other meet different machines. So every round times every side, each round in another order, and
//! what is compared are medians: of the sides, or of the ratios within rounds.

use std::time::{Duration, Instant};

/// Rounds that count; an odd number, so that the median is a measurement.
const ROUNDS: usize = 15;

/// One side: does its work once and says how long the timed part took.
pub type Side<'a> = &'a mut dyn FnMut() -> Duration;

/// What the rounds of `N` sides took.
pub struct Rounds<const N: usize> {
    seconds: [Vec<f64>; N],
}

impl<const N: usize> Rounds<N> {
    /// Runs all sides once to warm up and then in turns.
    pub fn run(sides: [Side<'_>; N]) -> Self {
        Self::run_many(ROUNDS, sides)
    }

    /// The same for so many rounds, an odd number. Where rounds are shorter than a slice of the
    /// scheduler and many, the median is one that no other program has cut in two.
    pub fn run_many(rounds: usize, mut sides: [Side<'_>; N]) -> Self {
        for side in &mut sides {
            side();
        }
        let mut seconds = [(); N].map(|()| Vec::with_capacity(rounds));
        for round in 0..rounds {
            for turn in 0..N {
                let at = side_at(round, turn, N);
                seconds[at].push(sides[at]().as_secs_f64());
            }
        }
        Self { seconds }
    }

    /// Median time of a side in nanoseconds for each of its `operations`.
    pub fn nanoseconds(&self, side: usize, operations: u32) -> f64 {
        median(&self.seconds[side]) * 1e9 / f64::from(operations)
    }

    /// How many times longer `slow` takes than `fast` in the same round, for each round.
    fn in_rounds(&self, slow: usize, fast: usize) -> impl Iterator<Item = f64> {
        self.seconds[slow].iter().zip(&self.seconds[fast]).map(|(slow, fast)| slow / fast)
    }

    /// The median of the ratios within single rounds: a machine that changes its speed between two
    /// rounds does not change it.
    pub fn ratio_in_rounds(&self, slow: usize, fast: usize) -> f64 {
        median(&self.in_rounds(slow, fast).collect::<Vec<_>>())
    }

    /// Median time of `slow` over that of `fast`, with the extremes over single rounds.
    pub fn ratio(&self, slow: usize, fast: usize) -> Ratio {
        let (min, max) = self
            .in_rounds(slow, fast)
            .fold((f64::INFINITY, 0.0_f64), |(min, max), ratio| (min.min(ratio), max.max(ratio)));
        Ratio { median: median(&self.seconds[slow]) / median(&self.seconds[fast]), min, max }
    }
}

/// Which of `sides` has the given turn of a round: rotated by one each round, and the other way round
/// after each full rotation, so that none follows another more often than a third does. Two sides
/// simply alternate.
const fn side_at(round: usize, turn: usize, sides: usize) -> usize {
    if (round / sides).is_multiple_of(2) {
        (round + turn) % sides
    } else {
        (round + sides - turn) % sides
    }
}

/// How many times longer one side takes than another.
#[derive(Debug, Clone, Copy)]
pub struct Ratio {
    /// Ratio of the medians, or median of ratios.
    pub median: f64,
    /// Lowest ratio of a single round, or of whatever the median is taken over.
    pub min: f64,
    /// Highest.
    pub max: f64,
}

impl Ratio {
    /// The ratio if the quicker side did so many times the work of the other.
    pub fn times(self, factor: f64) -> Self {
        Self { median: self.median * factor, min: self.min * factor, max: self.max * factor }
    }
}

/// Times `work`.
pub fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios_of_known_times() {
        let mut calls = 0;
        let mut slow = || {
            calls += 1;
            // The warm-up and one outlier must not count.
            Duration::from_micros(if calls <= 2 { 900 } else { 30 })
        };
        let mut fast = || Duration::from_micros(10);
        let rounds = Rounds::run([&mut slow, &mut fast]);
        assert_eq!(calls, ROUNDS + 1);
        assert!((rounds.nanoseconds(0, 10) - 3000.0).abs() < 1e-6);
        let ratio = rounds.ratio(0, 1);
        assert!((ratio.median - 3.0).abs() < 1e-9);
        assert!((ratio.min - 3.0).abs() < 1e-9);
        assert!((ratio.max - 90.0).abs() < 1e-9);
        assert!((rounds.ratio_in_rounds(0, 1) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn three_sides_are_timed_in_all_orders() {
        let order = |round| [0, 1, 2].map(|turn| side_at(round, turn, 3));
        let mut orders: Vec<_> = (0..6).map(order).collect();
        orders.sort_unstable();
        assert_eq!(orders, [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]);
        let two = |round| [0, 1].map(|turn| side_at(round, turn, 2));
        assert!((0..8).all(|round| two(round)[0] == round % 2 && two(round)[1] == (round + 1) % 2));
    }

    #[test]
    fn a_machine_that_gets_slower_does_not_change_ratios_in_rounds() {
        let clock = std::cell::Cell::new(0);
        let time = |micros: u64| {
            clock.set(clock.get() + 1);
            Duration::from_micros(if clock.get() > 12 { micros * 10 } else { micros })
        };
        let rounds = Rounds::run([&mut || time(30), &mut || time(10)]);
        assert!((rounds.ratio_in_rounds(0, 1) - 3.0).abs() < 1e-9);
    }
}

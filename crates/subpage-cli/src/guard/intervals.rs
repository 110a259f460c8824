//! Sets of numbers as runs.

/// A set of numbers, kept as runs that neither touch nor overlap, in ascending order.
#[derive(Debug, Clone, Default)]
pub(super) struct Intervals {
    runs: Vec<(u64, u64)>,
}

impl Intervals {
    /// The union of runs; both ends of a run are inclusive.
    pub(super) fn new(mut runs: Vec<(u64, u64)>) -> Self {
        runs.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(runs.len());
        for (first, last) in runs {
            match merged.last_mut() {
                Some(run) if first <= run.1.saturating_add(1) => run.1 = run.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self { runs: merged }
    }

    /// Whether one of the numbers is in the set.
    pub(super) fn touches(&self, first: u64, last: u64) -> bool {
        let next = self.runs.partition_point(|run| run.1 < first);
        self.runs.get(next).is_some_and(|run| run.0 <= last)
    }

    /// How many numbers the set has.
    pub(super) fn count(&self) -> u64 {
        self.runs.iter().map(|(first, last)| last - first + 1).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pair of short runs, against a set of numbers.
    #[test]
    fn runs_agree_with_a_set() {
        for (a, b, c, d) in (0..7)
            .flat_map(|a| (a..7).map(move |b| (a, b)))
            .flat_map(|(a, b)| (0..7).flat_map(move |c| (c..7).map(move |d| (a, b, c, d))))
        {
            let set = Intervals::new(vec![(a, b), (c, d)]);
            let holds = |number: u64| (a..=b).contains(&number) || (c..=d).contains(&number);
            assert_eq!(set.count(), (0..7).filter(|number| holds(*number)).count() as u64);
            for (first, last) in (0..8).flat_map(|first| (first..8).map(move |last| (first, last)))
            {
                assert_eq!(set.touches(first, last), (first..=last).any(holds));
            }
        }
    }
}

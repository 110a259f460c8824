//! Sets of guest pages, as runs.

use subpage::address::{Gfn, GfnRange};

/// A set of pages: ascending runs, none of which touches the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageSet {
    runs: Vec<GfnRange>,
}

impl PageSet {
    /// No page.
    pub const fn new() -> Self {
        Self { runs: Vec::new() }
    }

    /// Whether there is no page.
    pub const fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The runs, ascending; between two there is at least one page that is not in the set.
    pub fn runs(&self) -> &[GfnRange] {
        &self.runs
    }

    /// How many pages.
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|run| run.pages()).sum()
    }

    /// Whether a page is in the set.
    pub fn contains(&self, gfn: Gfn) -> bool {
        let behind = self.runs.partition_point(|run| run.first() <= gfn);
        behind > 0 && self.runs[behind - 1].last() >= gfn
    }

    /// Takes a page out.
    pub fn remove(&mut self, gfn: Gfn) {
        let behind = self.runs.partition_point(|run| run.first() <= gfn);
        let Some(at) = behind.checked_sub(1).filter(|&at| self.runs[at].last() >= gfn) else {
            return;
        };
        let run = self.runs[at];
        let before = (run.first() < gfn).then(|| between(run.first(), gfn));
        let after = (gfn < run.last()).then(|| between(next(gfn), next(run.last())));
        self.runs.splice(at..=at, before.into_iter().chain(after));
    }

    /// The pages in either.
    pub fn union(&self, other: &Self) -> Self {
        self.runs.iter().chain(&other.runs).copied().collect()
    }

    /// The pages in both.
    pub fn intersection(&self, other: &Self) -> Self {
        let (mut mine, mut others) = (self.runs.iter().peekable(), other.runs.iter().peekable());
        let mut runs = Vec::new();
        while let (Some(a), Some(b)) = (mine.peek(), others.peek()) {
            runs.extend(a.intersection(**b));
            if a.last() < b.last() {
                mine.next()
            } else {
                others.next()
            };
        }
        Self { runs }
    }

    /// The pages in this set and not in the other.
    pub fn difference(&self, other: &Self) -> Self {
        let mut runs = Vec::new();
        let mut holes = other.runs.iter().peekable();
        for run in &self.runs {
            let mut from = run.first();
            while let Some(hole) = holes.peek() {
                if hole.first() > run.last() {
                    break;
                }
                if hole.first() > from {
                    runs.push(between(from, hole.first()));
                }
                if hole.last() >= run.last() {
                    break;
                }
                from = from.max(next(hole.last()));
                holes.next();
            }
            let covered = holes
                .peek()
                .is_some_and(|hole| hole.first() <= run.last() && hole.last() >= run.last());
            if !covered {
                runs.push(between(from, next(run.last())));
            }
        }
        Self { runs }
    }
}

/// The pages from `first` up to, and without, `end`, which is more.
fn between(first: Gfn, end: Gfn) -> GfnRange {
    GfnRange::new(first, end.as_u64() - first.as_u64()).expect("a run within the guest's memory")
}

/// The page behind one of the guest's memory, which ends far below the last page there can be.
fn next(gfn: Gfn) -> Gfn {
    gfn.checked_add(1).expect("memory ends below the address space")
}

impl FromIterator<GfnRange> for PageSet {
    fn from_iter<I: IntoIterator<Item = GfnRange>>(ranges: I) -> Self {
        let mut sorted: Vec<GfnRange> = ranges.into_iter().collect();
        sorted.sort_unstable_by_key(|run| run.first());
        let mut runs: Vec<GfnRange> = Vec::new();
        for range in sorted {
            match runs.last_mut() {
                Some(last) if range.first().as_u64() <= last.last().as_u64() + 1 => {
                    let end = last.last().max(range.last());
                    *last = between(last.first(), next(end));
                }
                _ => runs.push(range),
            }
        }
        Self { runs }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SPACE: u64 = 40;

    fn set(bits: u64) -> PageSet {
        (0..SPACE)
            .filter(|page| bits >> page & 1 != 0)
            .map(|page| GfnRange::one(Gfn::new(page)))
            .collect()
    }

    fn bits(set: &PageSet) -> u64 {
        let runs = set.runs();
        assert!(runs.windows(2).all(|two| two[0].last().as_u64() + 1 < two[1].first().as_u64()));
        (0..SPACE)
            .filter(|&page| set.contains(Gfn::new(page)))
            .fold(0, |bits, page| bits | 1 << page)
    }

    proptest! {
        /// Taking a page out takes out that page.
        #[test]
        fn a_page_is_taken_out(a in 0..1_u64 << SPACE, page in 0..SPACE) {
            let mut x = set(a);
            x.remove(Gfn::new(page));
            prop_assert_eq!(bits(&x), a & !(1 << page));
        }

        /// A set of pages does what a word of bits does.
        #[test]
        fn sets_are_sets(a in 0..1_u64 << SPACE, b in 0..1_u64 << SPACE) {
            let (x, y) = (set(a), set(b));
            prop_assert_eq!(bits(&x), a);
            prop_assert_eq!(x.pages(), u64::from(a.count_ones()));
            prop_assert_eq!(bits(&x.union(&y)), a | b);
            prop_assert_eq!(bits(&x.intersection(&y)), a & b);
            prop_assert_eq!(bits(&x.difference(&y)), a & !b);
        }
    }
}

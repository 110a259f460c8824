//! Sets of guest pages, as runs.

use std::collections::BTreeMap;

use subpage::address::{Gfn, GfnRange};

/// A set of pages: ascending runs, none of which touches the next.
///
/// Taking pages in or out costs the runs that are touched, and a logarithm of all others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageSet {
    /// First page to last page of each run.
    runs: BTreeMap<Gfn, Gfn>,
    pages: u64,
}

impl PageSet {
    /// No page.
    pub const fn new() -> Self {
        Self { runs: BTreeMap::new(), pages: 0 }
    }

    /// Whether there is no page.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The runs, ascending; between two there is at least one page that is not in the set.
    pub fn runs(&self) -> impl Iterator<Item = GfnRange> {
        self.runs.iter().map(|(first, last)| run(*first, *last))
    }

    /// How many pages.
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Whether a page is in the set.
    pub fn contains(&self, gfn: Gfn) -> bool {
        self.runs.range(..=gfn).next_back().is_some_and(|(_, last)| *last >= gfn)
    }

    /// The runs of the pages of `range` that are in the set, ascending.
    pub fn runs_in(&self, range: GfnRange) -> impl Iterator<Item = GfnRange> {
        let before = self.runs.range(..range.first()).next_back();
        let from = self.runs.range(range.first()..=range.last());
        let all = before.into_iter().chain(from);
        all.filter_map(move |(first, last)| run(*first, *last).intersection(range))
    }

    /// The runs of the pages of `range` that are not in the set, ascending.
    pub fn gaps_in(&self, range: GfnRange) -> impl Iterator<Item = GfnRange> {
        let mut inside = self.runs_in(range);
        let mut rest = Some(range);
        std::iter::from_fn(move || {
            loop {
                let now = rest?;
                let Some(next) = inside.next() else { return rest.take() };
                rest = (next.last() < now.last()).then(|| run(after(next.last()), now.last()));
                if now.first() < next.first() {
                    return Some(run(now.first(), before(next.first())));
                }
            }
        })
    }

    /// Takes pages in.
    pub fn insert(&mut self, pages: GfnRange) {
        let (mut first, mut last) = (pages.first(), pages.last());
        // What touches the pages becomes one run with them.
        let reach = last.checked_add(1).unwrap_or(last);
        while let Some((&from, &to)) = self.runs.range(..=reach).next_back() {
            if to.checked_add(1).is_some_and(|behind| behind < first) {
                break;
            }
            self.runs.remove(&from);
            self.pages -= run(from, to).pages();
            (first, last) = (first.min(from), last.max(to));
        }
        self.runs.insert(first, last);
        self.pages += run(first, last).pages();
    }

    /// Takes pages out.
    pub fn remove(&mut self, pages: GfnRange) {
        while let Some((&from, &to)) = self.runs.range(..=pages.last()).next_back() {
            if to < pages.first() {
                break;
            }
            self.runs.remove(&from);
            self.pages -= run(from, to).pages();
            if to > pages.last() {
                self.add_apart(run(after(pages.last()), to));
            }
            if from < pages.first() {
                self.add_apart(run(from, before(pages.first())));
                break;
            }
        }
    }

    /// Takes a run in that touches no other.
    fn add_apart(&mut self, pages: GfnRange) {
        self.runs.insert(pages.first(), pages.last());
        self.pages += pages.pages();
    }

    /// The pages in both; costs the runs of `self`, and what they have in common.
    pub fn intersection(&self, other: &Self) -> Self {
        self.runs().flat_map(|run| other.runs_in(run)).collect()
    }

    /// The pages in this set and not in the other; costs the runs of `self`, and what they have in
    /// common.
    pub fn difference(&self, other: &Self) -> Self {
        self.runs().flat_map(|run| other.gaps_in(run)).collect()
    }
}

/// The pages from `first` to `last`.
fn run(first: Gfn, last: Gfn) -> GfnRange {
    GfnRange::new(first, last.as_u64() - first.as_u64() + 1).expect("a run of pages")
}

/// The page behind one that is not the last there can be.
fn after(gfn: Gfn) -> Gfn {
    gfn.checked_add(1).expect("a page lies behind")
}

/// The page before one that is not the first there can be.
fn before(gfn: Gfn) -> Gfn {
    Gfn::new(gfn.as_u64() - 1)
}

impl FromIterator<GfnRange> for PageSet {
    fn from_iter<I: IntoIterator<Item = GfnRange>>(ranges: I) -> Self {
        let mut set = Self::new();
        set.extend(ranges);
        set
    }
}

impl Extend<GfnRange> for PageSet {
    fn extend<I: IntoIterator<Item = GfnRange>>(&mut self, ranges: I) {
        for range in ranges {
            self.insert(range);
        }
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
        let runs: Vec<_> = set.runs().collect();
        assert!(runs.windows(2).all(|two| two[0].last().as_u64() + 1 < two[1].first().as_u64()));
        assert_eq!(runs.iter().map(|run| run.pages()).sum::<u64>(), set.pages());
        (0..SPACE)
            .filter(|&page| set.contains(Gfn::new(page)))
            .fold(0, |bits, page| bits | 1 << page)
    }

    proptest! {
        /// A set of pages does what a word of bits does.
        #[test]
        fn sets_are_sets(
            a in 0..1_u64 << SPACE,
            b in 0..1_u64 << SPACE,
            first in 0..SPACE,
            pages in 1..SPACE,
        ) {
            let (x, y) = (set(a), set(b));
            prop_assert_eq!(bits(&x), a);
            prop_assert_eq!(bits(&x.intersection(&y)), a & b);
            prop_assert_eq!(bits(&x.difference(&y)), a & !b);
            let range = GfnRange::new(Gfn::new(first), pages.min(SPACE - first)).expect("a range");
            let of_range = ((1 << range.pages()) - 1) << first;
            prop_assert_eq!(bits(&x.runs_in(range).collect()), a & of_range);
            prop_assert_eq!(bits(&x.gaps_in(range).collect()), of_range & !a);
            let (mut more, mut less) = (x.clone(), x);
            more.insert(range);
            less.remove(range);
            prop_assert_eq!(bits(&more), a | of_range);
            prop_assert_eq!(bits(&less), a & !of_range);
        }
    }
}

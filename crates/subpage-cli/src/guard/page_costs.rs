//! What each rule costs where a page is the smallest thing that can be protected.

use std::collections::HashMap;

use subpage::address::{ByteRange, Gfn, PAGE_BYTES};
use subpage_trap::Address;

use super::touch_index::TouchIndex;
use crate::summary::HotPage;

/// Of one rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PageCost {
    /// Writes that touched a page of it.
    pub(super) exits: u64,
    /// Of these, those that touched a page of no other rule.
    pub(super) alone: u64,
    /// Its page with the most writes.
    pub(super) hottest: Option<HotPage>,
}

/// Counts writes to guarded pages; rules are looked for at the end.
#[derive(Debug)]
pub(super) struct PageCosts {
    index: TouchIndex,
    costs: Vec<PageCost>,
    /// Writes to one page each.
    writes: HashMap<Gfn, u64>,
    /// Writes that go on in another page, by page.
    crossing: HashMap<Gfn, u64>,
    /// Writes to one page each of which the rules have been charged.
    settled: HashMap<Gfn, u64>,
    /// The page of the last write, with its writes since the one before. Mostly the next one is the same.
    last: (Gfn, u64),
    /// Rules of one write.
    met: Vec<usize>,
}

impl PageCosts {
    /// Of no write to rules on these bytes.
    pub(super) fn new(ranges: &[ByteRange]) -> Self {
        Self {
            index: TouchIndex::new(ranges, PAGE_BYTES),
            costs: vec![PageCost::default(); ranges.len()],
            writes: HashMap::new(),
            crossing: HashMap::new(),
            settled: HashMap::new(),
            last: (Gfn::new(0), 0),
            met: Vec::new(),
        }
    }

    /// Counts a write of which a page is guarded.
    #[inline]
    pub(super) fn count(&mut self, bytes: ByteRange) {
        let (first, last) = (bytes.first().gfn(), bytes.last().gfn());
        if first != last {
            self.charge(bytes, 1);
            for page in [first, last] {
                *self.crossing.entry(page).or_default() += 1;
            }
        } else if self.last.0 == first {
            self.last.1 += 1;
        } else {
            self.keep();
            self.last = (first, 1);
        }
    }

    fn keep(&mut self) {
        let (page, writes) = self.last;
        if writes > 0 {
            *self.writes.entry(page).or_default() += writes;
        }
    }

    /// Counts so many writes for every rule in the pages of these bytes.
    fn charge(&mut self, bytes: ByteRange, writes: u64) {
        let Self { index, met, costs, .. } = self;
        met.clear();
        index.for_each(bytes, |rule| met.push(rule));
        let alone = met.len() == 1;
        for &rule in met.iter() {
            costs[rule].exits += writes;
            costs[rule].alone += if alone { writes } else { 0 };
        }
    }

    /// Charges the rules so far for what was counted, and goes on with those on these ranges, each with its
    /// position.
    pub(super) fn go_on_with(&mut self, ranges: impl Iterator<Item = (usize, ByteRange)>) {
        self.settle();
        self.index = TouchIndex::of(ranges, PAGE_BYTES);
    }

    fn settle(&mut self) {
        self.keep();
        self.last.1 = 0;
        for (page, writes) in std::mem::take(&mut self.writes) {
            self.charge(first_byte(page), writes);
            *self.settled.entry(page).or_default() += writes;
        }
    }

    /// What each rule cost, in the order of the ranges.
    pub(super) fn finish(mut self) -> Vec<PageCost> {
        self.settle();
        let mut pages = std::mem::take(&mut self.crossing);
        for (page, writes) in std::mem::take(&mut self.settled) {
            *pages.entry(page).or_default() += writes;
        }
        for (page, writes) in pages {
            let address = Address(page.gpa().as_u64());
            let Self { index, costs, .. } = &mut self;
            index.for_each(first_byte(page), |rule| {
                let hottest = &mut costs[rule].hottest;
                // Of several the first.
                let hotter = hottest.is_none_or(|other| {
                    (writes, std::cmp::Reverse(address))
                        > (other.writes, std::cmp::Reverse(other.page))
                });
                if hotter {
                    *hottest = Some(HotPage { page: address, writes });
                }
            });
        }
        self.costs
    }
}

/// Stands for its page: the index widens what it is asked.
fn first_byte(page: Gfn) -> ByteRange {
    ByteRange::new(page.gpa(), 1).expect("a byte of memory")
}

#[cfg(test)]
mod tests {
    use subpage::address::Gpa;

    use super::*;

    fn bytes(first: u64, length: u64) -> ByteRange {
        ByteRange::new(Gpa::new(first), length).expect("a range")
    }

    fn hot(page: u64, writes: u64) -> HotPage {
        HotPage { page: Address(page), writes }
    }

    #[test]
    fn a_page_costs_each_of_its_rules_and_only_one_of_them_alone() {
        let mut costs = PageCosts::new(&[bytes(0x1000, 4), bytes(0x1f80, 0x100), bytes(0x5000, 4)]);
        for (at, times) in [(0x1800, 2), (0x2800, 5), (0x1008, 1)] {
            for _ in 0..times {
                costs.count(bytes(at, 8));
            }
        }
        // Over two pages with the same rules, and from one with a rule into one without.
        costs.count(bytes(0x1ffc, 8));
        costs.count(bytes(0x2ffc, 8));
        let [one, two, three] = costs.finish().try_into().expect("three rules");
        assert_eq!(one, PageCost { exits: 4, alone: 0, hottest: Some(hot(0x1000, 4)) });
        assert_eq!(two, PageCost { exits: 10, alone: 6, hottest: Some(hot(0x2000, 7)) });
        assert_eq!(three, PageCost::default());
    }

    #[test]
    fn a_rule_costs_nothing_before_it_holds() {
        let ranges = [bytes(0x1000, 4), bytes(0x1f80, 0x80)];
        let mut costs = PageCosts::new(&ranges);
        costs.go_on_with([(0, ranges[0])].into_iter());
        for _ in 0..3 {
            costs.count(bytes(0x1800, 8));
        }
        costs.go_on_with(ranges.into_iter().enumerate());
        for _ in 0..2 {
            costs.count(bytes(0x1800, 8));
        }
        let [one, two] = costs.finish().try_into().expect("two rules");
        assert_eq!(one, PageCost { exits: 5, alone: 3, hottest: Some(hot(0x1000, 5)) });
        // The page was guarded from the start.
        assert_eq!(two, PageCost { exits: 2, alone: 0, hottest: Some(hot(0x1000, 5)) });
    }
}

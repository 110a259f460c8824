//! All rules of a domain, found by the bytes they guard.
//!
//! How many rules hold a sub-page is not stored: it is the number of rules whose range touches it,
//! asked when a rule goes. The counters that HVMI keeps for the same purpose can disagree with the
//! hooks they count (`docs/spp.md` 3, hazards (a) and (b)); a question cannot.

use alloc::vec::Vec;

use arrayvec::ArrayVec;

use super::{Action, Rule, RuleId};
use crate::access::AccessMap;
use crate::address::{ByteRange, Gfn, GfnRange, Gpa};
use crate::frames::OutOfFrames;

/// A rule that is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActiveRule {
    /// Its number.
    pub id: RuleId,
    /// What was added; `locked` may have been set since.
    pub rule: Rule,
    /// For [`Action::AllowOnce`]: the one write has been allowed.
    pub spent: bool,
}

impl ActiveRule {
    /// What the next write that touches the rule meets.
    pub const fn effect(&self) -> Action {
        match self.rule.action {
            Action::AllowOnce if self.spent => Action::Deny,
            action => action,
        }
    }
}

/// The rules, ascending by first byte and then by number.
#[derive(Debug, Default)]
pub struct RuleSet {
    rules: Vec<ActiveRule>,
    /// The list read as a balanced tree: the middle of a run is its root, what is left and right of
    /// the middle are its subtrees. For each root, the highest last byte in its run, so that a search
    /// passes over runs that end too early. Then a search meets a logarithm of rules for each that it
    /// finds, and one more, also where one long rule spans many short ones.
    reach: Vec<Gpa>,
}

/// The rules that guard a byte of a range, in no particular order.
struct Touching<'a> {
    set: &'a RuleSet,
    range: ByteRange,
    /// Runs that are still to be searched: at most one for each level of the tree, and one more.
    runs: ArrayVec<(usize, usize), 64>,
}

impl<'a> Iterator for Touching<'a> {
    type Item = &'a ActiveRule;

    fn next(&mut self) -> Option<&'a ActiveRule> {
        while let Some((start, end)) = self.runs.pop() {
            let middle = start + (end - start) / 2;
            if start == end || self.set.reach[middle] < self.range.first() {
                continue;
            }
            self.runs.push((start, middle));
            let active = &self.set.rules[middle];
            if active.rule.range.first() <= self.range.last() {
                self.runs.push((middle + 1, end));
                if active.rule.range.last() >= self.range.first() {
                    return Some(active);
                }
            }
        }
        None
    }
}

impl RuleSet {
    /// A set of rules with the numbers from `first` on.
    pub(crate) fn of(rules: &[Rule], first: RuleId) -> Result<Self, OutOfFrames> {
        let mut set = Self::default();
        set.reserve(rules.len())?;
        // The rules come first: no number beyond the last one is made, which need not exist.
        for (rule, number) in rules.iter().zip(first.0..) {
            set.rules.push(ActiveRule { id: RuleId(number), rule: *rule, spent: false });
        }
        set.reindex();
        Ok(set)
    }

    pub(crate) fn reserve(&mut self, count: usize) -> Result<(), OutOfFrames> {
        self.rules.try_reserve(count).map_err(|_| OutOfFrames)?;
        self.reach.try_reserve(count).map_err(|_| OutOfFrames)
    }

    /// Takes over the rules of another set, for which room was reserved.
    pub(crate) fn absorb(&mut self, other: &Self) {
        assert!(
            self.rules.capacity() - self.rules.len() >= other.rules.len(),
            "rules are added without room"
        );
        self.rules.extend_from_slice(&other.rules);
        self.reindex();
    }

    /// Appends a rule that sorts after all others; call [`has_twins`](Self::has_twins) before asking.
    pub(crate) fn push(&mut self, active: ActiveRule) -> Result<(), OutOfFrames> {
        self.reserve(1)?;
        self.reach.push(Gpa::default());
        self.rules.push(active);
        Ok(())
    }

    /// Whether two rules have the same number.
    pub(crate) fn has_twins(&mut self) -> bool {
        self.rules.sort_unstable_by_key(|active| active.id);
        let twins = self.rules.windows(2).any(|pair| pair[0].id == pair[1].id);
        self.reindex();
        twins
    }

    fn reindex(&mut self) {
        self.rules.sort_unstable_by_key(|active| (active.rule.range.first(), active.id));
        self.reach.clear();
        self.reach.resize(self.rules.len(), Gpa::default());
        self.measure(0, self.rules.len());
    }

    /// Computes the reach of every run within `start..end`; returns that of the whole.
    fn measure(&mut self, start: usize, end: usize) -> Gpa {
        if start == end {
            return Gpa::default();
        }
        let middle = start + (end - start) / 2;
        let below = self.measure(start, middle).max(self.measure(middle + 1, end));
        self.reach[middle] = below.max(self.rules[middle].rule.range.last());
        self.reach[middle]
    }

    pub(crate) fn remove(&mut self, id: RuleId) {
        self.rules.retain(|active| active.id != id);
        self.reindex();
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// All rules, ascending by first byte.
    pub fn iter(&self) -> impl Iterator<Item = &ActiveRule> {
        self.rules.iter()
    }

    /// The rule with a number.
    pub fn get(&self, id: RuleId) -> Option<&ActiveRule> {
        self.rules.iter().find(|active| active.id == id)
    }

    pub(crate) fn get_mut(&mut self, id: RuleId) -> Option<&mut ActiveRule> {
        self.rules.iter_mut().find(|active| active.id == id)
    }

    /// The rules that guard at least one byte of `range`, in no particular order.
    pub fn touching(&self, range: ByteRange) -> impl Iterator<Item = &ActiveRule> {
        let mut runs = ArrayVec::new();
        runs.push((0, self.rules.len()));
        Touching { set: self, range, runs }
    }

    /// Calls `each` with the rules of [`touching`](Self::touching): without the list of runs that an
    /// iterator carries with it, which costs a decision more than its search.
    #[inline]
    fn visit<'a>(&'a self, range: ByteRange, each: &mut impl FnMut(&'a ActiveRule)) {
        match self.rules.as_slice() {
            [] => {}
            [active] => {
                if active.rule.range.intersection(range).is_some() {
                    each(active);
                }
            }
            _ => self.visit_in(range, 0, self.rules.len(), each),
        }
    }

    /// Visits the run of rules `start..end`, which is not empty.
    fn visit_in<'a>(
        &'a self,
        range: ByteRange,
        start: usize,
        end: usize,
        each: &mut impl FnMut(&'a ActiveRule),
    ) {
        let middle = start + (end - start) / 2;
        if self.reach[middle] < range.first() {
            return;
        }
        if start < middle {
            self.visit_in(range, start, middle, each);
        }
        let active = &self.rules[middle];
        if active.rule.range.first() <= range.last() {
            if active.rule.range.last() >= range.first() {
                each(active);
            }
            if middle + 1 < end {
                self.visit_in(range, middle + 1, end, each);
            }
        }
    }

    /// What the rules leave writable of a page: the AND over all of them.
    pub fn permitted(&self, gfn: Gfn) -> AccessMap {
        self.permitted_but(gfn, None)
    }

    /// The same without the rule `but`.
    pub(crate) fn permitted_but(&self, gfn: Gfn, but: Option<RuleId>) -> AccessMap {
        let mut map = AccessMap::ALL;
        self.visit(ByteRange::of_pages(GfnRange::one(gfn)), &mut |active| {
            if Some(active.id) != but
                && let Some(bytes) = active.rule.range.in_page(gfn)
            {
                map = map & !AccessMap::touched_by(bytes);
            }
        });
        map
    }

    /// How many rules hold the sub-page that contains `gpa`.
    pub fn owners(&self, gpa: Gpa) -> usize {
        let first = Gpa::new(gpa.as_u64() & !(crate::access::SUB_PAGE_BYTES - 1));
        let sub_page = ByteRange::new(first, crate::access::SUB_PAGE_BYTES).expect("128 bytes");
        self.touching(sub_page).count()
    }

    /// The sub-pages of a page that a locked rule holds, with one such rule.
    pub(crate) fn locked(&self, gfn: Gfn) -> (AccessMap, Option<RuleId>) {
        let page = ByteRange::of_pages(GfnRange::one(gfn));
        self.touching(page)
            .filter(|active| active.rule.locked)
            .filter_map(|active| Some((active.rule.range.in_page(gfn)?, active.id)))
            .fold((AccessMap::NONE, None), |(map, _), (bytes, id)| {
                (map | AccessMap::touched_by(bytes), Some(id))
            })
    }

    /// Spends every "allow once" rule that guards one of the bytes.
    pub(crate) fn spend(&mut self, bytes: ByteRange) {
        self.spend_in(bytes, 0, self.rules.len());
    }

    fn spend_in(&mut self, bytes: ByteRange, start: usize, end: usize) {
        let middle = start + (end - start) / 2;
        if start == end || self.reach[middle] < bytes.first() {
            return;
        }
        self.spend_in(bytes, start, middle);
        let active = &mut self.rules[middle];
        if active.rule.range.first() <= bytes.last() {
            let touched = active.rule.range.last() >= bytes.first();
            active.spent |= touched && active.rule.action == Action::AllowOnce;
            self.spend_in(bytes, middle + 1, end);
        }
    }

    /// The strongest rule that guards one of the bytes; among equals the oldest.
    pub(crate) fn strongest(&self, bytes: ByteRange) -> Option<&ActiveRule> {
        let mut strongest: Option<&ActiveRule> = None;
        self.visit(bytes, &mut |active| {
            let rank = |active: &ActiveRule| (active.effect(), core::cmp::Reverse(active.id));
            if strongest.is_none_or(|best| rank(best) < rank(active)) {
                strongest = Some(active);
            }
        });
        strongest
    }
}

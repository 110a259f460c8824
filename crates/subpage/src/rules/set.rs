//! All rules of a domain, found by the bytes they guard.
//!
//! How many rules hold a sub-page is not stored: it is the number of rules whose range touches it,
//! asked when a rule goes. The counters that HVMI keeps for the same purpose can disagree with the
//! hooks they count (`spp-facts.md` 4.2, hazards a, b, d); a question cannot.

use alloc::vec::Vec;

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
    /// Highest last byte among rules 0..=i, so that a search can stop early.
    reach: Vec<Gpa>,
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

    /// Appends a rule that sorts after all others.
    pub(crate) fn push(&mut self, active: ActiveRule) -> Result<(), OutOfFrames> {
        self.reserve(1)?;
        let highest = self.reach.last().copied().unwrap_or_default();
        self.reach.push(highest.max(active.rule.range.last()));
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
        let mut highest = Gpa::default();
        for active in &self.rules {
            highest = highest.max(active.rule.range.last());
            self.reach.push(highest);
        }
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

    /// The rules that guard at least one byte of `range`.
    pub fn touching(&self, range: ByteRange) -> impl Iterator<Item = &ActiveRule> {
        let end = self.rules.partition_point(|active| active.rule.range.first() <= range.last());
        let reached = self.reach[..end].iter().rev().take_while(move |r| **r >= range.first());
        self.rules[..end]
            .iter()
            .rev()
            .zip(reached)
            .map(|(active, _)| active)
            .filter(move |active| active.rule.range.last() >= range.first())
    }

    /// What the rules leave writable of a page: the AND over all of them.
    pub fn permitted(&self, gfn: Gfn) -> AccessMap {
        self.permitted_but(gfn, None)
    }

    /// The same without the rule `but`.
    pub(crate) fn permitted_but(&self, gfn: Gfn, but: Option<RuleId>) -> AccessMap {
        let page = ByteRange::of_pages(GfnRange::one(gfn));
        self.touching(page)
            .filter(|active| Some(active.id) != but)
            .filter_map(|active| active.rule.range.in_page(gfn))
            .fold(AccessMap::ALL, |map, bytes| map & !AccessMap::touched_by(bytes))
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
        for active in &mut self.rules {
            if active.rule.range.intersection(bytes).is_some() {
                active.spent |= active.rule.action == Action::AllowOnce;
            }
        }
    }

    /// The strongest rule that guards one of the bytes; among equals the oldest.
    pub(crate) fn strongest(&self, bytes: ByteRange) -> Option<&ActiveRule> {
        self.touching(bytes).max_by_key(|active| (active.effect(), core::cmp::Reverse(active.id)))
    }
}

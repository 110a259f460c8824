//! Adding, removing and locking rules.

use alloc::vec::Vec;

use super::change::Repermit;
use super::names::RulesByName;
use super::{Domain, DomainError, Observer};
use crate::address::GfnRange;
use crate::frames::{OutOfFrames, TableFrames};
use crate::invalidate::Invalidation;
use crate::rules::{ActiveRule, Owner, Rule, RuleId, RuleSet};
use crate::sppt::Sppt;
use crate::track::Arming;

impl<F: TableFrames, O: Observer> Domain<F, O> {
    /// Adds one rule; see [`add_rules`](Self::add_rules).
    pub fn add_rule(&mut self, rule: Rule) -> Result<(RuleId, Invalidation), DomainError> {
        self.add_rules(&[rule])
    }

    /// Adds rules, all or none. They get consecutive numbers; the first is returned (with no rule,
    /// the number that the next one will get).
    ///
    /// A rule may guard addresses that no slot holds: rules belong to guest-physical addresses, so
    /// memory that is added later is guarded from its first moment. Fails if permissions are not
    /// enabled, if a byte lies beyond the processor's width, or if memory is short.
    pub fn add_rules(&mut self, rules: &[Rule]) -> Result<(RuleId, Invalidation), DomainError> {
        self.add(rules.iter().map(|rule| (*rule, true)))
    }

    /// The same for rules of which some, those with `false`, are not in force until
    /// [`arm_rules`](Self::arm_rules) names them. Until then they neither deny nor count; they have their
    /// numbers, and can be removed and locked.
    pub fn add_some_armed(
        &mut self,
        rules: &[(Rule, bool)],
    ) -> Result<(RuleId, Invalidation), DomainError> {
        self.add(rules.iter().copied())
    }

    fn add(
        &mut self,
        rules: impl ExactSizeIterator<Item = (Rule, bool)> + Clone,
    ) -> Result<(RuleId, Invalidation), DomainError> {
        let sppt = self.enabled()?;
        let first = RuleId(self.next_rule);
        let after = self.next_rule.checked_add(rules.len() as u64).ok_or(OutOfFrames)?;
        let count = rules.len();
        for (rule, _) in rules.clone() {
            self.check_width(rule.range.gfns())?;
        }
        let added = RuleSet::of(rules, first)?;
        self.rules.reserve(count)?;
        let token = self.restrict_by(sppt, &added)?;
        self.rules.absorb(&added);
        self.next_rule = after;
        Ok((first, token))
    }

    /// Puts rules in force, all or none; those that are so already stay so.
    ///
    /// Fails if one of them does not exist or memory is short. They are in force when the returned token
    /// is completed.
    pub fn arm_rules(&mut self, rules: &[RuleId]) -> Result<Invalidation, DomainError> {
        let sppt = self.enabled()?;
        let mut ids = Vec::new();
        ids.try_reserve(rules.len()).map_err(|_| OutOfFrames)?;
        ids.extend_from_slice(rules);
        ids.sort_unstable();
        ids.dedup();
        let mut armed = RuleSet::default();
        for id in &ids {
            let active = self.rules.get(*id).ok_or(DomainError::NoSuchRule(*id))?;
            if !active.armed {
                armed.push(ActiveRule { armed: true, ..*active })?;
            }
        }
        let token = self.restrict_by(sppt, &armed)?;
        for id in ids {
            if let Some(active) = self.rules.get_mut(id) {
                active.armed = true;
            }
        }
        Ok(token)
    }

    /// Restricts what rules guard that are not yet in force.
    fn restrict_by(&mut self, sppt: Sppt, added: &RuleSet) -> Result<Invalidation, DomainError> {
        let ranges = page_ranges(added.iter().map(|active| active.rule.range.gfns()))?;
        let ranges = self.names.originals(&ranges)?;
        let by_name = RulesByName { rules: added, names: &self.names };
        let masked = self.masked.replaced(&ranges, |gfn| {
            !self.base_map(gfn) & !(self.rules_by_name().permitted(gfn) & by_name.permitted(gfn))
        })?;
        for range in ranges.iter() {
            self.tracking.reserve(*range)?;
        }
        let mut change = Repermit {
            tracking: &mut self.tracking,
            arming: Arming::Keep,
            permit: |gfn, old| old & by_name.permitted(gfn),
            keeps: |_| false,
        };
        let tables = (sppt, &self.slots);
        let token = self.names.change(&mut self.tables, tables, &ranges, &mut change)?;
        self.masked = masked;
        Ok(token)
    }

    /// Removes a rule. A sub-page that no other rule holds gets back what its access map permits.
    ///
    /// Fails if there is no such rule, if it is locked, if `by` neither owns it nor is the host, or
    /// if memory is short.
    pub fn remove_rule(&mut self, id: RuleId, by: Owner) -> Result<Invalidation, DomainError> {
        let sppt = self.enabled()?;
        let rule = self.owned(id, by)?;
        if rule.locked {
            return Err(DomainError::Locked(id));
        }
        let ranges = [rule.range.gfns()];
        let ranges = self.names.originals(&ranges)?;
        let rules = RulesByName { rules: &self.rules, names: &self.names };
        let old_masked = &self.masked;
        let masked = old_masked
            .replaced(&ranges, |gfn| !self.base_map(gfn) & !rules.permitted_but(gfn, Some(id)))?;
        for range in ranges.iter() {
            self.tracking.reserve(*range)?;
        }
        let mut change = Repermit {
            tracking: &mut self.tracking,
            arming: Arming::Keep,
            permit: |gfn, old| {
                let base = old | (!rules.permitted(gfn) & !old_masked.of(gfn));
                base & rules.permitted_but(gfn, Some(id))
            },
            keeps: |_| false,
        };
        let tables = (sppt, &self.slots);
        let token = self.names.change(&mut self.tables, tables, &ranges, &mut change)?;
        self.masked = masked;
        self.rules.remove(id);
        Ok(token)
    }

    /// Locks a rule for the life of the domain: nothing can loosen it, its owner and the host
    /// included. Fails if there is no such rule or `by` neither owns it nor is the host.
    pub fn lock_rule(&mut self, id: RuleId, by: Owner) -> Result<(), DomainError> {
        self.owned(id, by)?;
        if let Some(active) = self.rules.get_mut(id) {
            active.rule.locked = true;
        }
        Ok(())
    }

    fn owned(&self, id: RuleId, by: Owner) -> Result<Rule, DomainError> {
        let rule = self.rules.get(id).ok_or(DomainError::NoSuchRule(id))?.rule;
        if by != rule.owner && by != Owner::HOST {
            return Err(DomainError::NotOwner { rule: id, owner: rule.owner });
        }
        Ok(rule)
    }
}

/// The frames of all ranges as ascending, disjoint ranges.
pub(super) fn page_ranges(
    ranges: impl Iterator<Item = GfnRange>,
) -> Result<Vec<GfnRange>, OutOfFrames> {
    let mut all: Vec<GfnRange> = Vec::new();
    for range in ranges {
        all.try_reserve(1).map_err(|_| OutOfFrames)?;
        all.push(range);
    }
    all.sort_unstable_by_key(|range| range.first());
    all.dedup_by(|next, kept| {
        let touches = next.first().as_u64() <= kept.last().as_u64() + 1;
        if touches && next.last() > kept.last() {
            let pages = next.last().as_u64() - kept.first().as_u64() + 1;
            *kept = GfnRange::new(kept.first(), pages).expect("a union of ranges is a range");
        }
        touches
    });
    Ok(all)
}

//! Changing what is guarded while the guest runs. Nobody is stopped: pages are closed by `mprotect`.

use std::sync::PoisonError;
use std::thread;
use std::time::{Duration, Instant};

use subpage::access::AccessMap;
use subpage::address::{ByteRange, Gfn, GfnRange};
use subpage::domain::{Domain, DomainError};
use subpage::frames::HeapFrames;
use subpage::invalidate::Invalidation;
use subpage::rules::{Owner, Rule, RuleId};

use super::Machine;
use crate::guard::{ChangeError, Guard};
use crate::trap::{PageSet, pages_of};

/// How long a change waits for a store that is under way in pieces: its processor's thread is between two
/// calls of KVM.
const PATIENCE: Duration = Duration::from_secs(1);

impl Machine {
    fn change<T, E: Into<ChangeError>>(
        &self,
        closes: &PageSet,
        pages: &PageSet,
        change: impl FnOnce(&mut Domain<HeapFrames>) -> Result<(T, Invalidation), E>,
    ) -> Result<T, ChangeError> {
        // Two changes would take each other's begun one for over.
        let _alone = self.shared.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = self.shared.memory();
        let mut guard = self.shared.guard();
        let (closes, looked) = (guard.around(&*memory, closes), guard.around(&*memory, pages));
        let begun = guard.begin(&*memory, &closes)?;
        let began = Instant::now();
        // No store begins to be done in pieces meanwhile.
        while !guard.in_pieces().is_empty() && began.elapsed() < PATIENCE {
            drop(guard);
            thread::yield_now();
            guard = self.shared.guard();
        }
        Ok(guard.change(&*memory, begun, &looked, change)?.0)
    }

    /// Adds rules, all or none, about memory that is there; the number of the first, which the others
    /// follow. In force when it returns.
    pub fn add_rules(&self, rules: &[Rule]) -> Result<RuleId, ChangeError> {
        for rule in rules {
            Guard::check_memory(&*self.shared.memory(), rule.range)?;
        }
        let pages = pages_of(rules.iter().map(|rule| rule.range.gfns()));
        let first = self.change(&pages, &pages, |domain| domain.add_rules(rules))?;
        for rule in rules {
            self.shared.metrics.rule_added(rule.name.as_str());
        }
        Ok(first)
    }

    /// Removes a rule.
    pub fn remove_rule(&self, rule: RuleId, by: Owner) -> Result<(), ChangeError> {
        let range = self.shared.guard().domain().rules().get(rule).map(|active| active.rule.range);
        let pages = pages_of(range.map(ByteRange::gfns));
        self.change(&PageSet::new(), &pages, |domain| {
            domain.remove_rule(rule, by).map(|token| ((), token))
        })
    }

    /// Locks a rule: nothing can loosen it any more.
    pub fn lock_rule(&self, rule: RuleId, by: Owner) -> Result<(), ChangeError> {
        Ok(self.shared.guard().domain_mut().lock_rule(rule, by)?)
    }

    /// Sets the access maps of pages, all or none.
    pub fn set_access(&self, first: Gfn, maps: &[AccessMap]) -> Result<(), ChangeError> {
        let range = GfnRange::new(first, maps.len() as u64).map_err(DomainError::from)?;
        let restricted = range.iter().zip(maps).filter(|(_, map)| !map.is_unrestricted());
        let closes = restricted.map(|(gfn, _)| GfnRange::one(gfn)).collect();
        self.change(&closes, &pages_of([range]), |domain| {
            domain.set_access(first, maps).map(|token| ((), token))
        })
    }
}

//! Rules that come into force while the guest runs.
//!
//! They are in the engine from the start, with their numbers, and unarmed: they neither deny nor count,
//! and no page traps for them. Which of them waits for what is kept here. A rule that is armed stays so,
//! over resets too.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard, PoisonError};

use subpage::address::ByteRange;
use subpage::domain::DomainError;
use subpage::rules::{Action, Moment, Owner, Rule, RuleId, RuleName};

use super::change::Touched;
use super::{Vm, VmError, VmShared};
use crate::boot::FirstProgram;
use crate::ending::{Ending, Failure};
use crate::event::{ArmedBy, Arming};
use crate::guard::{ChangeError, Guard};
use crate::trap::pages_of;

/// Rules that wait.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    moments: BTreeMap<RuleId, Moment>,
    /// How many processors have come to a moment whose rules are not yet in force.
    due: u32,
}

impl Waiting {
    /// What a rule waits for.
    pub(super) fn of(&self, rule: RuleId) -> Option<Moment> {
        self.moments.get(&rule).copied()
    }

    /// What a snapshot holds of it.
    pub(super) fn saved(&self) -> Vec<(u64, String)> {
        self.moments.iter().map(|(rule, moment)| (rule.0, moment.word().to_owned())).collect()
    }

    /// Has these rules, which are not in force, wait for what a snapshot says of them. A moment that it does
    /// not say, or of a newer version, can be replaced by a command.
    pub(super) fn restore(&mut self, rules: &[RuleId], saved: &[(u64, String)]) {
        let saved: BTreeMap<_, _> = saved.iter().map(|(rule, word)| (*rule, word)).collect();
        let moment = |rule: &RuleId| Moment::from_word(saved.get(&rule.0)?);
        let waits = |rule: &RuleId| (*rule, moment(rule).unwrap_or(Moment::Command));
        self.moments = rules.iter().map(waits).collect();
    }

    /// The guest has come to a moment, which is to be told while its processor is still held.
    pub(super) fn come_to_moment(&mut self) {
        self.due += 1;
    }

    /// Whether rules are about to come into force.
    pub(super) const fn is_due(&self) -> bool {
        self.due > 0
    }

    /// A rule is gone.
    pub(super) fn forget(&mut self, rule: RuleId) {
        self.moments.remove(&rule);
    }
}

impl VmShared {
    /// Taken behind the guard, where both are needed.
    pub(crate) fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds rules, all or none, of which those that do not hold from the start wait; the number of the
    /// first.
    fn add_rules_at(&self, rules: &[(Rule, Moment)]) -> Result<RuleId, ChangeError> {
        for (rule, _) in rules {
            Guard::check_memory(&self.ram, rule.range)?;
        }
        let at_once = |moment| matches!(moment, Moment::Start | Moment::Entry);
        let some: Vec<(Rule, bool)> =
            rules.iter().map(|(rule, moment)| (*rule, at_once(*moment))).collect();
        let armed = some.iter().filter(|(_, armed)| *armed);
        let touched = Touched::closing(pages_of(armed.map(|(rule, _)| rule.range.gfns())));
        let (first, _) = self.change(|_| touched.clone(), |domain| domain.add_some_armed(&some))?;
        let numbered = rules.iter().zip(first.0..).map(|((_, moment), id)| (RuleId(id), *moment));
        self.waiting().moments.extend(numbered.filter(|(_, moment)| !at_once(*moment)));
        for (rule, _) in rules {
            self.metrics.rule_added(rule.name.as_str());
        }
        Ok(first)
    }

    fn put_in_force(&self, rules: &[RuleId]) -> Result<(), ChangeError> {
        let ranges: Vec<_> = {
            let guard = self.guard();
            let all = guard.domain().rules();
            rules.iter().filter_map(|id| Some(all.get(*id)?.rule.range.gfns())).collect()
        };
        let touched = Touched::closing(pages_of(ranges));
        let ((), _) = self.change(
            |_| touched.clone(),
            // One that was removed meanwhile needs no arming.
            |domain| {
                let is_there = |id: &&RuleId| domain.rules().get(**id).is_some();
                let rules: Vec<_> = rules.iter().filter(is_there).copied().collect();
                domain.arm_rules(&rules).map(|token| ((), token))
            },
        )?;
        Ok(())
    }

    /// Puts rules in force; those that were not before. Fails if one is not there.
    pub(crate) fn arm_named(
        &self,
        rules: &[RuleId],
        by: ArmedBy,
    ) -> Result<Vec<RuleId>, ChangeError> {
        let guard = self.guard();
        let missing = rules.iter().find(|id| guard.domain().rules().get(**id).is_none());
        if let Some(missing) = missing {
            return Err(ChangeError::Domain(DomainError::NoSuchRule(*missing)));
        }
        drop(guard);
        self.arm(rules, by)
    }

    /// Puts rules in force; those that were not before, and are there.
    pub(crate) fn arm(&self, rules: &[RuleId], by: ArmedBy) -> Result<Vec<RuleId>, ChangeError> {
        let mut rules: Vec<RuleId> = {
            let guard = self.guard();
            let waits =
                |id: &&RuleId| guard.domain().rules().get(**id).is_some_and(|active| !active.armed);
            rules.iter().filter(waits).copied().collect()
        };
        rules.sort_unstable();
        rules.dedup();
        if rules.is_empty() {
            return Ok(rules);
        }
        self.put_in_force(&rules)?;
        let when = self.events.when();
        let guard = self.guard();
        let mut waiting = self.waiting();
        let all = guard.domain().rules();
        let name = |id: &RuleId| Some((*id, all.get(*id)?.rule.name.to_string()));
        // Of two who arm the same rule at the same time, one has.
        rules.retain(|id| waiting.moments.remove(id).is_some());
        let named = rules.iter().filter_map(name).collect();
        if !rules.is_empty() {
            self.events.broadcast.publish_arming(&Arc::new(Arming { rules: named, by, when }));
        }
        Ok(rules)
    }

    /// Puts all rules in force that wait for a moment.
    pub(crate) fn arm_waiting(
        &self,
        moment: Moment,
        by: ArmedBy,
    ) -> Result<Vec<RuleId>, ChangeError> {
        let waiting: Vec<RuleId> = {
            let waiting = self.waiting();
            let these = waiting.moments.iter().filter(|(_, waits_for)| **waits_for == moment);
            these.map(|(id, _)| *id).collect()
        };
        self.arm(&waiting, by)
    }

    /// The guest has come to a moment, which [`Waiting::come_to_moment`] knows. Its processor is held by nobody.
    pub(crate) fn guest_arms(&self, moment: Moment) {
        self.arm_at(moment);
        self.waiting().due -= 1;
    }

    fn arm_at(&self, moment: Moment) {
        let mut by = ArmedBy::Write;
        if moment == Moment::Init {
            by = ArmedBy::Init;
            if let Some((rule, _)) = self.events.first_program() {
                // It was ours, and has done what it was for. One that stays costs exits.
                let _ = self.remove_rule(rule, Owner::HOST);
            }
        }
        if let Err(error) = self.arm_waiting(moment, by) {
            // A guest that goes on unguarded would be worse.
            let reason = format!("its rules cannot be put in force: {error}");
            self.end(Ending::Failed(Failure::new(0, reason)));
        }
    }
}

impl Vm {
    /// Adds rules, all or none, each from its moment on; the number of the first, which the others
    /// follow. [`Moment::Entry`] is the start: no guest is loaded whose kernel is entered later.
    pub fn add_rules_at(&self, rules: &[(Rule, Moment)]) -> Result<RuleId, VmError> {
        Ok(self.machine.add_rules_at(rules)?)
    }

    /// Has [`Moment::Init`] come with this write of the guest's kernel. Until then its page traps.
    ///
    /// # Panics
    /// If it was called before.
    pub fn watch_first_program(&self, write: FirstProgram) -> Result<(), VmError> {
        let rule = Rule {
            name: RuleName::new("first program").expect("a name"),
            range: ByteRange::new(write.at, 4)
                .map_err(|error| ChangeError::Domain(error.into()))?,
            owner: Owner::HOST,
            action: Action::Log,
            locked: false,
        };
        let touched = Touched::closing(pages_of([rule.range.gfns()]));
        // It is none of the user's: neither counted nor shown.
        let (rule, _) =
            self.machine.change(|_| touched.clone(), |domain| domain.add_rules(&[rule]))?;
        self.machine.guard().hide(rule);
        let first = self.machine.events.watch_first_program(rule, write);
        assert!(first, "one write is watched");
        Ok(())
    }

    /// Puts rules in force; the numbers of those that were not before.
    pub fn arm(&self, rules: &[RuleId]) -> Result<Vec<RuleId>, VmError> {
        Ok(self.machine.arm_named(rules, ArmedBy::Command)?)
    }

    /// Rules that are not in force, and what they wait for.
    pub fn waiting_rules(&self) -> Vec<(RuleId, Moment)> {
        let waiting = self.machine.waiting();
        waiting.moments.iter().map(|(id, moment)| (*id, *moment)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The engine says which rules wait; a snapshot only for what.
    #[test]
    fn a_restored_rule_waits_for_what_was_saved_or_for_a_command() {
        let saved =
            [(1, "init".to_owned()), (2, "a later one".to_owned()), (9, "write".to_owned())];
        let mut waiting = Waiting::default();
        waiting.restore(&[RuleId(1), RuleId(2), RuleId(3)], &saved);
        let of = |rule| waiting.of(RuleId(rule));
        assert_eq!((of(1), of(2)), (Some(Moment::Init), Some(Moment::Command)));
        assert_eq!((of(3), of(9)), (Some(Moment::Command), None));
    }
}

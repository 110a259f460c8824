//! The rules alone, byte by byte.

use subpage::address::ByteRange;
use subpage::rules::Action;
use subpage_trap::Verdict;

use super::Enforcer;
use super::touch_index::TouchIndex;
use crate::failure::Failure;
use crate::policy::{Policy, PolicyRule};

/// Decides by the rules alone, without tables and without a processor: what the other backends
/// must agree with.
#[derive(Debug, Clone)]
pub struct ByteRules {
    actions: Vec<Action>,
    /// For each `allow-once` rule, whether its one write has happened.
    used: Vec<bool>,
    armed: Vec<bool>,
    index: TouchIndex,
}

impl ByteRules {
    /// Takes the rules of a policy.
    pub fn new(policy: &Policy) -> Self {
        let ranges: Vec<_> = policy.rules.iter().map(|rule| rule.rule.range).collect();
        Self {
            actions: policy.rules.iter().map(|rule| rule.rule.action).collect(),
            used: vec![false; policy.rules.len()],
            armed: policy.rules.iter().map(PolicyRule::holds_from_start).collect(),
            index: TouchIndex::new(&ranges, 1),
        }
    }
}

impl Enforcer for ByteRules {
    fn name(&self) -> &'static str {
        "rules"
    }

    fn write(&mut self, bytes: ByteRange) -> Result<Option<(usize, Verdict)>, Failure> {
        let mut strongest: Option<(Action, usize)> = None;
        let Self { actions, used, armed, index } = self;
        index.for_each(bytes, |rule| {
            if !armed[rule] {
                return;
            }
            // An `allow-once` rule whose write has happened denies.
            let action = match actions[rule] {
                Action::AllowOnce if used[rule] => Action::Deny,
                action => action,
            };
            // Of equally strong rules the first in the policy decides.
            let stronger = strongest
                .is_none_or(|(most, index)| action > most || (action == most && rule < index));
            if stronger {
                strongest = Some((action, rule));
            }
        });
        let Some((action, rule)) = strongest else { return Ok(None) };
        let verdict = match action {
            Action::Log => Verdict::Logged,
            Action::AllowOnce => Verdict::AllowedOnce,
            Action::Deny => Verdict::Denied,
            Action::Stop => Verdict::Stopped,
        };
        if verdict == Verdict::AllowedOnce {
            index.for_each(bytes, |rule| used[rule] |= armed[rule]);
        }
        Ok(Some((rule, verdict)))
    }

    fn arm(&mut self, rules: &[usize]) -> Result<(), Failure> {
        for &rule in rules {
            self.armed[rule] = true;
        }
        Ok(())
    }
}

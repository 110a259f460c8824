//! What becomes of an instruction whose write a rule denies.

use alloc::vec::Vec;

use subpage::frames::OutOfFrames;
use subpage::rules::RuleId;
use subpage_trap::Response;

use super::Errno;

/// The response that a number of the interface asks for: `None` for what the host has set for rules
/// that do not say.
pub(super) const fn from_number(number: u32) -> Result<Option<Response>, Errno> {
    match number {
        0 => Ok(None),
        1 => Ok(Some(Response::Skip)),
        2 => Ok(Some(Response::Fault)),
        _ => Err(Errno::Invalid),
    }
}

/// The responses of the rules that have one of their own, ascending by rule.
#[derive(Debug, Default)]
pub struct Responses {
    of_rules: Vec<(RuleId, Response)>,
}

impl Responses {
    /// What becomes of an instruction that `rule` denies, if it has a response of its own.
    pub fn of(&self, rule: RuleId) -> Option<Response> {
        let found = self.of_rules.binary_search_by_key(&rule, |(id, _)| *id);
        found.ok().map(|at| self.of_rules[at].1)
    }

    /// Makes sure that one more can be set without needing memory.
    pub fn reserve_one(&mut self) -> Result<(), OutOfFrames> {
        self.of_rules.try_reserve(1).map_err(|_| OutOfFrames)
    }

    /// Sets the response of a rule; `None` leaves it to the host.
    ///
    /// # Panics
    /// If no room was reserved for a rule that had none.
    pub fn set(&mut self, rule: RuleId, response: Option<Response>) {
        match (self.of_rules.binary_search_by_key(&rule, |(id, _)| *id), response) {
            (Ok(at), None) => {
                self.of_rules.remove(at);
            }
            (Ok(at), Some(response)) => self.of_rules[at].1 = response,
            (Err(_), None) => {}
            (Err(at), Some(response)) => {
                assert!(
                    self.of_rules.len() < self.of_rules.capacity(),
                    "a response is set without room"
                );
                self.of_rules.insert(at, (rule, response));
            }
        }
    }

    /// Forgets the response of a rule that is gone.
    pub fn remove(&mut self, rule: RuleId) {
        self.set(rule, None);
    }

    /// How many rules have a response of their own.
    pub fn count(&self) -> usize {
        self.of_rules.len()
    }
}

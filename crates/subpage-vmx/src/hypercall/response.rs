//! What becomes of an instruction whose write a rule denies.

use alloc::vec::Vec;

use subpage::frames::OutOfFrames;
use subpage::rules::RuleId;

/// What becomes of a denied instruction. The numbers are those of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u32)]
pub enum Response {
    /// As the host has set for rules that do not say.
    #[default]
    Default = 0,
    /// The guest goes on after it, as after a write to a ROM.
    Skip = 1,
    /// The guest gets a general-protection exception.
    GeneralProtection = 2,
}

impl Response {
    /// Takes the number of the interface; `None` for any other.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Default),
            1 => Some(Self::Skip),
            2 => Some(Self::GeneralProtection),
            _ => None,
        }
    }
}

/// The responses of the rules that have one of their own, ascending by rule.
#[derive(Debug, Default)]
pub struct Responses {
    of_rules: Vec<(RuleId, Response)>,
}

impl Responses {
    /// What becomes of an instruction that `rule` denies.
    pub fn of(&self, rule: RuleId) -> Response {
        let found = self.of_rules.binary_search_by_key(&rule, |(id, _)| *id);
        found.map_or(Response::Default, |at| self.of_rules[at].1)
    }

    /// Makes sure that one more can be set without needing memory.
    pub fn reserve_one(&mut self) -> Result<(), OutOfFrames> {
        self.of_rules.try_reserve(1).map_err(|_| OutOfFrames)
    }

    /// Sets the response of a rule.
    ///
    /// # Panics
    /// If no room was reserved for a rule that had none.
    pub fn set(&mut self, rule: RuleId, response: Response) {
        match self.of_rules.binary_search_by_key(&rule, |(id, _)| *id) {
            Ok(at) if response == Response::Default => {
                self.of_rules.remove(at);
            }
            Ok(at) => self.of_rules[at].1 = response,
            Err(_) if response == Response::Default => {}
            Err(at) => {
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
        self.set(rule, Response::Default);
    }

    /// How many rules have a response of their own.
    pub fn count(&self) -> usize {
        self.of_rules.len()
    }
}

//! One rule: a name, the bytes it guards, whose it is, and what happens to a write.

use core::fmt;

use arrayvec::ArrayString;
use thiserror::Error;

use crate::address::ByteRange;

/// Longest name of a rule in bytes of UTF-8.
pub(crate) const RULE_NAME_BYTES: usize = 62;

/// Why a text is not the name of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RuleNameError {
    /// The name has no character.
    #[error("a rule needs a name")]
    Empty,
    /// The name is longer than 62.
    #[error("a rule's name has {bytes} bytes, at most 62 are allowed")]
    TooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// The name would damage a terminal or a log.
    #[error("a rule's name has the control character {character:?} at byte {at}")]
    Control {
        /// The character.
        character: char,
        /// Its byte offset in the name.
        at: usize,
    },
}

/// A rule's name: 1 to 62 bytes of UTF-8 without control characters; kept in line, never on the heap.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleName(ArrayString<RULE_NAME_BYTES>);

impl RuleName {
    /// Takes a name from a person or a file.
    pub fn new(name: &str) -> Result<Self, RuleNameError> {
        if name.is_empty() {
            return Err(RuleNameError::Empty);
        }
        if let Some((at, character)) = name.char_indices().find(|(_, c)| c.is_control()) {
            return Err(RuleNameError::Control { character, at });
        }
        let stored =
            ArrayString::from(name).map_err(|_| RuleNameError::TooLong { bytes: name.len() })?;
        Ok(Self(stored))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.as_str(), f)
    }
}

/// Whose rule it is. Only its owner, or [`Owner::HOST`], can remove a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(pub u32);

impl Owner {
    /// The host itself, which may remove every rule that is not locked.
    pub const HOST: Self = Self(0);
}

/// What happens to a write that touches a byte of the rule.
///
/// In ascending order of strength: where rules with different actions overlap, the strongest of
/// those whose bytes are touched decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// The write takes effect and is reported.
    Log,
    /// The first write takes effect and is reported; later ones are denied.
    AllowOnce,
    /// The write has no effect and is reported.
    Deny,
    /// The write has no effect, is reported, and the guest is to be stopped.
    Stop,
}

impl Action {
    /// All of them, in ascending order of strength.
    pub const ALL: [Self; 4] = [Self::Log, Self::AllowOnce, Self::Deny, Self::Stop];

    /// The word for it, as policies and events spell it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::AllowOnce => "allow-once",
            Self::Deny => "deny",
            Self::Stop => "stop",
        }
    }

    /// The action that a word stands for, if it is exactly one of theirs.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.word() == word)
    }
}

/// The moment from which a rule holds. Before that it neither denies nor counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Moment {
    /// Before the guest's first instruction.
    Start,
    /// When a kernel proper is entered, after its own loader has unpacked and moved it.
    Entry,
    /// When the guest's kernel is about to start its first program.
    Init,
    /// When the guest says so, by a write to a port.
    Write,
    /// When somebody outside of the guest says so.
    Command,
}

impl Moment {
    /// All of them, in the order in which a run usually comes to them.
    pub const ALL: [Self; 5] = [Self::Start, Self::Entry, Self::Init, Self::Write, Self::Command];

    /// The word for it, as policies and events spell it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Entry => "entry",
            Self::Init => "init",
            Self::Write => "write",
            Self::Command => "command",
        }
    }

    /// The moment that a word stands for, if it is exactly one of theirs.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|moment| moment.word() == word)
    }
}

/// Number that names a rule for as long as the domain lives; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub u64);

/// A rule as it is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// What people call it; need not be unique.
    pub name: RuleName,
    /// The guest-physical bytes it guards; may be finer than a sub-page and may overlap others.
    pub range: ByteRange,
    /// Whose it is.
    pub owner: Owner,
    /// What happens to a write.
    pub action: Action,
    /// From the first moment on, nothing can loosen it, its owner and the host included.
    pub locked: bool,
}

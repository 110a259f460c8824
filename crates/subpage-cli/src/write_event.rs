//! A write that met a rule: what the events, the summary and the report tell about it.

use serde::Serialize;
use subpage::rules::Action;

use crate::hex::Hex;

/// The word for an action in policies and events.
pub fn action_word(action: Action) -> &'static str {
    match action {
        Action::Log => "log",
        Action::AllowOnce => "allow-once",
        Action::Deny => "deny",
        Action::Stop => "stop",
    }
}

/// What became of a write that met a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It had no effect.
    Denied,
    /// It had no effect and the guest was stopped.
    Stopped,
    /// It took effect.
    Logged,
    /// It took effect; the next one will not.
    AllowedOnce,
}

impl Verdict {
    /// The word for people.
    pub fn word(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Stopped => "stopped",
            Self::Logged => "logged",
            Self::AllowedOnce => "allowed once",
        }
    }

    /// Whether the write had no effect.
    pub fn is_denial(self) -> bool {
        matches!(self, Self::Denied | Self::Stopped)
    }
}

/// A rule met a write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WriteEvent {
    /// Number of this event among those of writes, from 1, without gaps.
    pub seq: u64,
    /// Name of the rule that decided.
    pub rule: String,
    /// Its action.
    pub action: &'static str,
    /// What became of the write.
    pub verdict: Verdict,
    /// Number of the write in the run, from 1.
    pub write: u64,
    /// First byte written.
    pub gpa: Hex,
    /// Bytes written.
    pub length: u64,
    /// Index, in its page, of the sub-page of the first byte that the rule guards.
    pub sub_page: u8,
    /// Address of the writing instruction, if known.
    pub pc: Option<Hex>,
    /// The function that holds it, if known.
    pub pc_symbol: Option<String>,
    /// The virtual CPU that wrote.
    pub vcpu: u32,
}

//! What is told about a write that met a rule or an access map, and to whom.

mod broadcast;
mod json;

use serde::{Deserialize, Serialize};
use subpage::rules::Action;

pub use broadcast::{Broadcast, Delivery, Subscription};
pub use json::VERSION;

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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
    pub const fn word(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Stopped => "stopped",
            Self::Logged => "logged",
            Self::AllowedOnce => "allowed once",
        }
    }

    /// Whether the write had no effect.
    pub const fn is_denial(self) -> bool {
        matches!(self, Self::Denied | Self::Stopped)
    }
}

/// A write that met a rule or an access map, as it happened.
///
/// As JSON it is the object that `docs/events.md` describes, with `v` and `type`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Number of this event, from 1, without gaps.
    pub seq: u64,
    /// What became of the write.
    pub verdict: Verdict,
    /// Number of the rule that decided; none if an access map did.
    pub rule: Option<u64>,
    /// Its name; empty for an access map.
    pub rule_name: String,
    /// The rule's action; [`Action::Deny`] for an access map.
    pub action: Action,
    /// Number of the write among those that trapped, from 1.
    pub write: u64,
    /// The virtual processor that wrote.
    pub vcpu: u32,
    /// Address of the writing instruction.
    pub rip: Option<u64>,
    /// KVM told of the write before it changed RIP. Where it is false, KVM had carried the
    /// instruction out already, and `rip` was found by decoding backwards.
    pub rip_exact: bool,
    /// Privilege level, 0..=3.
    pub cpl: u8,
    /// Page-table base.
    pub cr3: u64,
    /// Guest-physical address of the first byte of the write.
    pub gpa: u64,
    /// Guest-linear address of that byte, if known.
    pub gla: Option<u64>,
    /// First byte that the rule or map holds.
    pub at: u64,
    /// Bytes that the write stored, or would have stored.
    pub bytes: Vec<u8>,
    /// The bytes of the instruction; empty if it was not found.
    pub instruction: Vec<u8>,
    /// The instruction in words, Intel syntax.
    pub text: Option<String>,
}

impl Event {
    /// Index, in its page, of the sub-page of the first byte that the rule or map holds: 0..=31.
    #[allow(clippy::cast_possible_truncation)] // At most 31.
    pub const fn sub_page(&self) -> u8 {
        (self.at % 4096 / 128) as u8
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use subpage::rules::Action;

    use super::{Event, Verdict};

    /// A denied write, number `seq`.
    pub(crate) fn event(seq: u64) -> Event {
        Event {
            seq,
            verdict: Verdict::Denied,
            rule: Some(7),
            rule_name: "helper path".to_owned(),
            action: Action::Deny,
            write: 145,
            vcpu: 1,
            rip: Some(0x40_1234),
            rip_exact: true,
            cpl: 3,
            cr3: 0x1000,
            gpa: 0x10_e17d,
            gla: Some(0xffff_8000_0010_e17d),
            at: 0x10_e180,
            bytes: vec![0, 0xab, 1, 0xff],
            instruction: vec![0x89, 0x07],
            text: Some("mov [rdi],eax".to_owned()),
        }
    }
}

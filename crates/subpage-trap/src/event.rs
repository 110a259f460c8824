//! The definition of an event: a write that met a rule or an access map.

use core::time::Duration;

use arrayvec::ArrayVec;
use subpage::access::SubPage;
use subpage::address::{ByteRange, Gpa};
use subpage::rules::{Action, RuleId};
use subpage_emulate::MAX_INSTRUCTION_BYTES;
use subpage_emulate::guest::State;

use crate::Response;

/// Longest instruction in bytes (SDM Vol. 2A, "Instruction Format").
pub const INSTRUCTION_BYTES: usize = MAX_INSTRUCTION_BYTES;

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "record", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "record", serde(rename_all = "snake_case"))]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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

/// Who wrote, and from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Number of the virtual processor.
    pub vcpu: u32,
    /// Address of the writing instruction, if known; for the frame of an event, of the instruction
    /// that was interrupted.
    pub rip: Option<u64>,
    /// Whether `rip` was told; if not, it was found by decoding backwards.
    pub rip_exact: bool,
    /// Page-table base of the guest, if known.
    pub cr3: Option<u64>,
    /// Privilege level, 0..=3, if known.
    pub cpl: Option<u8>,
}

impl Origin {
    /// Virtual processor `vcpu`, which writes in `state` by the instruction at its RIP.
    pub const fn of(state: &State, vcpu: u32) -> Self {
        let (rip, cr3, cpl) = (Some(state.rip), Some(state.cr3), Some(state.cpl));
        Self { vcpu, rip, rip_exact: true, cr3, cpl }
    }
}

/// When a write happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum When {
    /// It is not known: a recorded write has a place in its trace, and no time.
    #[default]
    Unknown,
    /// By the clock of the host.
    Clock {
        /// Since the first moment of 1970, UTC.
        unix: Duration,
        /// Since the guest was made.
        since_start: Duration,
    },
    /// The processor's time-stamp counter, where there is no clock.
    Counter(u64),
}

/// One write that met a rule or an access map.
///
/// `B` holds its bytes: a slice while it happens, whatever a backend keeps them in afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<B> {
    /// What became of the write.
    pub verdict: Verdict,
    /// What became of the instruction if the write was denied.
    pub response: Response,
    /// The rule that decided; `None` if an access map did.
    pub rule: Option<RuleId>,
    /// The rule's action; [`Action::Deny`] for an access map.
    pub action: Action,
    /// Who wrote.
    pub origin: Origin,
    /// When.
    pub when: When,
    /// First byte of the write.
    pub gpa: Gpa,
    /// Linear address of that byte, if known.
    pub gla: Option<u64>,
    /// First byte that the rule or map holds.
    pub at: Gpa,
    /// Length of the write in bytes, if known.
    pub length: Option<u64>,
    /// The bytes that it stored or would have stored; empty if they are not known.
    pub bytes: B,
    /// The bytes of the instruction; empty if there is none or it was not found.
    pub instruction: ArrayVec<u8, INSTRUCTION_BYTES>,
    /// The write was the frame of an interrupt or exception.
    pub during_delivery: bool,
    /// Qualification of the exit that told of the write, where exits have one.
    pub qualification: Option<u64>,
    /// The write was decided about in software: no processor's tables could have.
    pub in_software: bool,
}

impl<B: Default> Event<B> {
    /// A write of these bytes of which nothing else is known, met at its first one.
    pub fn bare(verdict: Verdict, action: Action, written: ByteRange) -> Self {
        Self {
            verdict,
            response: Response::Skip,
            rule: None,
            action,
            origin: Origin { vcpu: 0, rip: None, rip_exact: true, cr3: None, cpl: None },
            when: When::Unknown,
            gpa: written.first(),
            gla: None,
            at: written.first(),
            length: Some(written.bytes()),
            bytes: B::default(),
            instruction: ArrayVec::new(),
            during_delivery: false,
            qualification: None,
            in_software: false,
        }
    }
}

impl<B> Event<B> {
    /// The sub-page, in its page, of the first byte that the rule or map holds.
    pub fn sub_page(&self) -> SubPage {
        SubPage::of(self.at)
    }

    /// The same event with its bytes kept in another way.
    pub fn map_bytes<T>(self, keep: impl FnOnce(B) -> T) -> Event<T> {
        let bytes = keep(self.bytes);
        Event {
            bytes,
            verdict: self.verdict,
            response: self.response,
            rule: self.rule,
            action: self.action,
            origin: self.origin,
            when: self.when,
            gpa: self.gpa,
            gla: self.gla,
            at: self.at,
            length: self.length,
            instruction: self.instruction,
            during_delivery: self.during_delivery,
            qualification: self.qualification,
            in_software: self.in_software,
        }
    }
}

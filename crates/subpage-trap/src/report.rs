//! What a write met, and the event about it.

use arrayvec::ArrayVec;
use subpage::address::Gpa;
use subpage::domain::{Decision, Domain, Observer, WriteParts};
use subpage::frames::TableFrames;
use subpage::rules::{Action, RuleId};

use crate::event::{Event, INSTRUCTION_BYTES, Origin, Verdict, When};
use crate::{Backend, Obstacle, Response};

/// What a write met that is to be reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Met {
    /// A rule that wants to know. The write takes effect.
    Watched {
        /// The rule.
        rule: RuleId,
        /// First byte of it that is written.
        at: Gpa,
    },
    /// A rule or access map that forbids it.
    Forbidden {
        /// The rule; `None` for an access map.
        rule: Option<RuleId>,
        /// First byte that may not be written.
        at: Gpa,
        /// The rule wants the guest stopped.
        stop: bool,
    },
}

impl Met {
    /// What a decision says that a write met; `None` if it met nothing that is reported.
    pub const fn of(decision: Decision) -> Option<Self> {
        match decision {
            Decision::Reported { rule, at } => Some(Self::Watched { rule, at }),
            Decision::Denied { rule, at, stop } => Some(Self::Forbidden { rule, at, stop }),
            Decision::Allowed | Decision::NotEligible { .. } | Decision::NotMapped { .. } => None,
        }
    }
}

/// What is known of a write besides what it met.
#[derive(Debug, Clone, Copy)]
pub struct Account<'a> {
    /// Who wrote.
    pub origin: Origin,
    /// When.
    pub when: When,
    /// Its bytes, as far as it is known where they go: at least one.
    pub parts: &'a WriteParts,
    /// Linear address of the first of them, if known.
    pub gla: Option<u64>,
    /// Its length, if known.
    pub length: Option<u64>,
    /// Its bytes; empty if they are not known.
    pub bytes: &'a [u8],
    /// The bytes of the instruction; empty if there is none or it was not found.
    pub instruction: &'a [u8],
    /// It is the frame of an interrupt or exception.
    pub during_delivery: bool,
    /// Qualification of the exit that told of it, where exits have one.
    pub qualification: Option<u64>,
    /// It was decided about in software: no processor's tables could have.
    pub in_software: bool,
}

/// Decides about all bytes of a write and commits the decision: what the engine has to note is noted.
///
/// If it permits, the caller must now write all bytes, before it lets go of the lock.
pub fn authorize<B: Backend>(
    backend: &mut B,
    parts: &WriteParts,
) -> Result<Decision, Obstacle<B::Failure>> {
    let decision = backend.domain_mut().authorize_write_parts(B::SPACE, parts);
    decision.map_err(|_| Obstacle::OutOfMemory)
}

/// Records the event of a write that met something.
pub fn report<B: Backend>(
    backend: &mut B,
    met: Met,
    response: Response,
    account: &Account<'_>,
) -> B::Told {
    let event = describe(backend.domain(), met, response, account);
    backend.record(&event, account.parts)
}

/// The event of a write that met something in `domain`.
pub fn describe<'a, F: TableFrames, O: Observer>(
    domain: &Domain<F, O>,
    met: Met,
    response: Response,
    account: &Account<'a>,
) -> Event<&'a [u8]> {
    let (rule, at) = match met {
        Met::Watched { rule, at } => (Some(rule), at),
        Met::Forbidden { rule, at, .. } => (rule, at),
    };
    let active = rule.and_then(|rule| domain.rules().get(rule));
    let action = active.map_or(Action::Deny, |active| active.rule.action);
    let verdict = match met {
        Met::Watched { .. } if action == Action::AllowOnce => Verdict::AllowedOnce,
        Met::Watched { .. } => Verdict::Logged,
        Met::Forbidden { stop: true, .. } => Verdict::Stopped,
        Met::Forbidden { .. } => Verdict::Denied,
    };
    Event {
        verdict,
        response,
        rule,
        action,
        origin: account.origin,
        when: account.when,
        gpa: account.parts.first().first(),
        gla: account.gla,
        at,
        length: account.length,
        bytes: account.bytes,
        instruction: code_of(account.instruction),
        during_delivery: account.during_delivery,
        qualification: account.qualification,
        in_software: account.in_software || matches!(met, Met::Watched { .. }),
    }
}

/// As many bytes of an instruction as one has.
fn code_of(bytes: &[u8]) -> ArrayVec<u8, INSTRUCTION_BYTES> {
    let kept = &bytes[..bytes.len().min(INSTRUCTION_BYTES)];
    kept.try_into().expect("no more than there is room for")
}

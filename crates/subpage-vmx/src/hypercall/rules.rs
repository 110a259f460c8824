//! `AddRule`, `RemoveRule` and `LockRule`.

use subpage::address::{ByteRange, Gpa};
use subpage::domain::Observer;
use subpage::frames::TableFrames;
use subpage::rules::{Action, Owner, Rule, RuleId, RuleName};
use zerocopy::FromBytes;

use crate::abi::{NAME_BYTES, RuleRequest};
use subpage_emulate::guest::PhysicalMemory;

use subpage_trap::Response;

use super::buffer::SPACE;
use super::{CallContext, CallOutcome, Errno, Refusal, after, done, response};

/// Whose rules a guest's are. A rule of the policy with this owner belongs to the guest too.
pub const GUEST: Owner = Owner(1);

/// Most rules that the guest owns at a time.
pub const MAX_RULES: usize = 1024;

/// Bit of [`RuleRequest::flags`].
const LOCKED: u32 = 1;

/// The rule and the response that a request asks for.
pub(crate) fn rule_of(request: &RuleRequest) -> Result<(Rule, Option<Response>), Errno> {
    let action = match request.action.get() {
        0 => Action::Log,
        1 => Action::AllowOnce,
        2 => Action::Deny,
        3 => Action::Stop,
        _ => return Err(Errno::Invalid),
    };
    let response = response::from_number(request.response.get())?;
    if request.flags.get() & !LOCKED != 0 || request.reserved.get() != 0 {
        return Err(Errno::Invalid);
    }
    let length = usize::from(request.name_length.get());
    if length > NAME_BYTES || request.name[length..].iter().any(|byte| *byte != 0) {
        return Err(Errno::Invalid);
    }
    let name = core::str::from_utf8(&request.name[..length]).map_err(|_| Errno::Invalid)?;
    let rule = Rule {
        name: RuleName::new(name).map_err(|_| Errno::Invalid)?,
        range: Gpa::try_new(request.gpa.get())
            .and_then(|first| ByteRange::new(first, request.bytes.get()))
            .map_err(|_| Errno::Invalid)?,
        owner: GUEST,
        action,
        locked: request.flags.get() & LOCKED != 0,
    };
    Ok((rule, response))
}

impl<F: TableFrames, O: Observer, M: PhysicalMemory> CallContext<'_, F, O, M> {
    pub(super) fn add_rule(&mut self, address: u64) -> Result<CallOutcome, Refusal> {
        let bytes: [u8; size_of::<RuleRequest>()] = self.read(address)?;
        let request = RuleRequest::read_from_bytes(&bytes).map_err(|_| Errno::Fault)?;
        let (rule, response) = rule_of(&request)?;
        self.check_memory(rule.range)?;
        let owned = self.domain.rules().iter().filter(|active| active.rule.owner == GUEST);
        if owned.count() >= MAX_RULES {
            return Err(Errno::NoSpace.into());
        }
        // First what can fail: once the rule is in force its response must be, too.
        self.ledger.responses.reserve_one()?;
        let (id, token) = self.domain.add_rule(rule)?;
        self.ledger.responses.set(id, response);
        Ok(after(token, id.0))
    }

    pub(super) fn remove_rule(&mut self, number: u64) -> Result<CallOutcome, Refusal> {
        let token = self.domain.remove_rule(RuleId(number), GUEST)?;
        self.ledger.responses.remove(RuleId(number));
        Ok(after(token, 0))
    }

    pub(super) fn lock_rule(&mut self, number: u64) -> Result<CallOutcome, Refusal> {
        self.domain.lock_rule(RuleId(number), GUEST)?;
        Ok(done(0))
    }

    /// Refuses bytes that are no memory of the guest: what a guest guards or tracks is its own, and
    /// tables for it are in proportion.
    pub(super) fn check_memory(&self, bytes: ByteRange) -> Result<(), Errno> {
        match self.domain.slots(SPACE).first_gap(bytes.gfns()) {
            Some(_) => Err(Errno::Fault),
            None => Ok(()),
        }
    }
}

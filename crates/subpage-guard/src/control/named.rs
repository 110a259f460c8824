//! What a request names, as the engine has it: bytes, a rule to be added, a rule that is there.

use subpage::address::{AddressError, ByteRange, Gpa};
use subpage::domain::ImportError;
use subpage::errno::Errno;
use subpage::rules::{Action, ActiveRule, Owner, Rule, RuleId, RuleName};

use super::protocol::{NewRule, Refusal, RuleRef};
use crate::guard::ChangeError;

/// `length` guest-physical bytes from `start` on. Refused with `EINVAL` if they are none, or beyond the
/// widest address.
pub fn range(start: u64, length: u64) -> Result<ByteRange, Refusal> {
    let first = Gpa::try_new(start).map_err(|error| address(&error))?;
    ByteRange::new(first, length).map_err(|error| address(&error))
}

/// The rule that is to be added. Refused with `EINVAL` for an action, a name or bytes that cannot be.
pub fn rule_of(new: &NewRule) -> Result<Rule, Refusal> {
    let action = Action::from_word(&new.action)
        .ok_or_else(|| Refusal::new("EINVAL", "the actions are log, allow-once, deny and stop"))?;
    let name = RuleName::new(&new.name);
    Ok(Rule {
        name: name.map_err(|error| Refusal::new("EINVAL", error.to_string()))?,
        range: range(new.start, new.length)?,
        owner: Owner(new.owner),
        action,
        locked: new.locked,
    })
}

/// The number of the rule that is meant, one of `rules` if it is named. Refused with `ENOENT` if none of
/// them has the name, and with `EINVAL` if several have.
pub fn find_rule<'a>(
    rules: impl Iterator<Item = &'a ActiveRule>,
    rule: &RuleRef,
) -> Result<RuleId, Refusal> {
    let name = match rule {
        RuleRef::Number(number) => return Ok(RuleId(*number)),
        RuleRef::Name(name) => name,
    };
    let mut named = rules.filter(|active| active.rule.name.as_str() == name);
    match (named.next(), named.next()) {
        (Some(active), None) => Ok(active.id),
        (None, _) => Err(Refusal::new("ENOENT", format!("no rule has the name {name:?}"))),
        (Some(_), Some(_)) => Err(Refusal::new(
            "EINVAL",
            format!("several rules have the name {name:?}: give the number instead"),
        )),
    }
}

/// The refusal for an address that cannot be: `EINVAL`.
pub fn address(error: &AddressError) -> Refusal {
    Refusal::new("EINVAL", error.to_string())
}

/// The refusal for a change that was refused, with the engine's error number.
pub fn refusal(error: &ChangeError) -> Refusal {
    let errno = match error {
        ChangeError::Domain(error) => Errno::from(*error),
        ChangeError::NotMemory { .. } => Errno::Fault,
        ChangeError::Trap(_) => Errno::NoMemory,
        ChangeError::Import(ImportError::Domain(_)) => Errno::Invalid,
        ChangeError::Import(_) => return Refusal::new("EIO", error.to_string()),
    };
    Refusal::new(errno.name(), error.to_string())
}

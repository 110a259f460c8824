//! Rules: a name, bytes, an owner, and what becomes of a write.

use core::ffi::c_char;
use core::mem::MaybeUninit;

use subpage::address::{ByteRange, Gpa};
use subpage::errno::Errno;
use subpage::rules::{Action, ActiveRule, Owner, RuleId, RuleName};

use crate::domain::Domain;
use crate::status::{Failed, INVALID, NULL, done, given, status, valid};

/// A write takes effect and is an event.
pub const SUBPAGE_LOG: u32 = 0;
/// The first write takes effect, later ones are denied.
pub const SUBPAGE_ALLOW_ONCE: u32 = 1;
/// A write has no effect.
pub const SUBPAGE_DENY: u32 = 2;
/// A write has no effect, and the guest is to be stopped.
pub const SUBPAGE_STOP: u32 = 3;

/// Nothing loosens or removes the rule, its owner included.
pub const SUBPAGE_RULE_LOCKED: u32 = 1;
/// The rule waits for `subpage_arm_rule` and neither denies nor counts before.
pub const SUBPAGE_RULE_UNARMED: u32 = 2;
/// Only in what `subpage_rule_at` gives: an allowed-once write has happened.
pub const SUBPAGE_RULE_SPENT: u32 = 4;

/// Bytes of a rule's name with the zero behind it.
pub const SUBPAGE_NAME_BYTES: usize = 63;

/// A rule.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Rule {
    /// Its number; the library gives it.
    pub id: u64,
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    /// Number of bytes, from 1 on.
    pub length: u64,
    /// Whose it is: that owner and the host, which is 0, may remove and lock it.
    pub owner: u32,
    /// SUBPAGE_LOG, SUBPAGE_ALLOW_ONCE, SUBPAGE_DENY or SUBPAGE_STOP.
    pub action: u32,
    /// SUBPAGE_RULE_LOCKED, SUBPAGE_RULE_UNARMED.
    pub flags: u32,
    /// UTF-8 without control characters, 1 to 62 bytes, then a zero.
    pub name: [c_char; SUBPAGE_NAME_BYTES],
}

const ACTIONS: [(u32, Action); 4] = [
    (SUBPAGE_LOG, Action::Log),
    (SUBPAGE_ALLOW_ONCE, Action::AllowOnce),
    (SUBPAGE_DENY, Action::Deny),
    (SUBPAGE_STOP, Action::Stop),
];

pub(crate) fn number_of(action: Action) -> u32 {
    match action {
        Action::Log => SUBPAGE_LOG,
        Action::AllowOnce => SUBPAGE_ALLOW_ONCE,
        Action::Deny => SUBPAGE_DENY,
        Action::Stop => SUBPAGE_STOP,
    }
}

pub(crate) fn bytes_at(gpa: u64, length: u64) -> Result<ByteRange, Failed> {
    valid(ByteRange::new(valid(Gpa::try_new(gpa))?, length))
}

impl Rule {
    fn engine_rule(&self) -> Result<subpage::rules::Rule, Failed> {
        if self.flags & !(SUBPAGE_RULE_LOCKED | SUBPAGE_RULE_UNARMED) != 0 {
            return Err(INVALID);
        }
        let action = ACTIONS.iter().find(|(number, _)| *number == self.action).ok_or(INVALID)?.1;
        let bytes = self.name.map(c_char::cast_unsigned);
        let end = bytes.iter().position(|byte| *byte == 0).ok_or(INVALID)?;
        let name = valid(core::str::from_utf8(&bytes[..end]))?;
        Ok(subpage::rules::Rule {
            name: valid(RuleName::new(name))?,
            range: bytes_at(self.gpa, self.length)?,
            owner: Owner(self.owner),
            action,
            locked: self.flags & SUBPAGE_RULE_LOCKED != 0,
        })
    }

    fn of_engine(active: &ActiveRule) -> Self {
        let rule = &active.rule;
        let mut name = [0; SUBPAGE_NAME_BYTES];
        // 62 bytes at most, so the last one stays 0.
        for (to, from) in name.iter_mut().zip(rule.name.as_str().bytes()) {
            *to = from.cast_signed();
        }
        let flags = [
            (rule.locked, SUBPAGE_RULE_LOCKED),
            (!active.armed, SUBPAGE_RULE_UNARMED),
            (active.spent, SUBPAGE_RULE_SPENT),
        ];
        Self {
            id: active.id.0,
            gpa: rule.range.first().as_u64(),
            length: rule.range.bytes(),
            owner: rule.owner.0,
            action: number_of(rule.action),
            flags: flags.iter().filter(|(on, _)| *on).map(|(_, flag)| flag).sum(),
            name,
        }
    }
}

/// Adds a rule; its `id` is not read. `*id` becomes its number.
///
/// -EINVAL: a name, an action, a flag or a range that cannot be.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_add_rule(
    domain: Option<&mut Domain>,
    rule: Option<&Rule>,
    id: Option<&mut MaybeUninit<u64>>,
    change: Option<&mut MaybeUninit<u64>>,
) -> i64 {
    done((|| {
        let (rule, id) = (given(rule)?, given(id)?);
        let added = (rule.engine_rule()?, rule.flags & SUBPAGE_RULE_UNARMED == 0);
        let number =
            given(domain)?.change(change, |engine| Ok(engine.add_some_armed(&[added])?))?;
        id.write(number.0);
        Ok(())
    })())
}

/// Arms a rule that was added unarmed; one that is armed stays so.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_arm_rule(
    domain: Option<&mut Domain>,
    id: u64,
    change: Option<&mut MaybeUninit<u64>>,
) -> i64 {
    done((|| given(domain)?.change(change, |engine| Ok(((), engine.arm_rules(&[RuleId(id)])?))))())
}

/// Removes a rule. -ENOENT: there is none. -EPERM: it is locked, or another owner's.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_remove_rule(
    domain: Option<&mut Domain>,
    id: u64,
    owner: u32,
    change: Option<&mut MaybeUninit<u64>>,
) -> i64 {
    done((|| {
        given(domain)?
            .change(change, |engine| Ok(((), engine.remove_rule(RuleId(id), Owner(owner))?)))
    })())
}

/// Locks a rule for good.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_lock_rule(domain: Option<&mut Domain>, id: u64, owner: u32) -> i64 {
    done((|| Ok(given(domain)?.engine.lock_rule(RuleId(id), Owner(owner))?))())
}

/// How many rules there are.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_rules(domain: Option<&Domain>) -> i64 {
    status((|| {
        i64::try_from(given(domain)?.engine.rules().len()).map_err(|_| Failed(Errno::NoSpace))
    })())
}

/// Puts rule number `index`, from 0 in the order of their addresses, into `*rule`. -ENOENT behind the last.
#[unsafe(no_mangle)]
pub extern "C" fn subpage_rule_at(
    domain: Option<&Domain>,
    index: usize,
    rule: Option<&mut MaybeUninit<Rule>>,
) -> i64 {
    done((|| {
        let active =
            given(domain)?.engine.rules().iter().nth(index).ok_or(Failed(Errno::NoEntry))?;
        rule.ok_or(NULL)?.write(Rule::of_engine(active));
        Ok(())
    })())
}

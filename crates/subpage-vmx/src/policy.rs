//! The host's policy: rules and access maps that are in force before the guest's first instruction.
//!
//! The boot loader hands over a module that `subpage compile` has written: a domain's exported
//! state. It may be damaged or made by somebody else, so it is hostile input like any other.

use alloc::vec::Vec;
use core::fmt;

use thiserror::Error;

use subpage::access::AccessMap;
use subpage::address::Gfn;
use subpage::domain::{Domain, DomainError, ImportError, Observer};
use subpage::frames::{OutOfFrames, TableFrames};
use subpage::invalidate::Invalidation;
use subpage::rules::{Action, ActiveRule, Owner, RuleId};

/// Most pages that a policy may be about, counted rule by rule: 2^20, which is 4 GiB.
pub const MAX_PAGES: u64 = 1 << 20;

/// Longest module in bytes: 16 MiB, room for 170,000 rules.
pub const MAX_BYTES: usize = 16 << 20;

/// How the name of the rule begins that tells of a kernel's first program: a number follows, and that
/// written to the rule's four bytes is the moment.
pub const FIRST_PROGRAM: &str = "system_state=";

/// Bytes that one access map takes in a module.
const MAP_RECORD_BYTES: usize = 12;

/// Why a module is no policy; the domain is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PolicyError {
    /// The module is too long.
    #[error("the policy module has {bytes} bytes; at most {MAX_BYTES} are read")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// It is not what `subpage compile` writes, or the domain refuses it.
    #[error("the policy module cannot be used: {0}")]
    Import(#[from] ImportError),
    /// Rules wait for a moment that never comes.
    #[error(
        "the policy module cannot be used: rules wait for the first program, and there is no rule \
         \"{FIRST_PROGRAM}NUMBER\" that logs, of four bytes"
    )]
    NoMoment,
    /// No memory to remember what the host's access maps deny.
    #[error("the policy module cannot be used: {}", DomainError::OutOfMemory)]
    OutOfMemory,
}

impl From<OutOfFrames> for PolicyError {
    fn from(_: OutOfFrames) -> Self {
        Self::OutOfMemory
    }
}

/// What the access maps of the policy permit; the guest may tighten them, never loosen them.
#[derive(Debug, Default)]
pub struct HostMaps {
    /// Ascending, no unrestricted map.
    pages: Vec<(Gfn, AccessMap)>,
}

impl HostMaps {
    /// What the host's map permits of a page.
    pub fn of(&self, gfn: Gfn) -> AccessMap {
        let found = self.pages.binary_search_by_key(&gfn, |(page, _)| *page);
        found.map_or(AccessMap::ALL, |at| self.pages[at].1)
    }

    /// Makes room for as many maps as a module of `bytes` can hold.
    fn with_room_for(bytes: usize) -> Result<Self, OutOfFrames> {
        let mut pages = Vec::new();
        pages.try_reserve_exact(bytes / MAP_RECORD_BYTES).map_err(|_| OutOfFrames)?;
        Ok(Self { pages })
    }

    /// Notes the maps that the domain holds now.
    fn note<F: TableFrames, O: Observer>(&mut self, domain: &Domain<F, O>) {
        let mut from = Some(Gfn::new(0));
        while let Some(gfn) = from.and_then(|from| domain.next_restricted(from)) {
            let map = domain.base_map(gfn);
            if !map.is_unrestricted() {
                assert!(self.pages.len() < self.pages.capacity(), "more maps than their module");
                self.pages.push((gfn, map));
            }
            from = gfn.checked_add(1);
        }
        self.pages.shrink_to_fit();
    }
}

/// Rules that are not in force until the guest's kernel starts its first program.
#[derive(Debug)]
pub struct Waiting {
    /// The rule whose bytes tell.
    by: RuleId,
    /// What is written there then.
    value: u32,
    /// The rules.
    pub rules: Vec<RuleId>,
    /// The moment has come.
    pub over: bool,
}

impl Waiting {
    /// The rules that a domain holds unarmed; `None` if there are none.
    fn of<F: TableFrames, O: Observer>(domain: &Domain<F, O>) -> Result<Option<Self>, PolicyError> {
        let unarmed = || domain.rules().iter().filter(|active| !active.armed);
        let count = unarmed().count();
        if count == 0 {
            return Ok(None);
        }
        let (by, value) =
            domain.rules().iter().find_map(first_program).ok_or(PolicyError::NoMoment)?;
        let mut rules = Vec::new();
        rules.try_reserve_exact(count).map_err(|_| OutOfFrames)?;
        rules.extend(unarmed().map(|active| active.id));
        Ok(Some(Self { by, value, rules, over: false }))
    }

    /// Looks at a write that a rule reports.
    pub fn look(&mut self, rule: Option<RuleId>, bytes: &[u8]) {
        self.over |= rule == Some(self.by) && bytes == self.value.to_le_bytes();
    }
}

/// The rule and the number, if it is such a rule.
fn first_program(active: &ActiveRule) -> Option<(RuleId, u32)> {
    let rule = &active.rule;
    let value = rule.name.as_str().strip_prefix(FIRST_PROGRAM)?.parse().ok()?;
    let tells = active.armed
        && rule.action == Action::Log
        && rule.owner == Owner::HOST
        && rule.range.bytes() == 4;
    tells.then_some((active.id, value))
}

/// A policy in a domain, shown as one line without a line end.
#[derive(Debug)]
pub struct Policy {
    /// For the [`Ledger`](crate::hypercall::Ledger).
    pub maps: HostMaps,
    /// How many rules there are, and how many of them are locked.
    pub rules: (usize, usize),
    /// How many ranges the host tracks.
    pub tracked: usize,
    /// Rules that are not in force yet.
    pub waiting: Option<Waiting>,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rules, locked) = self.rules;
        let maps = self.maps.pages.len();
        write!(f, "policy: {rules} rules ({locked} locked), {maps} access maps")?;
        write!(f, ", {} tracked ranges", self.tracked)?;
        match &self.waiting {
            Some(waiting) => {
                write!(f, "; {} rules hold from the first program on", waiting.rules.len())
            }
            None => Ok(()),
        }
    }
}

/// Takes a module into a domain that is enabled and empty.
///
/// Tables take frames for at most [`MAX_PAGES`]. The token needs no processor if none has entered
/// the guest.
pub fn load<F: TableFrames, O: Observer>(
    domain: &mut Domain<F, O>,
    module: &[u8],
) -> Result<(Policy, Invalidation), PolicyError> {
    if module.len() > MAX_BYTES {
        return Err(PolicyError::TooLong { bytes: module.len() });
    }
    // First what can fail besides the import: once that is done the guest is under the policy.
    let mut maps = HostMaps::with_room_for(module.len())?;
    let token = domain.import(module, MAX_PAGES)?;
    maps.note(domain);
    let rules = domain.rules();
    let locked = rules.iter().filter(|active| active.rule.locked).count();
    let policy = Policy {
        maps,
        rules: (rules.len(), locked),
        tracked: domain.tracked().count(),
        waiting: Waiting::of(domain)?,
    };
    Ok((policy, token))
}

#[cfg(test)]
mod tests {
    use std::string::ToString;
    use std::vec;

    use subpage::address::{ByteRange, GfnRange, Gpa, PhysicalWidth};
    use subpage::frames::HeapFrames;
    use subpage::rules::{Action, Owner, Rule, RuleName};
    use subpage::slots::{AddressSpace, SlotFlags, SlotId};

    use super::*;

    fn domain() -> Domain<HeapFrames> {
        let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
        domain.enable().expect("memory");
        domain
    }

    fn bytes(first: u64, bytes: u64) -> ByteRange {
        ByteRange::new(Gpa::new(first), bytes).expect("a range")
    }

    fn rule(range: ByteRange, locked: bool) -> Rule {
        let name = RuleName::new("rule").expect("a name");
        Rule { name, range, owner: Owner::HOST, action: Action::Deny, locked }
    }

    fn module() -> Vec<u8> {
        let mut host = domain();
        let pages = GfnRange::new(Gfn::new(0), 16).expect("pages");
        let slot = (AddressSpace::Normal, SlotId(0));
        host.add_slot(slot.0, slot.1, pages, SlotFlags::default()).expect("a slot");
        let maps = [AccessMap::from_bits(!1), AccessMap::ALL, AccessMap::NONE];
        let token = host.set_access(Gfn::new(4), &maps).expect("memory");
        host.finish(&token.without_processors());
        let rules = [rule(bytes(0x1000, 1), false), rule(bytes(0x4000, 0x2000), true)];
        let (_, token) = host.add_rules(&rules).expect("memory");
        host.finish(&token.without_processors());
        let (_, token) = host.track(bytes(0x9000, 1)).expect("memory");
        host.finish(&token.without_processors());
        host.export().expect("memory")
    }

    #[test]
    fn a_module_comes_into_force() {
        let module = module();
        let mut guest = domain();
        let (policy, token) = load(&mut guest, &module).expect("a policy");
        guest.finish(&token.without_processors());
        assert_eq!(
            policy.to_string(),
            "policy: 2 rules (1 locked), 2 access maps, 1 tracked ranges"
        );
        assert_eq!(guest.export().as_deref(), Ok(&module[..]));
        let maps = [3, 4, 5, 6, 7].map(|gfn| policy.maps.of(Gfn::new(gfn)).bits());
        assert_eq!(maps, [u32::MAX, !1, u32::MAX, 0, u32::MAX]);
    }

    /// The room for maps follows from what one takes in a module.
    #[test]
    fn a_map_takes_twelve_bytes() {
        let mut host = domain();
        let pages = GfnRange::new(Gfn::new(0), 16).expect("pages");
        host.add_slot(AddressSpace::Normal, SlotId(0), pages, SlotFlags::default())
            .expect("a slot");
        let mut length = host.export().expect("memory").len();
        for gfn in 0..16 {
            let token = host.set_access(Gfn::new(gfn), &[AccessMap::NONE]).expect("memory");
            host.finish(&token.without_processors());
            let longer = host.export().expect("memory").len();
            assert_eq!(longer - length, MAP_RECORD_BYTES);
            length = longer;
        }
    }

    #[test]
    fn what_is_no_policy_changes_nothing() {
        let module = module();
        let mut guest = domain();
        for length in 0..module.len() {
            let error = load(&mut guest, &module[..length]).expect_err("cut short");
            assert!(error.to_string().starts_with("the policy module cannot be used: "));
        }
        for at in 0..module.len() {
            let mut damaged = module.clone();
            damaged[at] ^= 1 << (at % 8);
            assert!(load(&mut guest, &damaged).is_err(), "byte {at}");
        }
        assert_eq!(
            load(&mut guest, b"\x7fELF but certainly no policy at all")
                .expect_err("ELF")
                .to_string(),
            "the policy module cannot be used: this is not exported subpage state"
        );
        let long = vec![0; MAX_BYTES + 1];
        assert_eq!(
            load(&mut guest, &long).expect_err("too long").to_string(),
            "the policy module has 16777217 bytes; at most 16777216 are read"
        );
        assert_eq!(guest.export(), domain().export());
        assert!(load(&mut guest, &module).is_ok(), "and a right one can follow");
        let error = load(&mut guest, &module).expect_err("not empty");
        assert_eq!(error, PolicyError::Import(ImportError::NotEmpty));
    }

    #[test]
    fn a_policy_about_too_much_is_refused() {
        let mut host = domain();
        let whole = bytes(0, MAX_PAGES * 4096);
        let (_, token) = host.add_rule(rule(whole, false)).expect("memory");
        host.finish(&token.without_processors());
        // Once more about the same page is about no more pages; the next page is.
        for first in [0, MAX_PAGES * 4096] {
            assert!(load(&mut domain(), &host.export().expect("memory")).is_ok());
            let (_, token) = host.add_rule(rule(bytes(first, 1), false)).expect("memory");
            host.finish(&token.without_processors());
        }
        let error = load(&mut domain(), &host.export().expect("memory")).expect_err("one more");
        assert_eq!(error, PolicyError::Import(ImportError::TooManyPages));
    }
}

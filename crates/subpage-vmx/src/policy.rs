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

/// Most pages that a policy may be about, counted rule by rule: 2^20, which is 4 GiB.
pub const MAX_PAGES: u64 = 1 << 20;

/// Longest module in bytes: 16 MiB, room for 160,000 rules.
pub const MAX_BYTES: usize = 16 << 20;

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

/// A policy in a domain, shown as one line without a line end.
#[derive(Debug)]
pub struct Policy {
    /// For the [`Ledger`](crate::hypercall::Ledger).
    pub maps: HostMaps,
    /// How many rules there are, and how many of them are locked.
    pub rules: (usize, usize),
    /// How many ranges the host tracks.
    pub tracked: usize,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rules, locked) = self.rules;
        let maps = self.maps.pages.len();
        write!(f, "policy: {rules} rules ({locked} locked), {maps} access maps")?;
        write!(f, ", {} tracked ranges", self.tracked)
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
    // First what can fail beside the import: once that is done the guest is under the policy.
    let mut maps = HostMaps::with_room_for(module.len())?;
    let token = domain.import(module, MAX_PAGES)?;
    maps.note(domain);
    let rules = domain.rules();
    let locked = rules.iter().filter(|active| active.rule.locked).count();
    let policy = Policy { maps, rules: (rules.len(), locked), tracked: domain.tracked().count() };
    Ok((policy, token))
}

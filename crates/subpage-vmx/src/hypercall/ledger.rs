//! What the hypervisor keeps for hypercalls besides the domain.

use arrayvec::ArrayVec;

use subpage::frames::OutOfFrames;
use subpage::track::TrackId;

use subpage::access::SubPage;
use subpage::rules::RuleSet;

use crate::event::{Event, Journal, Ring};
use crate::policy::HostMaps;

use super::tracking::MAX_TRACKED;
use super::{GUEST, Responses};

/// Events, responses, and what of the domain is the guest's own; under the domain's lock.
#[derive(Debug)]
pub struct Ledger {
    /// The events that the guest has not read.
    pub events: Ring,
    /// How many events there were of what the host guards.
    journal: Journal,
    /// What becomes of instructions that a rule denies.
    pub responses: Responses,
    /// The trackings that the guest started; those of the host are none of its business.
    pub(super) tracked: ArrayVec<TrackId, MAX_TRACKED>,
    /// What the host's access maps deny, whatever the guest sets.
    pub(super) host_maps: HostMaps,
}

impl Ledger {
    /// A ledger in which the guest holds nothing yet; `host_maps` come from the policy.
    pub fn new(host_maps: HostMaps) -> Result<Self, OutOfFrames> {
        Ok(Self {
            events: Ring::new()?,
            journal: Journal::new()?,
            responses: Responses::default(),
            tracked: ArrayVec::new(),
            host_maps,
        })
    }

    /// The policy has come into force later than the guest has begun.
    pub fn set_host_maps(&mut self, host_maps: HostMaps) {
        self.host_maps = host_maps;
    }

    /// Takes an event into the ring: its number, and, if it is one of the host's that is printed
    /// though the guest may read it away, how many there were of its rule.
    pub fn record(&mut self, rules: &RuleSet, event: &Event<'_>) -> (u64, Option<u64>) {
        let is_hosts = match event.rule {
            // A rule that is gone was removed by the host, or by the guest in the same moment.
            Some(rule) => rules.get(rule).is_none_or(|active| active.rule.owner != GUEST),
            None => !self.host_maps.of(event.at.gfn()).contains(SubPage::of(event.at)),
        };
        let met = if is_hosts { self.journal.note(event.rule) } else { None };
        (self.events.push(event), met)
    }
}

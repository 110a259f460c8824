//! What the hypervisor keeps for hypercalls beside the domain.

use arrayvec::ArrayVec;

use subpage::frames::OutOfFrames;
use subpage::track::TrackId;

use crate::event::Ring;
use crate::policy::HostMaps;

use super::Responses;
use super::tracking::MAX_TRACKED;

/// Events, responses, and what of the domain is the guest's own; under the domain's lock.
#[derive(Debug)]
pub struct Ledger {
    /// The events that the guest has not read.
    pub events: Ring,
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
            responses: Responses::default(),
            tracked: ArrayVec::new(),
            host_maps,
        })
    }
}

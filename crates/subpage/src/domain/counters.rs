//! Counters, and the hook for the three trace points of the KVM series.

use super::Denial;
use crate::access::AccessMap;
use crate::address::{GfnRange, Gpa};
use crate::exit::SppQualification;

/// Event counters since the domain was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Calls that set access maps.
    pub sets: u64,
    /// EPT violations handled.
    pub ept_violations: u64,
    /// SPP misses handled.
    pub spp_misses: u64,
    /// SPP misconfigurations handled.
    pub spp_misconfigurations: u64,
    /// Writes denied, by rules or by access maps.
    pub denied: u64,
    /// Writes let through and reported.
    pub reported: u64,
    /// Exits answered with a retry because a translation was stale.
    pub retries: u64,
    /// Exits answered with "emulate the write".
    pub emulations: u64,
    /// Pages that became dirty.
    pub dirtied: u64,
    /// Traps that opened a tracked sub-page.
    pub tracked: u64,
}

/// Hears of what the series traced; all methods do nothing unless written.
///
/// The engine itself never logs (`docs/spp.md` 2.2 names the three trace points).
pub trait Observer {
    /// Access maps were set; the maps are those of `pages` in order (`kvm_spp_set_subpages`).
    fn maps_set(&mut self, pages: GfnRange, maps: &[AccessMap]) {
        let _ = (pages, maps);
    }

    /// An SPP miss or misconfiguration happened (`kvm_spp_induced_exit`); all 64 bits of the
    /// qualification are given (D51).
    fn spp_event(&mut self, gpa: Gpa, qualification: SppQualification) {
        let _ = (gpa, qualification);
    }

    /// A write was denied (`kvm_spp_induced_page_fault`).
    fn denied(&mut self, denial: &Denial) {
        let _ = denial;
    }
}

impl Observer for () {}

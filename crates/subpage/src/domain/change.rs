//! A change of permission, seen as a change of what the SPPT holds.

use super::tables::Change;
use crate::access::{AccessMap, SppVector, expand_into};
use crate::address::{Gfn, GfnRange};
use crate::track::{Arming, Tracking};

/// Permission changes by `permit`, from the old map of a page to its new one; tracking follows.
///
/// The SPPT holds permission minus what is armed. This is the one place that puts the two together
/// and takes them apart.
pub(super) struct Repermit<'a, P, K> {
    pub(super) tracking: &'a mut Tracking,
    pub(super) arming: Arming,
    pub(super) permit: P,
    /// Whether `permit` answers with the old map for each of some pages.
    pub(super) keeps: K,
}

impl<P: Fn(Gfn, AccessMap) -> AccessMap, K> Repermit<'_, P, K> {
    fn permitted(&self, gfn: Gfn, old: SppVector) -> AccessMap {
        if self.tracking.is_empty() {
            return (self.permit)(gfn, old.to_map());
        }
        let armed = match self.arming {
            Arming::Begin => AccessMap::NONE,
            _ => self.tracking.armed(gfn),
        };
        (self.permit)(gfn, old.to_map() | armed)
    }
}

impl<P, K> Change for Repermit<'_, P, K>
where
    P: Fn(Gfn, AccessMap) -> AccessMap,
    K: Fn(GfnRange) -> bool,
{
    fn vector(&self, gfn: Gfn, old: SppVector) -> SppVector {
        let permitted = self.permitted(gfn, old);
        if self.tracking.is_empty() {
            return permitted.into();
        }
        let (armed, _) = self.tracking.outcome(gfn, permitted, self.arming);
        (permitted & !armed).into()
    }

    fn uniform(&self, pages: GfnRange, old: SppVector) -> Option<SppVector> {
        let (from, to) = match self.arming {
            // What is tracked and open with nothing recorded is about to be armed.
            Arming::Begin | Arming::Keep => (SppVector::ALL, SppVector::NONE),
            Arming::Disarm => (SppVector::NONE, SppVector::ALL),
            Arming::Rearm | Arming::Written(_) => return None,
        };
        let same = old == from && self.tracking.is_initial(pages) && (self.keeps)(pages);
        same.then_some(to)
    }

    fn applied(&mut self, gfn: Gfn, old: SppVector, _new: SppVector) {
        // The record of what is tracked no more goes as a whole.
        if self.tracking.is_empty() || self.arming == Arming::Disarm {
            return;
        }
        let permitted = self.permitted(gfn, old);
        let (armed, written) = self.tracking.outcome(gfn, permitted, self.arming);
        self.tracking.note(gfn, armed, written);
    }
}

/// Access maps are set in a domain without rules and without tracking: the maps are the permission.
pub(super) struct SetMaps<'a> {
    pub(super) first: Gfn,
    pub(super) maps: &'a [AccessMap],
}

impl SetMaps<'_> {
    /// Position of a page of the call among its maps.
    fn at(&self, gfn: Gfn) -> usize {
        usize::try_from(gfn.as_u64() - self.first.as_u64()).expect("a page of the call")
    }
}

impl Change for SetMaps<'_> {
    fn vector(&self, gfn: Gfn, _old: SppVector) -> SppVector {
        self.maps[self.at(gfn)].into()
    }

    #[inline]
    fn vectors(&self, first: Gfn, _old: &[u64], new: &mut [u64]) {
        let at = self.at(first);
        expand_into(&self.maps[at..at + new.len()], new);
    }

    fn applied_run(&mut self, _first: Gfn, _old: &[u64], _new: &[u64]) {}
}

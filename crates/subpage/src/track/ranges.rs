//! The tracked ranges and what is armed and written in each page.

use alloc::vec::Vec;

use crate::access::AccessMap;
use crate::address::{ByteRange, Gfn};
use crate::frames::OutOfFrames;

/// Number that names a tracked range; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrackId(pub u64);

/// A page with written sub-pages, as a harvest reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrittenPage {
    /// The page.
    pub gfn: Gfn,
    /// Its sub-pages that were written since the harvest before.
    pub written: AccessMap,
}

/// One tracked page. `armed` and `written` are disjoint, and both lie in the tracked range.
#[derive(Debug, Clone, Copy)]
struct TrackedPage {
    armed: AccessMap,
    written: AccessMap,
}

/// A tracked range; no page belongs to two.
#[derive(Debug)]
pub(crate) struct TrackedRange {
    pub(crate) id: TrackId,
    pub(crate) range: ByteRange,
    pages: Vec<TrackedPage>,
}

impl TrackedRange {
    fn page(&self, gfn: Gfn) -> Option<&TrackedPage> {
        let offset = gfn.as_u64().checked_sub(self.range.first().gfn().as_u64())?;
        self.pages.get(usize::try_from(offset).ok()?)
    }

    fn page_mut(&mut self, gfn: Gfn) -> Option<&mut TrackedPage> {
        let offset = gfn.as_u64().checked_sub(self.range.first().gfn().as_u64())?;
        self.pages.get_mut(usize::try_from(offset).ok()?)
    }

    /// The tracked sub-pages of a page.
    fn tracked(&self, gfn: Gfn) -> AccessMap {
        self.range.in_page(gfn).map_or(AccessMap::NONE, AccessMap::touched_by)
    }

    /// The pages with written sub-pages.
    pub(crate) fn written(&self) -> impl Iterator<Item = WrittenPage> + '_ {
        self.range
            .gfns()
            .iter()
            .zip(&self.pages)
            .filter(|(_, page)| !page.written.is_empty())
            .map(|(gfn, page)| WrittenPage { gfn, written: page.written })
    }
}

/// What a change of permission does about tracking in the pages it passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arming {
    /// Arm what is permitted, tracked and not yet written.
    Keep,
    /// Forget what was written and arm everything permitted and tracked.
    Rearm,
    /// Arm nothing.
    Disarm,
    /// As `Keep`, but note the sub-pages that these bytes touch as written first.
    Written(ByteRange),
}

/// All tracked ranges, ascending.
#[derive(Debug, Default)]
pub(crate) struct Tracking {
    ranges: Vec<TrackedRange>,
}

impl Tracking {
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &TrackedRange> {
        self.ranges.iter()
    }

    fn find(&self, gfn: Gfn) -> Option<&TrackedRange> {
        let after = self.ranges.partition_point(|tracked| tracked.range.first().gfn() <= gfn);
        let tracked = &self.ranges[after.checked_sub(1)?];
        tracked.range.gfns().contains(gfn).then_some(tracked)
    }

    pub(crate) fn get(&self, id: TrackId) -> Option<&TrackedRange> {
        self.ranges.iter().find(|tracked| tracked.id == id)
    }

    /// The tracked range that has a page in common with `range`.
    pub(crate) fn overlap(&self, range: ByteRange) -> Option<TrackId> {
        let pages = range.gfns();
        self.ranges
            .iter()
            .find(|tracked| tracked.range.gfns().intersection(pages).is_some())
            .map(|tracked| tracked.id)
    }

    /// Adds a range of which nothing is armed and `written` is written.
    pub(crate) fn add(
        &mut self,
        id: TrackId,
        range: ByteRange,
        written: impl Fn(Gfn) -> AccessMap,
    ) -> Result<(), OutOfFrames> {
        let mut pages = Vec::new();
        let count = usize::try_from(range.gfns().pages()).map_err(|_| OutOfFrames)?;
        pages.try_reserve_exact(count).map_err(|_| OutOfFrames)?;
        pages.extend(
            range
                .gfns()
                .iter()
                .map(|gfn| TrackedPage { armed: AccessMap::NONE, written: written(gfn) }),
        );
        self.ranges.try_reserve(1).map_err(|_| OutOfFrames)?;
        let at = self.ranges.partition_point(|other| other.range.first() < range.first());
        self.ranges.insert(at, TrackedRange { id, range, pages });
        Ok(())
    }

    pub(crate) fn remove(&mut self, id: TrackId) {
        self.ranges.retain(|tracked| tracked.id != id);
    }

    /// The sub-pages of a page that are armed now.
    pub(crate) fn armed(&self, gfn: Gfn) -> AccessMap {
        self.find(gfn).and_then(|tracked| tracked.page(gfn)).map_or(AccessMap::NONE, |p| p.armed)
    }

    /// The sub-pages of a page that were written since the last harvest.
    pub(crate) fn written(&self, gfn: Gfn) -> AccessMap {
        self.find(gfn).and_then(|tracked| tracked.page(gfn)).map_or(AccessMap::NONE, |p| p.written)
    }

    /// What `arming` leaves of the record of a page whose permission is `permitted`:
    /// the sub-pages to arm and those that count as written.
    pub(crate) fn outcome(
        &self,
        gfn: Gfn,
        permitted: AccessMap,
        arming: Arming,
    ) -> (AccessMap, AccessMap) {
        let Some(tracked) = self.find(gfn) else { return (AccessMap::NONE, AccessMap::NONE) };
        let of_page = tracked.tracked(gfn);
        let before = self.written(gfn);
        let written = match arming {
            Arming::Keep | Arming::Disarm => before,
            Arming::Rearm => AccessMap::NONE,
            Arming::Written(bytes) => {
                let touched = bytes.in_page(gfn).map_or(AccessMap::NONE, AccessMap::touched_by);
                before | (touched & of_page & permitted)
            }
        };
        let armed = match arming {
            Arming::Disarm => AccessMap::NONE,
            _ => permitted & of_page & !written,
        };
        (armed, written)
    }

    /// Notes what was applied to a page.
    pub(crate) fn note(&mut self, gfn: Gfn, armed: AccessMap, written: AccessMap) {
        let after = self.ranges.partition_point(|tracked| tracked.range.first().gfn() <= gfn);
        let Some(at) = after.checked_sub(1) else { return };
        if let Some(page) = self.ranges[at].page_mut(gfn) {
            *page = TrackedPage { armed, written };
        }
    }
}

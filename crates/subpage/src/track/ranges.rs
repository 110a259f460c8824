//! The tracked ranges and what is armed and written in each page.

use alloc::vec::Vec;

use crate::access::AccessMap;
use crate::address::{ByteRange, Gfn, GfnRange};
use crate::frames::OutOfFrames;

use super::records::{Records, TrackedPage};

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

/// A tracked range; no page belongs to two.
#[derive(Debug)]
pub(crate) struct TrackedRange {
    pub(crate) id: TrackId,
    pub(crate) range: ByteRange,
    records: Records,
}

impl TrackedRange {
    /// The pages with written sub-pages.
    pub(crate) fn written(&self) -> impl Iterator<Item = WrittenPage> + '_ {
        self.records.written()
    }
}

/// What a change of permission does about tracking in the pages it passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arming {
    /// Tracking begins: nothing is armed yet. Arm everything permitted and tracked.
    Begin,
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

    /// Adds a range, all of which is recorded as armed.
    pub(crate) fn add(&mut self, id: TrackId, range: ByteRange) -> Result<(), OutOfFrames> {
        let records = Records::new(range)?;
        self.ranges.try_reserve(1).map_err(|_| OutOfFrames)?;
        let at = self.ranges.partition_point(|other| other.range.first() < range.first());
        self.ranges.insert(at, TrackedRange { id, range, records });
        Ok(())
    }

    /// Makes room for what a change of the pages of `range` may have to record.
    pub(crate) fn reserve(&mut self, range: GfnRange) -> Result<(), OutOfFrames> {
        let from = self.ranges.partition_point(|it| it.range.last().gfn() < range.first());
        let tracked = self.ranges[from..].iter_mut();
        for tracked in tracked.take_while(|it| it.range.first().gfn() <= range.last()) {
            tracked.records.reserve(range)?;
        }
        Ok(())
    }

    /// Whether all of `pages` is tracked and armed, and nothing else is recorded of it.
    pub(crate) fn is_initial(&self, pages: GfnRange) -> bool {
        self.find(pages.first()).is_some_and(|tracked| tracked.records.is_initial(pages))
    }

    pub(crate) fn remove(&mut self, id: TrackId) {
        self.ranges.retain(|tracked| tracked.id != id);
    }

    /// The sub-pages of a page that are armed now.
    pub(crate) fn armed(&self, gfn: Gfn) -> AccessMap {
        self.find(gfn).map_or(AccessMap::NONE, |tracked| tracked.records.page(gfn).armed)
    }

    /// Whether a write of these bytes, which lie in one page, has something to note.
    pub(crate) fn is_news(&self, bytes: ByteRange) -> bool {
        let gfn = bytes.first().gfn();
        let Some(tracked) = self.find(gfn) else { return false };
        let touched = AccessMap::touched_by(bytes) & tracked.records.tracked(gfn);
        !(touched & !tracked.records.page(gfn).written).is_empty()
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
        let of_page = tracked.records.tracked(gfn);
        let before = tracked.records.page(gfn).written;
        let written = match arming {
            Arming::Keep | Arming::Disarm => before,
            Arming::Begin | Arming::Rearm => AccessMap::NONE,
            Arming::Written(bytes) => {
                let touched = bytes.in_page(gfn).map_or(AccessMap::NONE, AccessMap::touched_by);
                before | (touched & of_page)
            }
        };
        let armed = match arming {
            Arming::Disarm => AccessMap::NONE,
            _ => permitted & of_page & !written,
        };
        (armed, written)
    }

    /// Notes what was applied to a page, for which [room](Self::reserve) was made.
    pub(crate) fn note(&mut self, gfn: Gfn, armed: AccessMap, written: AccessMap) {
        let after = self.ranges.partition_point(|tracked| tracked.range.first().gfn() <= gfn);
        let Some(at) = after.checked_sub(1) else { return };
        let tracked = &mut self.ranges[at];
        if tracked.range.gfns().contains(gfn) {
            tracked.records.set(gfn, TrackedPage { armed, written });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Gpa;

    /// A write is news for the tracked sub-pages that it touches and that were not written.
    #[test]
    fn news_are_tracked_and_not_yet_written() {
        let bytes = |first, length| ByteRange::new(Gpa::new(first), length).expect("a range");
        let mut tracking = Tracking::default();
        // Sub-pages 1 to 3 of page 2.
        tracking.add(TrackId(1), bytes(0x2080, 0x180)).expect("memory");
        let page = Gfn::new(2);
        tracking.reserve(GfnRange::new(page, 1).expect("a range")).expect("memory");
        tracking.note(page, AccessMap::from_bits(0b1010), AccessMap::from_bits(0b100));
        for (write, news) in [
            (bytes(0x2000, 1), false),
            (bytes(0x2000, 0x81), true),
            (bytes(0x2080, 8), true),
            (bytes(0x2100, 8), false),
            (bytes(0x2100, 0x81), true),
            (bytes(0x2200, 8), false),
            (bytes(0x1080, 8), false),
            (bytes(0x3080, 8), false),
        ] {
            assert_eq!(tracking.is_news(write), news, "{write:?}");
        }
    }
}

//! Access tracking at 128 bytes: arm, harvest, re-arm, stop.

use alloc::vec::Vec;

use super::change::Repermit;
use super::dirty::Pending;
use super::rules::page_ranges;
use super::{Domain, DomainError, Observer};
use crate::address::{ByteRange, GfnRange};
use crate::frames::{OutOfFrames, TableFrames};
use crate::invalidate::Invalidation;
use crate::track::{Arming, TrackId, WrittenPage};

impl<F: TableFrames, O: Observer> Domain<F, O> {
    /// Starts tracking which sub-pages of `range` are written.
    ///
    /// A sub-page that a rule or a map holds is not armed: writes to it trap anyway, and those that
    /// are let through are noted. Costs an L1 table for each 2 MiB region, and eight bytes a page where
    /// something is written or restricted.
    ///
    /// Memory with several names is tracked by its original one, whichever is given, and written under
    /// any.
    ///
    /// Fails if permissions are not enabled, only some pages of the range lie in an alias (or they lie
    /// in two), the range lies beyond the processor's width or shares a page with another tracked one,
    /// or memory is short.
    pub fn track(&mut self, range: ByteRange) -> Result<(TrackId, Invalidation), DomainError> {
        let sppt = self.enabled()?;
        self.check_width(range.gfns())?;
        let range = self.names.original_bytes(range)?;
        if let Some(other) = self.tracking.overlap(range) {
            return Err(DomainError::AlreadyTracked(other));
        }
        let id = TrackId(self.next_track);
        let after = self.next_track.checked_add(1).ok_or(OutOfFrames)?;
        self.tracking.add(id, range)?;
        let armed = self
            .reserve_restricted(range.gfns())
            .map_err(DomainError::from)
            .and_then(|()| self.rearm(sppt, &[range.gfns()], Arming::Begin));
        match armed {
            Ok(token) => {
                self.next_track = after;
                Ok((id, token))
            }
            Err(error) => {
                self.tracking.remove(id);
                Err(error)
            }
        }
    }

    /// Takes the pages of a tracked range that were written since the last harvest, with their
    /// written sub-pages, and arms those again.
    ///
    /// No write is lost in between: one that still gets through an old translation falls into a
    /// sub-page that this harvest reports, and the harvest can be read only when no such translation
    /// is left. Fails if there is no such range or memory is short.
    pub fn harvest_written(
        &mut self,
        id: TrackId,
    ) -> Result<(Pending<Vec<WrittenPage>>, Invalidation), DomainError> {
        let sppt = self.enabled()?;
        let tracked = self.tracking.get(id).ok_or(DomainError::NoSuchTracking(id))?;
        let mut written = Vec::new();
        for page in tracked.written() {
            written.try_reserve(1).map_err(|_| OutOfFrames)?;
            written.push(page);
        }
        let ranges = page_ranges(written.iter().map(|page| GfnRange::one(page.gfn)))?;
        let token = self.rearm(sppt, &ranges, Arming::Rearm)?;
        Ok((Pending::new(&token, written), token))
    }

    /// How many pages a harvest of a tracked range would report now; fails if there is no such range.
    ///
    /// A caller with little room asks first: a harvest that is taken cannot be put back.
    pub fn written_pages(&self, id: TrackId) -> Result<usize, DomainError> {
        let tracked = self.tracking.get(id).ok_or(DomainError::NoSuchTracking(id))?;
        Ok(tracked.written().count())
    }

    /// Stops tracking a range; its sub-pages become writable again as far as permitted.
    ///
    /// Fails if there is no such range or memory is short.
    pub fn untrack(&mut self, id: TrackId) -> Result<Invalidation, DomainError> {
        let sppt = self.enabled()?;
        let range = self.tracking.get(id).ok_or(DomainError::NoSuchTracking(id))?.range;
        let token = self.rearm(sppt, &[range.gfns()], Arming::Disarm)?;
        self.tracking.remove(id);
        Ok(token)
    }

    /// Makes room for the records of restricted pages: not all of what is tracked there is armed.
    fn reserve_restricted(&mut self, range: GfnRange) -> Result<(), OutOfFrames> {
        let mut from = Some(range.first());
        while let Some(gfn) = from.and_then(|from| self.next_restricted(from)) {
            if gfn > range.last() {
                break;
            }
            self.tracking.reserve(GfnRange::one(gfn))?;
            from = gfn.checked_add(1);
        }
        Ok(())
    }

    /// Changes what is armed, and no permission.
    pub(super) fn rearm(
        &mut self,
        sppt: crate::sppt::Sppt,
        ranges: &[GfnRange],
        arming: Arming,
    ) -> Result<Invalidation, DomainError> {
        let mut change = Repermit {
            tracking: &mut self.tracking,
            arming,
            permit: |_, old| old,
            keeps: |_| true,
        };
        let tables = (sppt, &self.slots);
        Ok(self.names.change(&mut self.tables, tables, ranges, &mut change)?)
    }

    /// The tracked ranges with their numbers, ascending.
    pub fn tracked(&self) -> impl Iterator<Item = (TrackId, ByteRange)> {
        self.tracking.iter().map(|tracked| (tracked.id, tracked.range))
    }
}

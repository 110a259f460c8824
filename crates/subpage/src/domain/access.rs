//! Access maps: get and set over any number of pages.

use super::change::{Repermit, SetMaps};
use super::names::RulesByName;
use super::{Domain, DomainError, Observer};
use crate::access::AccessMap;
use crate::address::{ByteRange, Gfn, GfnRange};
use crate::frames::TableFrames;
use crate::invalidate::Invalidation;
use crate::slots::AddressSpace;
use crate::sppt::{Known, Sppt, behind};
use crate::track::Arming;

impl<F: TableFrames, O: Observer> Domain<F, O> {
    /// Reads what may be written of `maps.len()` pages from `first`.
    ///
    /// The answer is the effective permission: access maps and rules together. Fails if permissions
    /// are not enabled, if there is no page, if a page lies beyond the processor's width, or if one
    /// belongs to no slot of the normal address space; `maps` is then untouched.
    pub fn get_access(&self, first: Gfn, maps: &mut [AccessMap]) -> Result<(), DomainError> {
        let sppt = self.enabled()?;
        let range = self.pages_of_call(first, maps.len())?;
        sppt.read_run(&self.tables.frames, range, maps);
        if !self.names.is_empty() && !self.tracking.is_empty() {
            for (map, gfn) in maps.iter_mut().zip(range.iter()) {
                *map = *map | self.tracking.armed(self.names.original(gfn));
            }
            return Ok(());
        }
        for tracked in self.tracking.iter() {
            let Some(common) = tracked.range.gfns().intersection(range) else { continue };
            for gfn in common.iter() {
                let map = &mut maps[index_in_call(first, gfn)];
                *map = *map | self.tracking.armed(gfn);
            }
        }
        Ok(())
    }

    /// Sets the access maps of `maps.len()` pages from `first`, all or none.
    ///
    /// What rules deny stays denied; the map decides everything else, and comes into force there if
    /// a rule goes. Fails like [`get_access`](Self::get_access), if memory is short, and if a map
    /// would permit what a locked rule denies. A tightening is in force when the returned token is
    /// completed.
    pub fn set_access(
        &mut self,
        first: Gfn,
        maps: &[AccessMap],
    ) -> Result<Invalidation, DomainError> {
        let sppt = self.enabled()?;
        let range = self.pages_of_call(first, maps.len())?;
        let of_call = |gfn: Gfn| maps[index_in_call(first, gfn)];
        let names = &self.names;
        let map = |gfn: Gfn| {
            if names.is_empty() {
                return of_call(gfn);
            }
            // Of a call that names a page twice, what one map denies is denied.
            let given = names.all(gfn).filter(|name| range.contains(*name));
            given.fold(AccessMap::ALL, |map, name| map & of_call(name))
        };
        let rules = RulesByName { rules: &self.rules, names };
        let ranges = [range];
        let ranges = names.originals(&ranges)?;
        let mut masked = None;
        // Where no rule reaches, the maps are the permission.
        let ruled = !self.rules.is_empty()
            && (!names.is_empty() || self.rules.touches(ByteRange::of_pages(range)));
        if ruled {
            for gfn in ranges.iter().flat_map(|range| range.iter()) {
                let (locked, rule) = rules.locked(gfn);
                if let Some(rule) = rule.filter(|_| !(map(gfn) & locked).is_empty()) {
                    return Err(DomainError::Locked(rule));
                }
            }
            masked = Some(self.masked.replaced(&ranges, |gfn| !map(gfn) & !rules.permitted(gfn))?);
        }
        let plain = !ruled && self.tracking.is_empty() && names.is_empty();
        let token = if plain {
            let mut change = SetMaps { first, maps };
            self.tables.change(sppt, &self.slots, &ranges, &mut change)?
        } else {
            for range in ranges.iter() {
                self.tracking.reserve(*range)?;
            }
            let mut change = Repermit {
                tracking: &mut self.tracking,
                arming: Arming::Keep,
                permit: |gfn, _| map(gfn) & rules.permitted(gfn),
                keeps: |_| false,
            };
            names.change(&mut self.tables, (sppt, &self.slots), &ranges, &mut change)?
        };
        if let Some(masked) = masked {
            self.masked = masked;
        }
        self.counters.sets += 1;
        self.observer.maps_set(range, maps);
        Ok(token)
    }

    /// The first page at or after `from` that is restricted or has an armed sub-page.
    pub fn next_restricted(&self, from: Gfn) -> Option<Gfn> {
        self.tables.sppt.and_then(|sppt| sppt.next_restricted(&self.tables.frames, from))
    }

    /// The runs of pages in `range` that are restricted or have an armed sub-page, ascending; two may
    /// adjoin. Costs what is not the same for a whole region, whatever the size of the range.
    pub fn restricted_runs(&self, range: GfnRange) -> impl Iterator<Item = GfnRange> {
        let runs = move |sppt: Sppt| sppt.restricted_runs(&self.tables.frames, range);
        self.tables.sppt.into_iter().flat_map(runs)
    }

    /// The pages in `range` of which a rule or a map denies something, ascending: restricted ones, but
    /// for those that are only tracked. Costs what [`restricted_runs`](Self::restricted_runs) costs.
    pub fn denying_pages(&self, range: GfnRange) -> impl Iterator<Item = Gfn> {
        let tracked_only = |known: Known, pages: GfnRange| match known {
            Known::Restricted(restricted) => !restricted || self.tracking.is_initial(pages),
            Known::In(_) => false,
        };
        let mut rest = Some(range);
        let pieces = core::iter::from_fn(move || {
            let now = rest?;
            let (piece, known) = self.tables.sppt?.known(&self.tables.frames, now);
            rest = behind(now, piece.last());
            Some((piece, known))
        });
        pieces
            .filter(move |&(piece, known)| !tracked_only(known, piece))
            .flat_map(|(piece, _)| piece.iter())
            .filter(|&gfn| !self.permitted(gfn).is_unrestricted())
    }

    /// What may be written of one page, whether or not a slot holds it.
    pub fn permitted(&self, gfn: Gfn) -> AccessMap {
        let stored = self.tables.vector(gfn).to_map();
        if self.tracking.is_empty() {
            stored
        } else {
            stored | self.tracking.armed(self.names.original(gfn))
        }
    }

    /// What the access map alone permits of a page, as it is underneath rules.
    pub fn base_map(&self, gfn: Gfn) -> AccessMap {
        let masked = self.masked.of(self.names.original(gfn));
        let under_rules = !self.rules_by_name().permitted(gfn) & !masked;
        self.permitted(gfn) | under_rules
    }

    fn pages_of_call(&self, first: Gfn, count: usize) -> Result<GfnRange, DomainError> {
        let range = GfnRange::new(first, count as u64)?;
        self.check_width(range)?;
        match self.slots[AddressSpace::Normal.index()].first_gap(range) {
            Some(gfn) => Err(DomainError::NoSlot(gfn)),
            None => Ok(range),
        }
    }
}

/// Position of a page among those of a call that begins at `first`; the page is one of them (D22,
/// D49: the series' index and page drifted apart).
#[allow(clippy::cast_possible_truncation)] // The call's maps are a slice, so its indices fit.
fn index_in_call(first: Gfn, gfn: Gfn) -> usize {
    (gfn.as_u64() - first.as_u64()) as usize
}

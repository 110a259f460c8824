//! Frames that name memory again: adding and removing aliases.

use alloc::vec::Vec;

use super::change::Repermit;
use super::names::{Alias, Names, RulesByName, in_page_of, moved, moved_run};
use super::rules::page_ranges;
use super::{Domain, DomainError, Observer};
use crate::access::AccessMap;
use crate::address::{ByteRange, Gfn, GfnRange};
use crate::frames::{OutOfFrames, TableFrames};
use crate::invalidate::Invalidation;
use crate::slots::{AddressSpace, SlotError, SlotFlags, SlotId};
use crate::sppt::Sppt;
use crate::track::Arming;

impl<F: TableFrames, O: Observer> Domain<F, O> {
    /// Adds a slot whose memory is that of the frames from `original` on: the host has mapped it a
    /// second time, at `pages`.
    ///
    /// What is guarded or mapped under either name is guarded under both from now on, and a rule that
    /// is added for one name holds for all. Access maps of the two are joined: what one denies stays
    /// denied. Tracking goes by the original name, and so does a harvest. The dirty log of a slot is
    /// about writes by its own addresses.
    ///
    /// Fails as [`add_slot`](Self::add_slot) does; if the original frames do not all belong to slots
    /// of the normal address space; if one of them is an alias, or one of `pages` is an original of
    /// one ([`SlotError::Alias`]); if a page of `pages` is tracked; and if memory is short. A
    /// tightening is in force when the token is completed: only then may the guest use the new name.
    pub fn add_alias(
        &mut self,
        space: AddressSpace,
        id: SlotId,
        pages: GfnRange,
        flags: SlotFlags,
        original: Gfn,
    ) -> Result<Invalidation, DomainError> {
        let sppt = self.enabled()?;
        let originals = GfnRange::new(original, pages.pages())?;
        self.check_width(originals)?;
        if let Some(gap) = self.slots[AddressSpace::Normal.index()].first_gap(originals) {
            return Err(DomainError::NoSlot(gap));
        }
        self.names.check_alone(pages)?;
        if let Some(alias) = self.names.among(originals).next() {
            return Err(SlotError::Alias(alias.slot.1).into());
        }
        if originals.intersection(pages).is_some() {
            return Err(SlotError::Alias(id).into());
        }
        if let Some(tracked) = self.tracking.overlap(ByteRange::of_pages(pages)) {
            return Err(DomainError::AlreadyTracked(tracked));
        }
        let alias = Alias { slot: (space, id), pages, originals };
        let names = self.names.with(alias)?;
        let restricted = self.restricted_originals(alias)?;
        let bases = self.base_maps(&restricted, Some(alias))?;
        self.add_slot(space, id, pages, flags)?;
        self.rename(sppt, names, &restricted, &[], &bases).inspect_err(|_| {
            self.slots[space.index()].take(id);
        })
    }

    /// Forgets the alias that a slot is, if it is one: its memory keeps what holds it by other names.
    pub(super) fn forget_alias(
        &mut self,
        space: AddressSpace,
        id: SlotId,
    ) -> Result<Invalidation, DomainError> {
        let Some(alias) = self.names.of_slot(space, id) else { return Ok(Invalidation::none()) };
        let sppt = self.enabled()?;
        let names = self.names.without(alias.slot)?;
        let restricted = self.restricted_originals(alias)?;
        let bases = self.base_maps(&restricted, None)?;
        let mut left = Vec::new();
        left.try_reserve_exact(restricted.len()).map_err(|_| OutOfFrames)?;
        left.extend(restricted.iter().filter_map(|run| alias.naming(*run)));
        self.rename(sppt, names, &restricted, &left, &bases)
    }

    /// The original name of a frame's memory: the frame itself unless it belongs to an
    /// [alias](Self::add_alias).
    pub fn original(&self, gfn: Gfn) -> Gfn {
        self.names.original(gfn)
    }

    /// All names of the memory of some bytes, as runs of bytes: those themselves first.
    pub fn names_of(&self, bytes: ByteRange) -> impl Iterator<Item = ByteRange> + '_ {
        let further = (!self.names.is_empty()).then_some(bytes).into_iter();
        let further = further.flat_map(ByteRange::pages).flat_map(|piece| {
            let own = piece.first().gfn();
            let others = self.names.all(own).filter(move |&name| name != own);
            others.map(move |name| in_page_of(piece, name))
        });
        core::iter::once(bytes).chain(further)
    }

    /// All names of the memory of some pages, as runs of pages that may overlap: those themselves first.
    /// Costs the aliases that share memory with the pages.
    pub fn names_of_pages(&self, pages: GfnRange) -> impl Iterator<Item = GfnRange> + '_ {
        let names = &self.names;
        let by_alias = names.among(pages).filter_map(move |alias| alias.originals_of(pages));
        let originals = core::iter::once(pages).chain(by_alias);
        originals.flat_map(move |run| {
            let further = names.naming(run).filter_map(move |alias| alias.naming(run));
            core::iter::once(run).chain(further)
        })
    }

    /// The original frames of an alias that are restricted or armed by either name.
    fn restricted_originals(&self, alias: Alias) -> Result<Vec<GfnRange>, OutOfFrames> {
        let by_alias = self
            .restricted_runs(alias.pages)
            .map(|run| moved_run(run, alias.pages, alias.originals));
        page_ranges(self.restricted_runs(alias.originals).chain(by_alias))
    }

    /// What access maps permit of pages, by all names that they have now and by one that they get.
    fn base_maps(
        &self,
        originals: &[GfnRange],
        more: Option<Alias>,
    ) -> Result<Vec<(Gfn, AccessMap)>, OutOfFrames> {
        let mut bases = Vec::new();
        for gfn in originals.iter().flat_map(|range| range.iter()) {
            let other = more.map_or(AccessMap::ALL, |alias| {
                self.base_map(moved(gfn, alias.originals, alias.pages))
            });
            bases.try_reserve(1).map_err(|_| OutOfFrames)?;
            bases.push((gfn, self.base_map(gfn) & other));
        }
        Ok(bases)
    }

    /// Takes other names into force, for memory of which `bases` tells what access maps permit; the
    /// frames of `left` are names no longer.
    fn rename(
        &mut self,
        sppt: Sppt,
        names: Names,
        originals: &[GfnRange],
        left: &[GfnRange],
        bases: &[(Gfn, AccessMap)],
    ) -> Result<Invalidation, DomainError> {
        let base = |gfn: Gfn| match bases.binary_search_by_key(&gfn, |(page, _)| *page) {
            Ok(at) => bases[at].1,
            Err(_) => AccessMap::ALL,
        };
        let rules = RulesByName { rules: &self.rules, names: &names };
        let everywhere = names.with_aliases(originals)?;
        let ranges = page_ranges(originals.iter().chain(left).copied())?;
        let masked = self.masked.replaced(&everywhere, |gfn| {
            if names.original(gfn) == gfn {
                !base(gfn) & !rules.permitted(gfn)
            } else {
                AccessMap::NONE
            }
        })?;
        for range in &ranges {
            self.tracking.reserve(*range)?;
        }
        let mut change = Repermit {
            tracking: &mut self.tracking,
            arming: Arming::Keep,
            permit: |gfn, _| base(gfn) & rules.permitted(gfn),
            keeps: |_| false,
        };
        let token = names.change(&mut self.tables, (sppt, &self.slots), &ranges, &mut change)?;
        self.masked = masked;
        self.names = names;
        Ok(token)
    }
}

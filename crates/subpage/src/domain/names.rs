//! Several names of one memory: guest frames behind which a host maps the same memory twice.
//!
//! Rules belong to memory, and a guest-physical address is one of its names. The frames of an
//! ordinary slot are *original* names. The frames of an [alias](super::Domain::add_alias) are further names
//! of memory that original frames name already; none of them is itself an original of others.
//!
//! What is stored about memory (access maps, tracking) is stored for its original frames. Rules stay
//! with the addresses that they were added for, and guard the memory behind them under every name.
//! The SPPT holds the same vector under each name of a page, because a processor looks a vector up by
//! the address that the guest used: so a decision that the vector permits looks at no other name, and
//! only a write that is denied under one name asks for the rules of the others.

use alloc::borrow::Cow;
use alloc::vec::Vec;

use super::DomainError;
use super::rules::page_ranges;
use super::tables::{Change, Slots, Tables};
use crate::access::{AccessMap, SppVector};
use crate::address::{ByteRange, Gfn, GfnRange, Gpa};
use crate::frames::{OutOfFrames, TableFrames};
use crate::invalidate::Invalidation;
use crate::rules::{ActiveRule, RuleId, RuleSet};
use crate::slots::{AddressSpace, SlotError, SlotId};
use crate::sppt::{Sppt, stored_vector};

/// A run of frames that name memory again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alias {
    pub(super) slot: (AddressSpace, SlotId),
    pub(super) pages: GfnRange,
    pub(super) originals: GfnRange,
}

impl Alias {
    /// Those of its frames that name memory of `originals`.
    pub(super) fn naming(&self, originals: GfnRange) -> Option<GfnRange> {
        let common = originals.intersection(self.originals)?;
        Some(moved_run(common, self.originals, self.pages))
    }

    /// The original frames of those of its frames that are among `pages`.
    pub(super) fn originals_of(&self, pages: GfnRange) -> Option<GfnRange> {
        let common = pages.intersection(self.pages)?;
        Some(moved_run(common, self.pages, self.originals))
    }
}

/// The frame of `to` at the place that `gfn` has in `from`.
pub(super) fn moved(gfn: Gfn, from: GfnRange, to: GfnRange) -> Gfn {
    Gfn::new(to.first().as_u64() + (gfn.as_u64() - from.first().as_u64()))
}

/// The same for a run of frames.
pub(super) fn moved_run(run: GfnRange, from: GfnRange, to: GfnRange) -> GfnRange {
    GfnRange::new(moved(run.first(), from, to), run.pages()).expect("a run within another")
}

/// The same bytes of another page.
pub(super) fn in_page_of(bytes: ByteRange, gfn: Gfn) -> ByteRange {
    let first = gfn.gpa().checked_add(bytes.first().page_offset().into());
    let there = first.and_then(|first| ByteRange::new(first, bytes.bytes()).ok());
    there.expect("bytes of one page lie in any page")
}

/// Which frames name the same memory.
///
/// A question about some pages costs the aliases that share memory with them, and a logarithm of all
/// others.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Ascending and disjoint.
    aliases: Vec<Alias>,
    /// The same, ascending by the first original frame; several may have originals in common.
    by_original: Vec<Alias>,
    /// Pages of the longest.
    longest: u64,
}

impl Names {
    /// Whether each frame is the only name of its memory.
    pub(super) const fn is_empty(&self) -> bool {
        self.aliases.is_empty()
    }

    /// The original name of a frame's memory: the frame itself unless it is an alias.
    #[inline]
    pub(super) fn original(&self, gfn: Gfn) -> Gfn {
        if self.is_empty() {
            return gfn;
        }
        let after = self.aliases.partition_point(|alias| alias.pages.first() <= gfn);
        match after.checked_sub(1).map(|at| &self.aliases[at]) {
            Some(alias) if alias.pages.contains(gfn) => moved(gfn, alias.pages, alias.originals),
            _ => gfn,
        }
    }

    /// All names of the memory of `gfn`, the original one first.
    pub(super) fn all(&self, gfn: Gfn) -> impl Iterator<Item = Gfn> + '_ {
        let original = self.original(gfn);
        let others = self
            .naming(GfnRange::one(original))
            .map(move |alias| moved(original, alias.originals, alias.pages));
        core::iter::once(original).chain(others)
    }

    /// The aliases with a frame among `pages`, ascending.
    pub(super) fn among(&self, pages: GfnRange) -> impl Iterator<Item = &Alias> {
        let from = self.aliases.partition_point(|alias| alias.pages.last() < pages.first());
        self.aliases[from..].iter().take_while(move |alias| alias.pages.first() <= pages.last())
    }

    /// The aliases that name memory of `originals` again.
    pub(super) fn naming(&self, originals: GfnRange) -> impl Iterator<Item = &Alias> {
        // No alias that begins before that reaches so far.
        let first = originals.first().as_u64().saturating_sub(self.longest);
        let before = |alias: &Alias| alias.originals.first().as_u64() < first;
        let from = self.by_original.partition_point(before);
        self.by_original[from..]
            .iter()
            .take_while(move |alias| alias.originals.first() <= originals.last())
            .filter(move |alias| alias.originals.last() >= originals.first())
    }

    /// The original names of all memory of `ranges`, ascending and disjoint as they are.
    pub(super) fn originals<'a>(
        &self,
        ranges: &'a [GfnRange],
    ) -> Result<Cow<'a, [GfnRange]>, OutOfFrames> {
        if self.is_empty() {
            return Ok(Cow::Borrowed(ranges));
        }
        let mut runs = Vec::new();
        for &range in ranges {
            let mut rest = Some(range);
            while let Some(now) = rest {
                let alias = self.among(now).next();
                let here = alias.and_then(|alias| alias.pages.intersection(now));
                let (piece, original) = match (alias, here) {
                    (Some(alias), Some(here)) if here.first() == now.first() => {
                        (here, moved_run(here, alias.pages, alias.originals))
                    }
                    (_, Some(here)) => {
                        let pages = here.first().as_u64() - now.first().as_u64();
                        let before = GfnRange::new(now.first(), pages).expect("a part of a range");
                        (before, before)
                    }
                    (_, None) => (now, now),
                };
                runs.try_reserve(1).map_err(|_| OutOfFrames)?;
                runs.push(original);
                rest = crate::sppt::behind(now, piece.last());
            }
        }
        Ok(Cow::Owned(page_ranges(runs.into_iter())?))
    }

    /// The original names of bytes, if they are all original or all in one alias.
    pub(super) fn original_bytes(&self, bytes: ByteRange) -> Result<ByteRange, DomainError> {
        let pages = bytes.gfns();
        match self.among(pages).next() {
            None => Ok(bytes),
            Some(alias) if alias.pages.covers(pages) => {
                let first = moved(pages.first(), alias.pages, alias.originals).gpa();
                let first = first.checked_add(bytes.first().page_offset().into());
                let first = first.expect("an address of the original frames");
                Ok(ByteRange::new(first, bytes.bytes())?)
            }
            Some(alias) => Err(SlotError::Alias(alias.slot.1).into()),
        }
    }

    /// Those of the ranges of original names whose memory has further names, ascending.
    fn shared(&self, originals: &[GfnRange]) -> Result<Vec<GfnRange>, OutOfFrames> {
        page_ranges(originals.iter().flat_map(|range| {
            self.naming(*range).filter_map(|alias| range.intersection(alias.originals))
        }))
    }

    /// The ranges of original names with all further names of theirs.
    pub(super) fn with_aliases(
        &self,
        originals: &[GfnRange],
    ) -> Result<Vec<GfnRange>, OutOfFrames> {
        let further = originals
            .iter()
            .flat_map(|range| self.naming(*range).filter_map(|alias| alias.naming(*range)));
        page_ranges(originals.iter().copied().chain(further))
    }

    /// Whether each of some frames is the only name of its memory.
    fn are_alone(&self, pages: GfnRange) -> bool {
        self.check_alone(pages).is_ok()
    }

    /// The same names and one more alias.
    pub(super) fn with(&self, alias: Alias) -> Result<Self, OutOfFrames> {
        Self::of(self.aliases.iter().copied().chain([alias]), self.aliases.len() + 1)
    }

    /// The same names without one alias.
    pub(super) fn without(&self, slot: (AddressSpace, SlotId)) -> Result<Self, OutOfFrames> {
        let rest = self.aliases.iter().copied().filter(|alias| alias.slot != slot);
        Self::of(rest, self.aliases.len())
    }

    /// Names of so many aliases at most.
    fn of(aliases: impl Iterator<Item = Alias>, most: usize) -> Result<Self, OutOfFrames> {
        let mut names = Self::default();
        for list in [&mut names.aliases, &mut names.by_original] {
            list.try_reserve_exact(most).map_err(|_| OutOfFrames)?;
        }
        names.aliases.extend(aliases);
        names.by_original.extend_from_slice(&names.aliases);
        names.aliases.sort_unstable_by_key(|alias| alias.pages.first());
        names.by_original.sort_unstable_by_key(|alias| alias.originals.first());
        names.longest = names.aliases.iter().map(|alias| alias.pages.pages()).max().unwrap_or(0);
        Ok(names)
    }

    /// The alias that a slot is.
    pub(super) fn of_slot(&self, space: AddressSpace, id: SlotId) -> Option<Alias> {
        self.aliases.iter().find(|alias| alias.slot == (space, id)).copied()
    }

    /// Refuses frames that name the same memory as others: those of an alias and its originals.
    pub(super) fn check_alone(&self, pages: GfnRange) -> Result<(), SlotError> {
        match self.among(pages).chain(self.naming(pages)).next() {
            Some(alias) => Err(SlotError::Alias(alias.slot.1)),
            None => Ok(()),
        }
    }

    /// Refuses the slot of frames whose memory has further names.
    pub(super) fn check_not_original(&self, pages: GfnRange) -> Result<(), SlotError> {
        match self.naming(pages).next() {
            Some(alias) => Err(SlotError::Alias(alias.slot.1)),
            None => Ok(()),
        }
    }

    /// Changes the memory of `originals` under all its names.
    pub(super) fn change<F: TableFrames>(
        &self,
        tables: &mut Tables<F>,
        (sppt, slots): (Sppt, &Slots),
        originals: &[GfnRange],
        change: &mut impl Change,
    ) -> Result<Invalidation, OutOfFrames> {
        if self.is_empty() {
            return tables.change(sppt, slots, originals, change);
        }
        self.change_everywhere(tables, (sppt, slots), originals, change)
    }

    /// The same where some memory has several names.
    ///
    /// Whatever name the table holds it under, a page's new vector follows from its old one, which is
    /// the same under each (where names change it is not, and must not matter): so the change is told of
    /// such pages only after the tables hold all of it.
    /// Pages with one name are changed as if there were no others.
    #[cold]
    fn change_everywhere<F: TableFrames>(
        &self,
        tables: &mut Tables<F>,
        (sppt, slots): (Sppt, &Slots),
        originals: &[GfnRange],
        change: &mut impl Change,
    ) -> Result<Invalidation, OutOfFrames> {
        let shared = self.shared(originals)?;
        if shared.is_empty() {
            return tables.change(sppt, slots, originals, change);
        }
        let everywhere = self.with_aliases(originals)?;
        let pages: u64 = shared.iter().map(|range| range.pages()).sum();
        let mut before = Vec::new();
        before
            .try_reserve_exact(usize::try_from(pages).map_err(|_| OutOfFrames)?)
            .map_err(|_| OutOfFrames)?;
        for gfn in shared.iter().flat_map(|range| range.iter()) {
            before.push((gfn, sppt.vector(&tables.frames, gfn)));
        }
        let mut mirrored = Mirrored { names: self, change: &mut *change };
        let token = tables.change(sppt, slots, &everywhere, &mut mirrored)?;
        for (gfn, old) in before {
            change.applied(gfn, old, sppt.vector(&tables.frames, gfn));
        }
        Ok(token)
    }
}

/// A change of original frames, for all names.
struct Mirrored<'a, C> {
    names: &'a Names,
    change: &'a mut C,
}

impl<C> Mirrored<'_, C> {
    /// Whether each of so many frames from `first` on is the only name of its memory.
    fn are_alone(&self, first: Gfn, pages: usize) -> bool {
        GfnRange::new(first, pages as u64).is_ok_and(|pages| self.names.are_alone(pages))
    }
}

impl<C: Change> Change for Mirrored<'_, C> {
    fn vector(&self, gfn: Gfn, old: SppVector) -> SppVector {
        self.change.vector(self.names.original(gfn), old)
    }

    fn vectors(&self, first: Gfn, old: &[u64], new: &mut [u64]) {
        if self.are_alone(first, old.len()) {
            return self.change.vectors(first, old, new);
        }
        for ((old, new), gfn) in old.iter().zip(new).zip((first.as_u64()..).map(Gfn::new)) {
            *new = self.vector(gfn, stored_vector(*old)).bits();
        }
    }

    fn uniform(&self, pages: GfnRange, old: SppVector) -> Option<SppVector> {
        self.names.are_alone(pages).then(|| self.change.uniform(pages, old)).flatten()
    }

    fn applied(&mut self, gfn: Gfn, old: SppVector, new: SppVector) {
        if self.are_alone(gfn, 1) {
            self.change.applied(gfn, old, new);
        }
    }

    fn applied_run(&mut self, first: Gfn, old: &[u64], new: &[u64]) {
        if self.are_alone(first, old.len()) {
            return self.change.applied_run(first, old, new);
        }
        for ((old, new), gfn) in old.iter().zip(new).zip((first.as_u64()..).map(Gfn::new)) {
            self.applied(gfn, stored_vector(*old), stored_vector(*new));
        }
    }
}

/// A rule that guards some of the bytes of a write.
#[derive(Clone, Copy)]
pub(super) struct Guarding<'a> {
    pub(super) active: &'a ActiveRule,
    /// Those bytes by the name that the rule has for them.
    guarded: ByteRange,
    /// The same bytes by the name that the write uses.
    written: ByteRange,
}

impl Guarding<'_> {
    /// The first byte of the rule that the write touches, by the name that the write uses.
    #[inline]
    pub(super) fn at(&self) -> Gpa {
        let first = self.active.rule.range.first().max(self.guarded.first());
        let offset = first.as_u64() - self.guarded.first().as_u64();
        Gpa::new(self.written.first().as_u64() + offset)
    }
}

/// Rules, as they guard memory under all its names.
#[derive(Clone, Copy)]
pub(super) struct RulesByName<'a> {
    pub(super) rules: &'a RuleSet,
    pub(super) names: &'a Names,
}

impl<'a> RulesByName<'a> {
    /// What the rules leave writable of a page's memory.
    pub(super) fn permitted(self, gfn: Gfn) -> AccessMap {
        self.permitted_but(gfn, None)
    }

    /// The same without the rule `but`.
    pub(super) fn permitted_but(self, gfn: Gfn, but: Option<RuleId>) -> AccessMap {
        if self.names.is_empty() {
            return self.rules.permitted_but(gfn, but);
        }
        let each = self.names.all(gfn).map(|name| self.rules.permitted_but(name, but));
        each.fold(AccessMap::ALL, |map, one| map & one)
    }

    /// The sub-pages of a page's memory that a locked rule holds, with one such rule.
    pub(super) fn locked(self, gfn: Gfn) -> (AccessMap, Option<RuleId>) {
        if self.names.is_empty() {
            return self.rules.locked(gfn);
        }
        self.names.all(gfn).fold((AccessMap::NONE, None), |(map, rule), name| {
            let (more, other) = self.rules.locked(name);
            (map | more, rule.or(other))
        })
    }

    /// The strongest rule that guards one of the bytes under any name, and where.
    #[inline]
    pub(super) fn strongest(self, bytes: ByteRange) -> Option<Guarding<'a>> {
        if self.names.is_empty() {
            let active = self.rules.strongest(bytes)?;
            return Some(Guarding { active, guarded: bytes, written: bytes });
        }
        self.strongest_by_any_name(bytes)
    }

    #[cold]
    fn strongest_by_any_name(self, bytes: ByteRange) -> Option<Guarding<'a>> {
        let mut strongest: Option<Guarding<'a>> = None;
        for written in bytes.pages() {
            for name in self.names.all(written.first().gfn()) {
                let guarded = in_page_of(written, name);
                let Some(active) = self.rules.strongest(guarded) else { continue };
                if strongest.is_none_or(|best| best.active.rank() < active.rank()) {
                    strongest = Some(Guarding { active, guarded, written });
                }
            }
        }
        strongest
    }
}

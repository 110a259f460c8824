//! The decision about a write: one function for the processor's, the trapped, the emulated and the
//! device model's (design decision 6, contract C4).

use super::names::{Guarding, in_page_of};
use super::{Domain, DomainError, Observer};
use crate::access::{SUB_PAGE_BYTES, SppVector};
use crate::address::{ByteRange, Gpa};
use crate::frames::TableFrames;
use crate::rules::{Action, RuleId};
use crate::slots::AddressSpace;

/// What a write meets.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Every byte may be written.
    Allowed,
    /// Every byte may be written, and the write is to be reported.
    Reported {
        /// The strongest rule that wants to know.
        rule: RuleId,
        /// The first byte of it that the write touches.
        at: Gpa,
    },
    /// No byte may be written.
    Denied {
        /// The rule that denies it; `None` if an access map does.
        rule: Option<RuleId>,
        /// The first byte that may not be written.
        at: Gpa,
        /// The rule wants the guest stopped.
        stop: bool,
    },
    /// Sub-page permissions do not apply: the slot is read-only for the guest.
    NotEligible {
        /// The first byte in such a slot.
        at: Gpa,
    },
    /// A byte belongs to no slot.
    NotMapped {
        /// The first such byte.
        at: Gpa,
    },
}

impl Decision {
    /// Whether the write may take effect.
    pub const fn permits(self) -> bool {
        matches!(self, Self::Allowed | Self::Reported { .. })
    }

    /// The decision about two parts of one write: what stops either stops both.
    ///
    /// A write across a page end may go to two guest-physical pages that are not neighbours; decide
    /// each part and join them before any byte is written.
    pub const fn and(self, next: Self) -> Self {
        match (self, next) {
            (first, Self::Allowed) => first,
            (first, _) if !first.permits() => first,
            (first @ Self::Reported { .. }, second) if second.permits() => first,
            (_, second) => second,
        }
    }
}

/// A denied write, as it is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denial {
    /// First byte of the write.
    pub gpa: Gpa,
    /// Guest-linear address of that byte, if the processor gave one.
    pub gla: Option<u64>,
    /// Length of the write in bytes, if known: an EPT violation does not tell (D37).
    pub length: Option<u64>,
    /// First byte that may not be written.
    pub at: Gpa,
    /// The rule that denies it; `None` if an access map does.
    pub rule: Option<RuleId>,
    /// The rule wants the guest stopped.
    pub stop: bool,
    /// The write was part of delivering an event: there is no instruction to skip (D35).
    pub during_delivery: bool,
}

impl<F: TableFrames, O: Observer> Domain<F, O> {
    /// Decides about a write without any effect.
    ///
    /// Looks at every sub-page the write touches, across page ends. The hardware's own rule is the
    /// same: a write proceeds only if the bit of every touched sub-page is 1 (SDM Vol. 3C,
    /// "Determining an Access's Sub-Page Write Permission"; `docs/spp.md` 1.7).
    #[inline]
    pub fn check_write(&self, space: AddressSpace, write: ByteRange) -> Decision {
        if write.first().gfn() != write.last().gfn() {
            return self.check_pages(space, write);
        }
        self.check_in_page(space, write)
    }

    /// Whether a write is permitted and nothing is to be noted about it: the most frequent case of a page
    /// that traps, in one look.
    ///
    /// That is so for bytes of one page of which no sub-page is restricted, in a slot that is not
    /// read-only and does not log, if nothing is tracked. Such a write touches no sub-page of a rule
    /// either, and [`authorize_write`](Self::authorize_write) would change nothing.
    #[inline]
    pub fn is_open(&self, space: AddressSpace, write: ByteRange) -> bool {
        self.unrecorded(space, write)
            .is_some_and(|vector| SppVector::touched_by(write).without(vector) == SppVector::NONE)
    }

    /// The vector of the page of a write of which, if it is permitted, nothing is to be noted: it lies in
    /// one page, of a slot that is not read-only and does not log, and nothing is tracked.
    #[inline]
    pub(super) fn unrecorded(&self, space: AddressSpace, write: ByteRange) -> Option<SppVector> {
        let gfn = write.first().gfn();
        if write.last().gfn() != gfn || !self.tracking.is_empty() {
            return None;
        }
        let slot = self.slots[space.index()].find(gfn)?;
        (!slot.read_only && slot.dirty.is_none()).then(|| self.tables.vector(gfn))
    }

    /// Decides about a write across page ends.
    #[cold]
    fn check_pages(&self, space: AddressSpace, write: ByteRange) -> Decision {
        let decision = write
            .pages()
            .map(|bytes| self.check_in_page(space, bytes))
            .fold(Decision::Allowed, Decision::and);
        self.by_strongest(decision, &[write])
    }

    /// The decision about a write of several runs, of which each alone met `decision` at most: of all
    /// rules that it touches, in whichever page, the strongest decides.
    pub(super) fn by_strongest(&self, decision: Decision, runs: &[ByteRange]) -> Decision {
        if !matches!(decision, Decision::Denied { .. } | Decision::Reported { .. }) {
            return decision;
        }
        // Of equals the last is the greatest: the first run.
        let rules = self.rules_by_name();
        let touched = runs.iter().rev().filter_map(|&run| rules.strongest(run));
        match touched.max_by_key(|found| found.active.rank()) {
            Some(found) if found.active.effect() >= Action::Deny || decision.permits() => {
                by_rule(found)
            }
            _ => decision,
        }
    }

    #[inline]
    fn check_in_page(&self, space: AddressSpace, bytes: ByteRange) -> Decision {
        let gfn = bytes.first().gfn();
        let Some(slot) = self.slots[space.index()].find(gfn) else {
            return Decision::NotMapped { at: bytes.first() };
        };
        if slot.read_only {
            return Decision::NotEligible { at: bytes.first() };
        }
        self.check_in_slot(bytes)
    }

    /// Decides about bytes of one page, which a slot holds that is not read-only.
    #[inline]
    pub(super) fn check_in_slot(&self, bytes: ByteRange) -> Decision {
        let gfn = bytes.first().gfn();
        self.decide(bytes, SppVector::touched_by(bytes).without(self.tables.vector(gfn)))
    }

    /// The same, where the SPPT denies these of its sub-pages.
    #[inline]
    pub(super) fn decide(&self, bytes: ByteRange, denied: SppVector) -> Decision {
        // Asked before `denied`: the domain answers the same every time, and what remains then needs
        // no branch if the caller wants to know no more than yes or no.
        if !self.rules.is_empty() || !self.tracking.is_empty() {
            return self.reason(bytes, denied);
        }
        if denied == SppVector::NONE { Decision::Allowed } else { denied_by_map(bytes, denied) }
    }

    /// Who denies a write to sub-pages of its page that the SPPT denies, if anybody does.
    ///
    /// A sub-page may be denied there because it is armed. A rule may be finer than a sub-page: a
    /// write that touches none of its bytes is let through.
    fn reason(&self, bytes: ByteRange, denied: SppVector) -> Decision {
        if denied == SppVector::NONE {
            return Decision::Allowed;
        }
        let gfn = bytes.first().gfn();
        let denied = if self.tracking.is_empty() {
            denied
        } else {
            let armed = self.tracking.armed(self.names.original(gfn));
            SppVector::from(denied.to_map() & !armed)
        };
        if denied == SppVector::NONE {
            return Decision::Allowed;
        }
        if self.rules.is_empty() {
            return denied_by_map(bytes, denied);
        }
        let rules = self.rules_by_name();
        let strongest = rules.strongest(bytes);
        if let Some(found) = strongest.filter(|found| found.active.effect() >= Action::Deny) {
            return by_rule(found);
        }
        let masked = self.masked.of(self.names.original(gfn));
        let by_map = denied.to_map() & (rules.permitted(gfn) | masked);
        if !by_map.is_empty() {
            return denied_by_map(bytes, by_map.into());
        }
        strongest.map_or(Decision::Allowed, by_rule)
    }

    /// Decides about a write that software is about to do for the guest (an emulated instruction, a
    /// device model), and does what goes with it.
    ///
    /// If the answer permits the write, its pages are marked dirty and its sub-pages written, and
    /// an "allow once" rule is spent: the caller must now write all the bytes, before it lets go of
    /// the lock on the domain (contract C1). Otherwise it must write none. On an error, which only
    /// memory for tables can cause, it must write none either.
    pub fn authorize_write(
        &mut self,
        space: AddressSpace,
        write: ByteRange,
    ) -> Result<Decision, DomainError> {
        let decision = self.check_write(space, write);
        self.commit(space, &[write], decision)
    }

    /// Does what goes with `decision` about the runs of a write.
    pub(super) fn commit(
        &mut self,
        space: AddressSpace,
        runs: &[ByteRange],
        decision: Decision,
    ) -> Result<Decision, DomainError> {
        if decision.permits() {
            for &run in runs {
                self.note_written(space, run)?;
            }
        }
        match decision {
            Decision::Reported { .. } => {
                for &run in runs {
                    if self.names.is_empty() {
                        self.rules.spend(run);
                    } else {
                        self.spend_by_any_name(run);
                    }
                }
                self.counters.reported += 1;
            }
            Decision::Denied { rule, at, stop } => self.report(&Denial {
                gpa: runs[0].first(),
                gla: None,
                length: Some(runs.iter().map(|run| run.bytes()).sum()),
                at,
                rule,
                stop,
                during_delivery: false,
            }),
            Decision::Allowed | Decision::NotEligible { .. } | Decision::NotMapped { .. } => {}
        }
        Ok(decision)
    }

    /// Spends the "allow once" rules that guard bytes of a write under any name.
    #[cold]
    fn spend_by_any_name(&mut self, run: ByteRange) {
        for piece in run.pages() {
            for name in self.names.all(piece.first().gfn()) {
                self.rules.spend(in_page_of(piece, name));
            }
        }
    }

    pub(super) fn report(&mut self, denial: &Denial) {
        self.counters.denied += 1;
        self.observer.denied(denial);
    }
}

/// What a rule that the write touches makes of it.
fn by_rule(found: Guarding<'_>) -> Decision {
    let (active, at) = (found.active, found.at());
    if active.effect() < Action::Deny {
        return Decision::Reported { rule: active.id, at };
    }
    Decision::Denied { rule: Some(active.id), at, stop: active.effect() == Action::Stop }
}

/// The denial of a write by the access map of its page, which denies some sub-page.
fn denied_by_map(bytes: ByteRange, denied: SppVector) -> Decision {
    let page = bytes.first().gfn().gpa().as_u64();
    let first = page + u64::from(denied.bits().trailing_zeros() / 2) * SUB_PAGE_BYTES;
    Decision::Denied { rule: None, at: Gpa::new(first).max(bytes.first()), stop: false }
}

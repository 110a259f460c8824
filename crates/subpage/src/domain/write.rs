//! A guest write: the bytes it touches, in one or two runs, and a write that is decided and pending.

use arrayvec::ArrayVec;

use super::{Decision, Domain, DomainError, Observer};
use crate::address::ByteRange;
use crate::frames::TableFrames;
use crate::slots::AddressSpace;

/// All bytes of one write: one run, or two where it goes on in a page that is not the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteParts(ArrayVec<ByteRange, 2>);

impl WriteParts {
    /// A write in one run.
    pub fn one(bytes: ByteRange) -> Self {
        Self([bytes].into_iter().collect())
    }

    /// A write of `first` and then `second`; one run if they adjoin.
    pub fn two(first: ByteRange, second: ByteRange) -> Self {
        if first.last().checked_add(1) == Some(second.first())
            && let Ok(whole) = ByteRange::new(first.first(), first.bytes() + second.bytes())
        {
            return Self::one(whole);
        }
        Self([first, second].into_iter().collect())
    }

    /// The runs, in the order of the write: one or two.
    pub fn runs(&self) -> &[ByteRange] {
        &self.0
    }

    /// The first run.
    pub fn first(&self) -> ByteRange {
        self.0[0]
    }

    /// The last run; the first if there is one.
    pub fn last(&self) -> ByteRange {
        self.0[self.0.len() - 1]
    }

    /// How many bytes all runs have.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|run| run.bytes()).sum()
    }
}

impl<F: TableFrames, O: Observer> Domain<F, O> {
    /// Decides about all bytes of a write as one, without any effect.
    ///
    /// What stops one run stops both (contract C3).
    pub fn check_write_parts(&self, space: AddressSpace, write: &WriteParts) -> Decision {
        let runs = write.runs();
        let decision = runs
            .iter()
            .map(|&run| self.check_write(space, run))
            .reduce(Decision::and)
            .expect("a write has a run");
        if runs.len() == 1 { decision } else { self.by_strongest(decision, runs) }
    }

    /// Like [`authorize_write`](Self::authorize_write), for all bytes of a write as one.
    pub fn authorize_write_parts(
        &mut self,
        space: AddressSpace,
        write: &WriteParts,
    ) -> Result<Decision, DomainError> {
        let decision = self.check_write_parts(space, write);
        self.commit(space, write.runs(), decision)
    }

    /// Decides about a write, and leaves it to the caller whether it is done.
    ///
    /// For callers that have work between the two, like finding out what the write would store.
    pub fn consider_write<'a>(
        &'a mut self,
        space: AddressSpace,
        write: &'a WriteParts,
    ) -> Considered<'a, F, O> {
        let decision = self.check_write_parts(space, write);
        Considered { domain: self, space, write, decision }
    }
}

/// A write that has been decided about and is not done yet. Nothing can change the domain meanwhile.
#[must_use = "a write that is not committed must not be done"]
pub struct Considered<'a, F: TableFrames, O: Observer> {
    domain: &'a mut Domain<F, O>,
    space: AddressSpace,
    write: &'a WriteParts,
    decision: Decision,
}

impl<F: TableFrames, O: Observer> Considered<'_, F, O> {
    /// The decision.
    pub const fn decision(&self) -> Decision {
        self.decision
    }

    /// Does what goes with the decision, as [`authorize_write`](Domain::authorize_write) does, with
    /// the same duties for the caller and the same error.
    pub fn commit(self) -> Result<Decision, DomainError> {
        self.domain.commit(self.space, self.write.runs(), self.decision)
    }

    /// The same for a part of the write, of which every byte is [allowed](Decision::Allowed): so it
    /// is for any part.
    ///
    /// # Panics
    /// If something else was decided, or `part` is not within one run of the write.
    pub fn commit_part(self, part: ByteRange) -> Result<(), DomainError> {
        assert_eq!(self.decision, Decision::Allowed, "what is not allowed whole has no parts");
        let has = |run: &ByteRange| run.first() <= part.first() && part.last() <= run.last();
        assert!(self.write.runs().iter().any(has), "a part lies within its write");
        self.domain.commit(self.space, &[part], self.decision).map(|_| ())
    }
}

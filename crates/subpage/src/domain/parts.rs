//! A write whose bytes do not adjoin: one instruction, two guest-physical runs, one decision.

use arrayvec::ArrayVec;

use super::{Decision, Denial, Domain, DomainError, Observer};
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
        if let &[whole] = write.runs() {
            return self.authorize_write(space, whole);
        }
        let decision = self.check_write_parts(space, write);
        if let Decision::Denied { rule, at, stop } = decision {
            self.report(&Denial {
                gpa: write.first().first(),
                gla: None,
                length: Some(write.bytes()),
                at,
                rule,
                stop,
                during_delivery: false,
            });
        }
        if !decision.permits() {
            return Ok(decision);
        }
        for &run in write.runs() {
            self.note_written(space, run)?;
        }
        if matches!(decision, Decision::Reported { .. }) {
            self.counters.reported += 1;
            for &run in write.runs() {
                self.rules.spend(run);
            }
        }
        Ok(decision)
    }
}

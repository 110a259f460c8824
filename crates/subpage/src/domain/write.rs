//! A guest write: the bytes it touches, in one or two runs, and a write that is decided and pending.

use arrayvec::ArrayVec;

use super::{Decision, Domain, DomainError, Observer};
use crate::address::ByteRange;
use crate::frames::TableFrames;
use crate::slots::AddressSpace;

/// All bytes of one write: one run, or two where it goes on in a page that is not the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteParts {
    runs: ArrayVec<ByteRange, 2>,
    /// The bytes of the runs that are written, one bit each; `None` if all are.
    written: Option<u64>,
}

/// Most bytes of a write that leaves some of them as they are: those of the longest vector register.
const MASKED_BYTES: u64 = 64;

/// Most runs of written bytes: every second one of them, and a page end.
const MASKED_RUNS: usize = 33;

impl WriteParts {
    /// A write in one run.
    pub fn one(bytes: ByteRange) -> Self {
        Self { runs: [bytes].into_iter().collect(), written: None }
    }

    /// A write of `first` and then `second`; one run if they adjoin.
    pub fn two(first: ByteRange, second: ByteRange) -> Self {
        if first.last().checked_add(1) == Some(second.first())
            && let Ok(whole) = ByteRange::new(first.first(), first.bytes() + second.bytes())
        {
            return Self::one(whole);
        }
        Self { runs: [first, second].into_iter().collect(), written: None }
    }

    /// The same write under a mask: it writes only the bytes whose bit in `written` is set, the lowest
    /// bit for the first byte.
    ///
    /// Only those bytes are decided about and noted.
    ///
    /// # Panics
    /// If the write has more than 64 bytes, or its first or last byte is not written.
    #[must_use]
    pub fn under_mask(self, written: u64) -> Self {
        let bytes = self.bytes();
        assert!(bytes <= MASKED_BYTES, "a mask is for the elements of one register");
        let span = 64 - u64::from(written.leading_zeros());
        assert!(written & 1 != 0 && span == bytes, "the ends of a write are written");
        Self { written: Some(written), ..self }
    }

    /// The runs, in the order of the write: one or two. A mask does not show.
    pub fn runs(&self) -> &[ByteRange] {
        &self.runs
    }

    /// Does `work` with the runs of bytes that are written, in the order of the write.
    pub fn with_written<T>(&self, work: impl FnOnce(&[ByteRange]) -> T) -> T {
        match self.written {
            None => work(&self.runs),
            Some(written) => work(&self.under(written)),
        }
    }

    #[cold]
    fn under(&self, written: u64) -> ArrayVec<ByteRange, MASKED_RUNS> {
        let mut runs = ArrayVec::new();
        let mut before = 0;
        for run in &self.runs {
            let mut at = 0;
            while at < run.bytes() {
                let rest = written >> (before + at);
                let skip = u64::from(rest.trailing_zeros());
                at += skip;
                if at >= run.bytes() {
                    break;
                }
                let bytes = u64::from((rest >> skip).trailing_ones()).min(run.bytes() - at);
                let first = run.first().checked_add(at).expect("a byte of the run");
                runs.push(ByteRange::new(first, bytes).expect("bytes of the run"));
                at += bytes;
            }
            before += run.bytes();
        }
        runs
    }

    /// All of the write, if it is one run without a mask.
    #[inline]
    fn single(&self) -> Option<ByteRange> {
        match (self.written, self.runs.as_slice()) {
            (None, &[run]) => Some(run),
            _ => None,
        }
    }

    /// The first run.
    pub fn first(&self) -> ByteRange {
        self.runs[0]
    }

    /// The last run; the first if there is one.
    pub fn last(&self) -> ByteRange {
        self.runs[self.runs.len() - 1]
    }

    /// How many bytes all runs have, those under a mask included.
    pub fn bytes(&self) -> u64 {
        match self.runs.as_slice() {
            [run] => run.bytes(),
            runs => runs.iter().map(|run| run.bytes()).sum(),
        }
    }
}

impl<F: TableFrames, O: Observer> Domain<F, O> {
    /// Decides about all bytes of a write as one, without any effect.
    ///
    /// What stops one run stops both (contract C3).
    pub fn check_write_parts(&self, space: AddressSpace, write: &WriteParts) -> Decision {
        if let Some(run) = write.single() {
            return self.check_write(space, run);
        }
        write.with_written(|runs| self.check_runs(space, runs))
    }

    fn check_runs(&self, space: AddressSpace, runs: &[ByteRange]) -> Decision {
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
        write.with_written(|runs| self.commit(space, runs, decision))
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
        let Self { domain, space, write, decision } = self;
        write.with_written(|runs| domain.commit(space, runs, decision))
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

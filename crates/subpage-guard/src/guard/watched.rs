//! Bytes that a debugger watches: beside the rules, none of which they are. Nothing is denied for them,
//! and nothing reported; their pages trap, and a store that touches them is noted.

use std::collections::BTreeMap;

use subpage::address::{ByteRange, Gpa};
use subpage::domain::WriteParts;

use super::Guard;
use crate::memory::GuestMemory;
use crate::trap::{PageSet, TrapError, pages_of};

/// Most stores that are noted until somebody takes notice: every processor stops at its first.
const MOST_NOTED: usize = 4096;

/// Watched bytes.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// First byte to last byte; apart from each other.
    runs: BTreeMap<u64, u64>,
    pages: PageSet,
    /// What was written of them, and by which processor.
    noted: Vec<(u32, ByteRange)>,
}

impl Watched {
    fn new(ranges: impl IntoIterator<Item = ByteRange>) -> Self {
        let mut sorted: Vec<(u64, u64)> = ranges
            .into_iter()
            .map(|range| (range.first().as_u64(), range.last().as_u64()))
            .collect();
        sorted.sort_unstable();
        let mut runs: Vec<(u64, u64)> = Vec::with_capacity(sorted.len());
        for (first, last) in sorted {
            match runs.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => runs.push((first, last)),
            }
        }
        let pages = pages_of(runs.iter().filter_map(|&run| range_of(run)).map(ByteRange::gfns));
        Self { runs: runs.into_iter().collect(), pages, noted: Vec::new() }
    }

    pub(super) const fn pages(&self) -> &PageSet {
        &self.pages
    }

    /// Whether a byte of a range is watched.
    fn touches(&self, range: ByteRange) -> bool {
        let (first, last) = (range.first().as_u64(), range.last().as_u64());
        self.runs.range(..=last).next_back().is_some_and(|(_, end)| first <= *end)
    }
}

fn range_of((first, last): (u64, u64)) -> Option<ByteRange> {
    ByteRange::new(Gpa::try_new(first).ok()?, last - first + 1).ok()
}

impl Guard {
    /// Whether anything is watched.
    pub fn is_watched(&self) -> bool {
        !self.watched.runs.is_empty()
    }

    /// Watches these bytes, all of which are memory, in place of what was watched before. On an error
    /// nothing has changed.
    ///
    /// No processor may be in the guest.
    pub fn watch(&mut self, ram: &impl GuestMemory, ranges: &[ByteRange]) -> Result<(), TrapError> {
        let named = ranges.iter().flat_map(|range| self.domain.names_of(*range));
        let watched = Watched::new(named);
        self.traps.close(ram, &watched.pages)?;
        let before = std::mem::replace(&mut self.watched, watched);
        let gone = before.pages.difference(&self.watched.pages);
        self.settle(ram, &gone);
        Ok(())
    }

    /// Takes note of a write that has happened, if somebody watches its bytes.
    pub fn note_write(&mut self, vcpu: u32, write: &WriteParts) {
        if self.watched.runs.is_empty() {
            return;
        }
        for run in write.runs() {
            if self.watched.touches(*run) && self.watched.noted.len() < MOST_NOTED {
                self.watched.noted.push((vcpu, *run));
            }
        }
    }

    /// Whether a processor has written watched bytes since they were last taken.
    pub fn has_noted(&self, vcpu: u32) -> bool {
        self.watched.noted.iter().any(|(by, _)| *by == vcpu)
    }

    /// What a processor has written of watched bytes since the last call.
    pub fn take_noted(&mut self, vcpu: u32) -> Vec<ByteRange> {
        let (own, others) =
            self.watched.noted.drain(..).partition::<Vec<_>, _>(|(by, _)| *by == vcpu);
        self.watched.noted = others;
        own.into_iter().map(|(_, range)| range).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, bytes: u64) -> ByteRange {
        ByteRange::new(Gpa::new(first), bytes).expect("a range")
    }

    /// Each byte by itself, against runs that overlap, adjoin, and lie apart.
    #[test]
    fn a_store_is_noted_if_it_touches_a_watched_byte() {
        let ranges = [(0x100, 1), (0x102, 4), (0x104, 8), (0x10c, 2), (0x1ffe, 4), (0x200, 1)];
        let watched = Watched::new(ranges.map(|(first, bytes)| range(first, bytes)));
        let is_watched =
            |at| ranges.iter().any(|&(first, bytes)| (first..first + bytes).contains(&at));
        for at in (0xf0..0x210).chain(0x1ff0..0x2010) {
            for bytes in [1, 2, 8, 16] {
                let touches = (at..at + bytes).any(is_watched);
                assert_eq!(watched.touches(range(at, bytes)), touches, "{bytes} bytes at {at:#x}");
            }
        }
        assert_eq!(watched.runs.len(), 4);
        let pages: Vec<_> = watched.pages().runs().map(|run| run.first().as_u64()).collect();
        assert_eq!(pages, [0]);
    }
}

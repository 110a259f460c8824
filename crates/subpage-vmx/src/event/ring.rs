//! The events that the guest has not read yet.

use alloc::boxed::Box;
use alloc::vec::Vec;

use subpage::frames::OutOfFrames;
use subpage_trap::Event;
use zerocopy::FromZeros as _;

use super::record::fill;
use crate::abi::EventRecord;

/// Events that the ring holds: 256, 42 KiB.
pub const CAPACITY: usize = 256;

/// The oldest unread events. A full ring drops the newest: what began an attack is kept, and its
/// repetitions are counted.
#[derive(Debug)]
pub struct Ring {
    /// [`CAPACITY`] places. Records are written where they stay: moving one takes longer than that.
    places: Box<[EventRecord]>,
    /// Place of the oldest.
    first: usize,
    waiting: usize,
    last_sequence: u64,
    lost: u64,
}

impl Ring {
    /// An empty ring; takes all the memory that it will ever use.
    pub fn new() -> Result<Self, OutOfFrames> {
        let mut places = Vec::new();
        places.try_reserve_exact(CAPACITY).map_err(|_| OutOfFrames)?;
        places.resize(CAPACITY, EventRecord::new_zeroed());
        let places = places.into_boxed_slice();
        Ok(Self { places, first: 0, waiting: 0, last_sequence: 0, lost: 0 })
    }

    /// Adds an event, or counts it as lost if the ring is full; returns its number, which it has
    /// either way.
    pub fn push<B: AsRef<[u8]>>(&mut self, event: &Event<B>) -> u64 {
        self.last_sequence += 1;
        if self.waiting < CAPACITY {
            let place = (self.first + self.waiting) % CAPACITY;
            fill(&mut self.places[place], event, self.last_sequence);
            self.waiting += 1;
        } else {
            self.lost += 1;
        }
        self.last_sequence
    }

    /// How many events wait to be read.
    pub const fn len(&self) -> usize {
        self.waiting
    }

    /// Whether no event waits.
    pub const fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    /// How many events were lost since the ring was made.
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// The waiting events, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &EventRecord> {
        let (wrapped, oldest) = self.places.split_at(self.first);
        oldest.iter().chain(wrapped).take(self.waiting)
    }

    /// Forgets the `count` oldest events; all, if there are fewer.
    pub fn consume(&mut self, count: usize) {
        let count = count.min(self.waiting);
        self.first = (self.first + count) % CAPACITY;
        self.waiting -= count;
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use zerocopy::IntoBytes as _;

    use super::super::{record, samples};
    use super::*;

    fn sequences(ring: &Ring) -> Vec<u64> {
        ring.iter().map(|record| record.sequence.get()).collect()
    }

    #[test]
    fn a_full_ring_keeps_the_oldest_and_counts() {
        let mut ring = Ring::new().expect("memory");
        assert!(ring.is_empty());
        for number in 1..=CAPACITY as u64 + 3 {
            assert_eq!(ring.push(&samples::full()), number);
        }
        assert_eq!((ring.len(), ring.lost()), (CAPACITY, 3));
        assert_eq!(sequences(&ring), (1..=256).collect::<Vec<_>>());
        ring.consume(2);
        // The gap tells of the three.
        assert_eq!(ring.push(&samples::full()), 260);
        assert_eq!((ring.len(), ring.lost()), (255, 3));
        assert_eq!(sequences(&ring)[253..], [256, 260]);
        ring.consume(usize::MAX);
        assert!(ring.is_empty());
        ring.consume(1);
        assert_eq!(ring.push(&samples::sparse()), 261);
        assert_eq!(sequences(&ring), [261]);
    }

    #[test]
    fn places_are_used_again() {
        let mut ring = Ring::new().expect("memory");
        let mut expected = std::collections::VecDeque::new();
        let mut number = 0;
        for (pushed, consumed) in [(200, 150), (150, 1), (80, 199), (256, 130), (100, 256)] {
            for _ in 0..pushed {
                number = ring.push(&samples::full());
                if expected.len() < CAPACITY {
                    expected.push_back(number);
                }
            }
            assert_eq!(sequences(&ring), Vec::from(expected.clone()));
            ring.consume(consumed);
            expected.drain(..consumed.min(expected.len()));
            assert_eq!(sequences(&ring), Vec::from(expected.clone()));
        }
        assert_eq!(number, 786);
        // Nothing of an earlier record is left in one with less to tell.
        ring.consume(usize::MAX);
        let (full, sparse) = (samples::full(), samples::sparse());
        for _ in 0..=CAPACITY {
            ring.consume(usize::MAX);
            ring.push(&full);
        }
        ring.consume(usize::MAX);
        let sequence = ring.push(&sparse);
        let told: Vec<_> = ring.iter().map(|record| record.as_bytes().to_vec()).collect();
        assert_eq!(told, [record(&sparse, sequence).as_bytes()]);
    }
}

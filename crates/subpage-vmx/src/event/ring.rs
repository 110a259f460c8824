//! The events that the guest has not read yet.

use alloc::collections::VecDeque;

use subpage::frames::OutOfFrames;

use subpage_trap::Event;

use super::record;
use crate::abi::EventRecord;

/// Events that the ring holds: 256, 42 KiB.
pub const CAPACITY: usize = 256;

/// The oldest unread events. A full ring drops the newest: what began an attack is kept, and its
/// repetitions are counted.
#[derive(Debug)]
pub struct Ring {
    records: VecDeque<EventRecord>,
    last_sequence: u64,
    lost: u64,
}

impl Ring {
    /// An empty ring; takes all the memory that it will ever use.
    pub fn new() -> Result<Self, OutOfFrames> {
        let mut records = VecDeque::new();
        records.try_reserve_exact(CAPACITY).map_err(|_| OutOfFrames)?;
        Ok(Self { records, last_sequence: 0, lost: 0 })
    }

    /// Adds an event, or counts it as lost if the ring is full; returns its number, which it has
    /// either way.
    pub fn push<B: AsRef<[u8]>>(&mut self, event: &Event<B>) -> u64 {
        self.last_sequence += 1;
        if self.records.len() < CAPACITY {
            self.records.push_back(record(event, self.last_sequence));
        } else {
            self.lost += 1;
        }
        self.last_sequence
    }

    /// How many events wait to be read.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether no event waits.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// How many events were lost since the ring was made.
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// The waiting events, the oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &EventRecord> {
        self.records.iter()
    }

    /// Forgets the `count` oldest events; all, if there are fewer.
    pub fn consume(&mut self, count: usize) {
        self.records.drain(..count.min(self.records.len()));
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::super::samples;
    use super::*;

    fn sequences(ring: &Ring) -> Vec<u64> {
        ring.iter().map(|record| record.sequence.get()).collect()
    }

    #[test]
    fn a_full_ring_keeps_the_oldest_and_counts() {
        let mut ring = Ring::new().expect("memory");
        let capacity = ring.records.capacity();
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
        assert_eq!(ring.records.capacity(), capacity, "nothing was allocated");
        ring.consume(usize::MAX);
        assert!(ring.is_empty());
        ring.consume(1);
        assert_eq!(ring.push(&samples::sparse()), 261);
        assert_eq!(sequences(&ring), [261]);
    }
}

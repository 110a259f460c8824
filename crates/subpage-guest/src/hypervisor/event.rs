//! Events.

use subpage_vmx::abi::{Call, EventRecord};
use zerocopy::FromBytes;

use super::call;
use crate::memory::{Bytes, frames};

/// Bytes of a record.
const RECORD: u64 = size_of::<EventRecord>() as u64;

/// Room for events that are read.
#[derive(Debug, Clone, Copy)]
pub struct Events {
    room: Bytes,
}

impl Events {
    /// Room for `count` events.
    pub fn with_room(count: u64) -> Self {
        Self { room: frames::pages((count * RECORD).div_ceil(4096)).part(0, count * RECORD) }
    }

    /// Takes the waiting events, as many as there is room for; returns how many came.
    ///
    /// # Panics
    /// If the hypervisor refuses.
    pub fn take(&self) -> u64 {
        let count = self.room.length() / RECORD;
        let result = call(Call::ReadEvents.0, [self.room.address(), count, 0, 0]);
        assert!((0..=count as i64).contains(&result), "reading events: {result}");
        result as u64
    }

    /// The record at `index` of those taken last.
    ///
    /// # Panics
    /// If there was no room for so many.
    pub fn get(&self, index: u64) -> EventRecord {
        let bytes: [u8; RECORD as usize] = self.room.part(index * RECORD, RECORD).to_array();
        EventRecord::read_from_bytes(&bytes).expect("as many bytes as a record has")
    }

    /// Takes exactly one event.
    ///
    /// # Panics
    /// If there is none or there are more.
    pub fn only(&self) -> EventRecord {
        let count = self.take();
        assert_eq!(count, 1, "one event is expected");
        self.get(0)
    }
}

/// Throws all waiting events away.
pub fn drain_events() {
    let events = Events::with_room(64);
    while events.take() > 0 {}
}

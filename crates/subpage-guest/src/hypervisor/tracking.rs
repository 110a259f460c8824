//! Tracking of written sub-pages.

use subpage_vmx::abi::{Call, WrittenRecord};
use zerocopy::FromBytes;

use super::call;
use crate::memory::{Bytes, frames};

/// A tracked range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tracking(pub u64);

/// Room for the records of a harvest, and how many came.
#[derive(Debug, Clone, Copy)]
pub struct Harvest {
    room: Bytes,
    count: u64,
}

impl Tracking {
    /// Starts to track `bytes`.
    ///
    /// # Panics
    /// If the hypervisor refuses.
    pub fn start(bytes: Bytes) -> Self {
        let number = call(Call::Track.0, [bytes.address(), bytes.length(), 0, 0]);
        assert!(number >= 0, "tracking {:#x} is refused: {number}", bytes.address());
        Self(number as u64)
    }

    /// Takes what was written since the last harvest; returns the hypervisor's answer.
    pub fn harvest(self, into: &mut Harvest) -> i64 {
        let room = into.room.length() / 16;
        let result = call(Call::Harvest.0, [self.0, into.room.address(), room, 0]);
        into.count = u64::try_from(result).unwrap_or(0);
        result
    }

    /// Stops; returns the hypervisor's answer.
    pub fn stop(self) -> i64 {
        call(Call::Untrack.0, [self.0, 0, 0, 0])
    }
}

impl Harvest {
    /// Room for `count` pages.
    pub fn with_room(count: u64) -> Self {
        Self { room: frames::pages((count * 16).div_ceil(4096)).part(0, count * 16), count: 0 }
    }

    /// The records that came.
    pub fn records(&self) -> impl Iterator<Item = WrittenRecord> + '_ {
        (0..self.count).map(|index| {
            let bytes: [u8; 16] = self.room.part(index * 16, 16).to_array();
            WrittenRecord::read_from_bytes(&bytes).expect("16 bytes")
        })
    }

    /// The written sub-pages of the page at the beginning of `page`; `None` if it is not among them.
    pub fn written(&self, page: Bytes) -> u32 {
        self.records().find(|record| record.gfn.get() == page.gfn()).map_or(0, |r| r.written.get())
    }
}

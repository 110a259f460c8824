//! Frames for EPT and SPPT tables: physical memory that processors walk while the engine writes.
//!
//! Unsafe because tables are reached by their physical addresses, which the boot code has mapped to
//! themselves. Every access is an atomic one: processors read, and set flags, at any moment.
#![allow(unsafe_code)]

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use alloc::vec::Vec;

use subpage::address::{Hpa, PAGE_BYTES};
use subpage::frames::{ENTRIES, EntryIndex, OutOfFrames, TableFrame, TableFrames};

/// A pool of frames.
#[derive(Debug)]
pub struct PhysicalFrames {
    memory: Range<u64>,
    /// Frames that were never handed out begin here.
    untouched: u64,
    /// Frames that came back.
    free: Vec<TableFrame>,
    /// One bit for each frame of the pool: handed out.
    taken: Vec<u64>,
    /// How many more may be handed out; for tests of what happens then.
    allowance: Option<u64>,
}

impl PhysicalFrames {
    /// A pool of the frames in `memory`, whose ends are multiples of 4096.
    ///
    /// # Safety
    /// The memory is usable RAM, mapped at the same addresses forever, and nobody else uses it.
    pub unsafe fn new(memory: Range<u64>) -> Result<Self, OutOfFrames> {
        let frames = ((memory.end - memory.start) / PAGE_BYTES) as usize;
        let mut free = Vec::new();
        // Giving a frame back must not fail.
        free.try_reserve_exact(frames).map_err(|_| OutOfFrames)?;
        let mut taken = Vec::new();
        taken.try_reserve_exact(frames.div_ceil(64)).map_err(|_| OutOfFrames)?;
        taken.resize(frames.div_ceil(64), 0);
        Ok(Self { untouched: memory.start, memory, free, taken, allowance: None })
    }

    /// Lets only `frames` more be handed out; none lifts the limit.
    pub const fn set_allowance(&mut self, frames: Option<u64>) {
        self.allowance = frames;
    }

    /// How many frames are left.
    pub fn left(&self) -> u64 {
        (self.memory.end - self.untouched) / PAGE_BYTES + self.free.len() as u64
    }

    /// How many frames are handed out.
    pub fn in_use(&self) -> u64 {
        (self.memory.end - self.memory.start) / PAGE_BYTES - self.left()
    }

    fn bit(&self, frame: TableFrame) -> (usize, u64) {
        let hpa = frame.hpa().as_u64();
        assert!(self.memory.contains(&hpa), "{frame:?} is no table frame");
        let number = (hpa - self.memory.start) / PAGE_BYTES;
        ((number / 64) as usize, 1 << (number % 64))
    }

    fn entry(&self, frame: TableFrame, index: EntryIndex) -> &AtomicU64 {
        debug_assert!(
            {
                let (word, bit) = self.bit(frame);
                self.taken[word] & bit != 0
            },
            "{frame:?} is not allocated"
        );
        // Also without debug assertions: a damaged table must not lead out of the pool.
        if !self.memory.contains(&frame.hpa().as_u64()) {
            no_frame(frame);
        }
        let entry = frame.hpa().as_u64() as usize as *const AtomicU64;
        // SAFETY: the frame lies in the pool, which is mapped at its physical address and used for
        // nothing else; an index is below 512; all accesses are atomic.
        unsafe { &*entry.wrapping_add(index.get()) }
    }
}

/// The frame is by value: a reference to it would have to point at memory, at each look at a table.
#[cold]
fn no_frame(frame: TableFrame) -> ! {
    panic!("{frame:?} is no table frame");
}

impl TableFrames for PhysicalFrames {
    fn allocate(&mut self) -> Result<TableFrame, OutOfFrames> {
        if let Some(allowance) = &mut self.allowance {
            *allowance = allowance.checked_sub(1).ok_or(OutOfFrames)?;
        }
        let frame = if let Some(frame) = self.free.pop() {
            frame
        } else if self.untouched < self.memory.end {
            let frame = TableFrame::try_new(Hpa::new(self.untouched)).map_err(|_| OutOfFrames)?;
            self.untouched += PAGE_BYTES;
            frame
        } else {
            return Err(OutOfFrames);
        };
        let (word, bit) = self.bit(frame);
        assert!(self.taken[word] & bit == 0, "{frame:?} is handed out twice");
        self.taken[word] |= bit;
        self.fill(frame, 0);
        Ok(frame)
    }

    fn release(&mut self, frame: TableFrame) {
        let (word, bit) = self.bit(frame);
        assert!(self.taken[word] & bit != 0, "{frame:?} comes back twice");
        self.taken[word] &= !bit;
        self.free.push(frame);
    }

    fn make_room(&mut self, _: TableFrame, _: usize) -> Result<(), OutOfFrames> {
        Ok(())
    }

    fn load(&self, frame: TableFrame, index: EntryIndex) -> u64 {
        self.entry(frame, index).load(Ordering::Acquire)
    }

    fn store(&mut self, frame: TableFrame, index: EntryIndex, value: u64) {
        self.entry(frame, index).store(value, Ordering::Release);
    }

    fn compare_exchange(
        &mut self,
        frame: TableFrame,
        index: EntryIndex,
        current: u64,
        new: u64,
    ) -> Result<(), u64> {
        let entry = self.entry(frame, index);
        entry.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
    }

    fn fill(&mut self, frame: TableFrame, value: u64) {
        for index in EntryIndex::all() {
            self.entry(frame, index).store(value, Ordering::Relaxed);
        }
        core::sync::atomic::fence(Ordering::Release);
        const { assert!(ENTRIES as u64 * 8 == PAGE_BYTES) };
    }
}

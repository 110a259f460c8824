//! Memory for tables: ours, or the embedding program's. One of the two places with `unsafe`.

use alloc::vec::Vec;
use core::ffi::c_void;
use core::sync::atomic::{AtomicU64, Ordering};

use subpage::address::Hpa;
use subpage::frames::{ENTRIES, EntryIndex, HeapFrames, OutOfFrames, TableFrame, TableFrames};

/// Where tables lie that a processor walks: 4 KiB frames of physical memory, given by functions of the
/// embedding program. Each gets `context` as its first argument and must not call back into the library.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Frames {
    /// Handed to each function.
    pub context: *mut c_void,
    /// Returns the host-physical address of a frame of 4096 zeros, a multiple of 4096 that the processor
    /// can address and that is not in use; 0 if none is left. One that is no frame counts as none.
    pub allocate: Option<extern "C" fn(context: *mut c_void) -> u64>,
    /// Takes a frame back.
    pub release: Option<extern "C" fn(context: *mut c_void, hpa: u64)>,
    /// Returns where an allocated frame is mapped: 512 entries, valid until it is released.
    pub table: Option<extern "C" fn(context: *mut c_void, hpa: u64) -> *mut u64>,
}

/// The same, with every function there.
pub(crate) struct Given {
    context: *mut c_void,
    allocate: extern "C" fn(*mut c_void) -> u64,
    release: extern "C" fn(*mut c_void, u64),
    table: extern "C" fn(*mut c_void, u64) -> *mut u64,
    /// Frames that have not been given back, ascending.
    held: Vec<u64>,
}

impl Drop for Given {
    fn drop(&mut self) {
        for hpa in &self.held {
            (self.release)(self.context, *hpa);
        }
    }
}

impl Given {
    /// `None` if a function is missing.
    pub(crate) fn new(frames: &Frames) -> Option<Self> {
        let Frames { context, allocate, release, table } = *frames;
        Some(Self {
            context,
            allocate: allocate?,
            release: release?,
            table: table?,
            held: Vec::new(),
        })
    }

    fn take(&mut self) -> Result<TableFrame, OutOfFrames> {
        self.held.try_reserve(1).map_err(|_| OutOfFrames)?;
        let hpa = (self.allocate)(self.context);
        let frame = Hpa::try_new(hpa).and_then(TableFrame::try_new);
        let frame = frame.ok().filter(|_| hpa != 0).ok_or(OutOfFrames)?;
        let place = self.held.binary_search(&hpa);
        self.held.insert(place.expect_err("a frame that is in use was given again"), hpa);
        Ok(frame)
    }

    fn give_back(&mut self, frame: TableFrame) {
        let hpa = frame.hpa().as_u64();
        let place = self.held.binary_search(&hpa).expect("a frame that is in use is given back");
        self.held.remove(place);
        (self.release)(self.context, hpa);
    }

    fn entry(&self, frame: TableFrame, index: EntryIndex) -> &AtomicU64 {
        let table = (self.table)(self.context, frame.hpa().as_u64());
        assert!(!table.is_null() && table.is_aligned(), "a table frame is not mapped");
        // SAFETY: `table` is valid for 512 entries by the contract of `Frames`, the index is below 512.
        let entry = unsafe { table.add(index.get()) };
        // SAFETY: the same; aligned, and everybody who changes it meanwhile does so as one unit, the
        // processor included. The frame stays mapped until it is released, which takes `&mut self`.
        unsafe { AtomicU64::from_ptr(entry) }
    }
}

/// Memory for the tables of a domain.
pub(crate) enum Memory {
    /// Nobody walks them.
    Heap(HeapFrames),
    /// Processors do.
    Given(Given),
}

impl TableFrames for Memory {
    fn allocate(&mut self) -> Result<TableFrame, OutOfFrames> {
        match self {
            Self::Heap(heap) => heap.allocate(),
            Self::Given(given) => given.take(),
        }
    }

    fn release(&mut self, frame: TableFrame) {
        match self {
            Self::Heap(heap) => heap.release(frame),
            Self::Given(given) => given.give_back(frame),
        }
    }

    fn make_room(&mut self, frame: TableFrame, stores: usize) -> Result<(), OutOfFrames> {
        match self {
            Self::Heap(heap) => heap.make_room(frame, stores),
            Self::Given(_) => Ok(()),
        }
    }

    fn load(&self, frame: TableFrame, index: EntryIndex) -> u64 {
        match self {
            Self::Heap(heap) => heap.load(frame, index),
            Self::Given(given) => given.entry(frame, index).load(Ordering::Acquire),
        }
    }

    fn store(&mut self, frame: TableFrame, index: EntryIndex, value: u64) {
        match self {
            Self::Heap(heap) => heap.store(frame, index, value),
            Self::Given(given) => given.entry(frame, index).store(value, Ordering::Release),
        }
    }

    fn compare_exchange(
        &mut self,
        frame: TableFrame,
        index: EntryIndex,
        current: u64,
        new: u64,
    ) -> Result<(), u64> {
        match self {
            Self::Heap(heap) => heap.compare_exchange(frame, index, current, new),
            Self::Given(given) => given
                .entry(frame, index)
                .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
                .map(|_| ()),
        }
    }

    fn load_run(&self, frame: TableFrame, first: EntryIndex, out: &mut [u64]) {
        match self {
            Self::Heap(heap) => heap.load_run(frame, first, out),
            Self::Given(given) => {
                assert!(first.get() + out.len() <= ENTRIES, "a run leaves its table");
                for (index, value) in first.onwards().zip(out) {
                    *value = given.entry(frame, index).load(Ordering::Acquire);
                }
            }
        }
    }

    fn plain(&self, frame: TableFrame) -> Option<&[u64; ENTRIES]> {
        match self {
            Self::Heap(heap) => heap.plain(frame),
            Self::Given(_) => None,
        }
    }

    fn uniform(&self, frame: TableFrame) -> Option<u64> {
        match self {
            Self::Heap(heap) => heap.uniform(frame),
            Self::Given(_) => None,
        }
    }

    fn fill(&mut self, frame: TableFrame, value: u64) {
        match self {
            Self::Heap(heap) => heap.fill(frame, value),
            Self::Given(given) => {
                for index in EntryIndex::all() {
                    given.entry(frame, index).store(value, Ordering::Release);
                }
            }
        }
    }
}

//! Table frames that count, that fail when told to, and that let a processor look between any two
//! stores.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use subpage::frames::{EntryIndex, HeapFrames, OutOfFrames, TableFrame, TableFrames};

/// What looks at the tables after each store.
type Look = Box<dyn FnMut(&mut HeapFrames)>;

/// The test's hold on frames that a domain owns.
#[derive(Clone, Default)]
pub(crate) struct Watch {
    loads: Rc<Cell<usize>>,
    stores: Rc<Cell<usize>>,
    requests: Rc<Cell<usize>>,
    fail_from: Rc<Cell<Option<usize>>>,
    look: Rc<RefCell<Option<Look>>>,
}

impl Watch {
    /// Begins to count anew.
    pub(crate) fn reset(&self) {
        for counter in [&self.loads, &self.stores, &self.requests] {
            counter.set(0);
        }
    }

    pub(crate) fn loads(&self) -> usize {
        self.loads.get()
    }

    /// Entries changed in tables.
    pub(crate) fn stores(&self) -> usize {
        self.stores.get()
    }

    /// Lets request number `from` for memory, counted from the last reset, and all later ones fail.
    pub(crate) fn fail_from(&self, from: Option<usize>) {
        self.reset();
        self.fail_from.set(from);
    }

    /// Calls `look` after each store, until [`stop`](Self::stop).
    pub(crate) fn look(&self, look: impl FnMut(&mut HeapFrames) + 'static) {
        *self.look.borrow_mut() = Some(Box::new(look));
    }

    pub(crate) fn stop(&self) {
        *self.look.borrow_mut() = None;
    }

    fn request(&self) -> Result<(), OutOfFrames> {
        let now = self.requests.replace(self.requests.get() + 1);
        if self.fail_from.get().is_some_and(|from| now >= from) { Err(OutOfFrames) } else { Ok(()) }
    }

    fn stored(&self, heap: &mut HeapFrames) {
        self.stores.set(self.stores.get() + 1);
        if let Some(look) = &mut *self.look.borrow_mut() {
            look(heap);
        }
    }
}

/// Heap frames under a [`Watch`].
#[derive(Default)]
pub(crate) struct WatchedFrames {
    pub(crate) heap: HeapFrames,
    watch: Watch,
}

impl WatchedFrames {
    pub(crate) fn new() -> (Self, Watch) {
        let frames = Self::default();
        let watch = frames.watch.clone();
        (frames, watch)
    }
}

impl TableFrames for WatchedFrames {
    fn allocate(&mut self) -> Result<TableFrame, OutOfFrames> {
        self.watch.request()?;
        self.heap.allocate()
    }

    fn release(&mut self, frame: TableFrame) {
        self.heap.release(frame);
    }

    fn make_room(&mut self, frame: TableFrame, stores: usize) -> Result<(), OutOfFrames> {
        self.watch.request()?;
        self.heap.make_room(frame, stores)
    }

    fn load(&self, frame: TableFrame, index: EntryIndex) -> u64 {
        self.watch.loads.set(self.watch.loads.get() + 1);
        self.heap.load(frame, index)
    }

    fn store(&mut self, frame: TableFrame, index: EntryIndex, value: u64) {
        self.heap.store(frame, index, value);
        self.watch.stored(&mut self.heap);
    }

    fn compare_exchange(
        &mut self,
        frame: TableFrame,
        index: EntryIndex,
        current: u64,
        new: u64,
    ) -> Result<(), u64> {
        let result = self.heap.compare_exchange(frame, index, current, new);
        self.watch.stored(&mut self.heap);
        result
    }

    fn fill(&mut self, frame: TableFrame, value: u64) {
        self.heap.fill(frame, value);
        self.watch.stored(&mut self.heap);
    }
}

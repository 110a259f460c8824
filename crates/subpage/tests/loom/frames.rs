//! Tables whose entries 0 and 3 are loom's atomics; all others are ordinary memory.

use std::sync::{Arc, Mutex as Unmodelled};

use loom::sync::atomic::{AtomicU64, Ordering};

use subpage::access::SppVector;
use subpage::address::{Gfn, Hpa, PhysicalWidth};
use subpage::ept::{EptEntry, Meaning};
use subpage::frames::{ENTRIES, EntryIndex, OutOfFrames, TableFrame, TableFrames};
use subpage::level::Level;
use subpage::sppt::SpptEntry;

/// What a released frame reads as: valid, with reserved bits.
const POISON: u64 = u64::MAX;
const FRAMES: usize = 10;

/// Frames of which a processor sees entries 0 and 3.
struct Shared {
    seen: Vec<[AtomicU64; 2]>,
    unseen: Unmodelled<Vec<[u64; ENTRIES]>>,
    free: Unmodelled<Vec<usize>>,
}

#[derive(Clone)]
pub(crate) struct LoomFrames(Arc<Shared>);

impl LoomFrames {
    pub(crate) fn new() -> Self {
        let seen = (0..FRAMES).map(|_| [AtomicU64::new(POISON), AtomicU64::new(POISON)]).collect();
        let unseen = Unmodelled::new(vec![[POISON; ENTRIES]; FRAMES]);
        let free = Unmodelled::new((0..FRAMES).rev().collect());
        Self(Arc::new(Shared { seen, unseen, free }))
    }

    fn entry(&self, frame: TableFrame, index: EntryIndex) -> Result<&AtomicU64, (usize, usize)> {
        let number = usize::try_from(frame.hpa().as_u64() / 4096 - 1).expect("small");
        match index.get() {
            0 => Ok(&self.0.seen[number][0]),
            3 => Ok(&self.0.seen[number][1]),
            other => Err((number, other)),
        }
    }
}

impl TableFrames for LoomFrames {
    fn allocate(&mut self) -> Result<TableFrame, OutOfFrames> {
        let number = self.0.free.lock().expect("no panic").pop().ok_or(OutOfFrames)?;
        let frame = TableFrame::try_new(Hpa::new((number as u64 + 1) * 4096)).expect("aligned");
        self.fill(frame, 0);
        Ok(frame)
    }

    fn release(&mut self, frame: TableFrame) {
        self.fill(frame, POISON);
        let number = usize::try_from(frame.hpa().as_u64() / 4096 - 1).expect("small");
        self.0.free.lock().expect("no panic").push(number);
    }

    fn make_room(&mut self, _: TableFrame, _: usize) -> Result<(), OutOfFrames> {
        Ok(())
    }

    fn load(&self, frame: TableFrame, index: EntryIndex) -> u64 {
        match self.entry(frame, index) {
            Ok(entry) => entry.load(Ordering::Acquire),
            Err((number, index)) => self.0.unseen.lock().expect("no panic")[number][index],
        }
    }

    fn store(&mut self, frame: TableFrame, index: EntryIndex, value: u64) {
        match self.entry(frame, index) {
            Ok(entry) => entry.store(value, Ordering::Release),
            Err((number, index)) => {
                self.0.unseen.lock().expect("no panic")[number][index] = value;
            }
        }
    }

    fn compare_exchange(
        &mut self,
        frame: TableFrame,
        index: EntryIndex,
        current: u64,
        new: u64,
    ) -> Result<(), u64> {
        match self.entry(frame, index) {
            Ok(entry) => entry
                .compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
                .map(|_| ()),
            Err((number, index)) => {
                let entry = &mut self.0.unseen.lock().expect("no panic")[number][index];
                if *entry != current {
                    return Err(*entry);
                }
                *entry = new;
                Ok(())
            }
        }
    }

    fn fill(&mut self, frame: TableFrame, value: u64) {
        for index in EntryIndex::all() {
            self.store(frame, index, value);
        }
    }
}

/// What a processor's walk of the SPPT finds: the vector; `None` if an upper entry is not valid.
pub(crate) fn walk_sppt(frames: &LoomFrames, root: TableFrame, page: Gfn) -> Option<SppVector> {
    let mut table = root;
    for level in [Level::L4, Level::L3, Level::L2] {
        let entry = SpptEntry::from(frames.load(table, level.index(page)));
        assert!(!entry.has_reserved_bits(PhysicalWidth::MAX), "the walk read a released frame");
        table = entry.table()?;
    }
    let vector = SppVector::try_from_bits(frames.load(table, Level::L1.index(page)));
    Some(vector.expect("the walk read a released frame"))
}

/// What a processor wants from a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// An access of a processor whose EPT has accessed and dirty flags: walks to the leaf, sets its
/// flags with one locked operation, and walks again if the entry has changed meanwhile.
///
/// Returns the leaf as the access left it; `None` if nothing is mapped or the leaf, as it was read,
/// does not allow the access (bit 61 counts: the vector is not looked at).
pub(crate) fn access_page(
    frames: &mut LoomFrames,
    root: TableFrame,
    page: Gfn,
    access: Access,
) -> Option<EptEntry> {
    'walk: loop {
        let mut table = root;
        for level in [Level::L4, Level::L3, Level::L2, Level::L1] {
            let bits = frames.load(table, level.index(page));
            assert_ne!(bits, POISON, "the walk read a released frame");
            let entry = EptEntry::from(bits);
            match entry.meaning(level) {
                Meaning::Absent => return None,
                Meaning::Table(next) => table = next,
                Meaning::Leaf(_) => {
                    let write = access == Access::Write;
                    if write && !entry.write() && !entry.sub_page_write() {
                        return None;
                    }
                    let flagged = entry.with_accessed(true).with_dirty(entry.dirty() || write);
                    let (current, new) = (entry.into(), flagged.into());
                    if frames.compare_exchange(table, level.index(page), current, new).is_err() {
                        continue 'walk;
                    }
                    return Some(flagged);
                }
            }
        }
        unreachable!("a 4 KiB leaf ends each walk");
    }
}

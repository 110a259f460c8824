//! Where table frames come from: the one thing the engine asks of its backend.
//!
//! EPT and SPPT tables are 4 KiB frames of 512 entries. In a hypervisor they are physical memory
//! that processors read while the engine writes; in a VMM or in the model they are ordinary memory
//! that no processor walks. The engine sees both through [`TableFrames`] and keeps no reference
//! into a table, so the same code is right in both places without one `unsafe`.

mod heap;

pub use heap::HeapFrames;

use thiserror::Error;

use crate::address::{AddressError, Hpa, PAGE_BYTES};

/// Entries in a table: 512.
pub const ENTRIES: usize = 512;

/// Index of an entry in its table, 0..512.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryIndex(u16);

impl EntryIndex {
    /// Takes an index; `None` at 512 or more.
    pub const fn new(index: u16) -> Option<Self> {
        if index < 512 { Some(Self(index)) } else { None }
    }

    /// Keeps the low nine bits, as the walk does with an address.
    #[allow(clippy::cast_possible_truncation)]
    pub const fn truncate(bits: u64) -> Self {
        Self((bits & 0x1FF) as u16)
    }

    /// The index, 0..512.
    pub const fn get(self) -> usize {
        self.0 as usize
    }

    /// All 512 in ascending order.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> + Clone {
        Self(0).onwards()
    }

    /// This one and all above it in ascending order.
    pub fn onwards(self) -> impl DoubleEndedIterator<Item = Self> + Clone {
        (self.0..512).map(Self)
    }
}

/// A 4 KiB frame that holds a table, named by its host-physical address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableFrame(Hpa);

impl TableFrame {
    /// Takes the address of a frame; fails if it is not a multiple of 4096.
    pub const fn try_new(hpa: Hpa) -> Result<Self, AddressError> {
        if !hpa.is_aligned(PAGE_BYTES) {
            return Err(AddressError::Unaligned { address: hpa.as_u64(), alignment: PAGE_BYTES });
        }
        Ok(Self(hpa))
    }

    /// The frame that bits 51:12 of an entry name.
    pub(crate) const fn from_number(number: u64) -> Self {
        Self(Hpa::new((number & ((1 << 40) - 1)) * PAGE_BYTES))
    }

    /// The address of the frame's first byte, as entries and VMCS fields carry it.
    pub const fn hpa(self) -> Hpa {
        self.0
    }
}

/// No frame, or no memory to keep one, is left. Nothing has been changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no table frame is left")]
pub struct OutOfFrames;

/// Memory for tables, owned by the backend.
///
/// Laws an implementation keeps:
/// - a frame from [`allocate`](Self::allocate) reads as 512 zeros and is not handed out again
///   before [`release`](Self::release);
/// - [`store`](Self::store) makes an entry visible as one unit, and not before every earlier store
///   of the same caller (release order), to processors that walk the tables;
/// - [`load`](Self::load) sees what a processor stored as accessed and dirty flags.
///
/// # Panics
/// Every method may panic on a frame that is not allocated: that is a broken engine, not bad input.
pub trait TableFrames {
    /// Takes a frame filled with zeros.
    fn allocate(&mut self) -> Result<TableFrame, OutOfFrames>;

    /// Gives a frame back. The engine calls this only once no processor can reach the frame.
    fn release(&mut self, frame: TableFrame);

    /// Promises that the next `stores` entries that change in `frame` can be stored.
    ///
    /// Real memory can always be stored to and answers `Ok(())`. Storage that keeps frames in fewer
    /// bytes than 4 KiB makes room here, where failing is still allowed.
    fn make_room(&mut self, frame: TableFrame, stores: usize) -> Result<(), OutOfFrames>;

    /// Reads an entry.
    fn load(&self, frame: TableFrame, index: EntryIndex) -> u64;

    /// Writes an entry as one unit.
    fn store(&mut self, frame: TableFrame, index: EntryIndex, value: u64);

    /// Writes `new` if the entry still holds `current`; the error is what it holds instead.
    fn compare_exchange(
        &mut self,
        frame: TableFrame,
        index: EntryIndex,
        current: u64,
        new: u64,
    ) -> Result<(), u64>;

    /// Reads the run of entries that starts at `first` into `out`.
    ///
    /// # Panics
    /// If the run leaves the table.
    fn load_run(&self, frame: TableFrame, first: EntryIndex, out: &mut [u64]) {
        assert!(first.get() + out.len() <= ENTRIES, "a run leaves its table");
        for (index, value) in first.onwards().zip(out) {
            *value = self.load(frame, index);
        }
    }

    /// The whole table, if it is plain memory that nobody writes meanwhile; then long runs need no
    /// copy. Memory that a processor walks answers `None`.
    fn plain(&self, frame: TableFrame) -> Option<&[u64; ENTRIES]> {
        let _ = frame;
        None
    }

    /// What all entries of a table hold, if it is plain memory that nobody writes or walks meanwhile,
    /// they all hold the same, and that can be told at a glance. Such a table may be
    /// [filled](Self::fill) although it is linked.
    fn uniform(&self, frame: TableFrame) -> Option<u64> {
        let _ = frame;
        None
    }

    /// Writes the run of entries that starts at `first`, each as one unit, in ascending order.
    ///
    /// # Panics
    /// If the run leaves the table.
    fn store_run(&mut self, frame: TableFrame, first: EntryIndex, values: &[u64]) {
        assert!(first.get() + values.len() <= ENTRIES, "a run leaves its table");
        for (index, value) in first.onwards().zip(values) {
            self.store(frame, index, *value);
        }
    }

    /// Writes `value` to every entry of a frame that no processor can reach yet, or that is
    /// [uniform](Self::uniform); needs no room.
    fn fill(&mut self, frame: TableFrame, value: u64);
}

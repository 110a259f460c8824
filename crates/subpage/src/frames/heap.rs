//! Table frames on the heap, for backends in which no processor walks the tables.
//!
//! A guarded byte leaves a table with 511 equal entries and one other. Since nobody but the engine
//! reads these frames, a frame is kept as "all entries are X, except these few" in one cache line
//! until it holds more exceptions than fit, and as a plain array from then on. A thousand pages
//! spread over a terabyte then cost kilobytes, where frames of 4 KiB cost megabytes.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::mem;

use super::{ENTRIES, EntryIndex, OutOfFrames, TableFrame, TableFrames};
use crate::address::{Hpa, PAGE_BYTES};

/// Exceptions kept in line; with the fill value they make a frame one 64-byte cache line.
const FEW: usize = 4;

/// Bits that a place takes in [`Few::indices`].
const PLACE_BITS: usize = 16;

/// The lowest bit of every place.
const LOW: u64 = 0x0001_0001_0001_0001;

/// The highest bit of every place.
const HIGH: u64 = LOW << (PLACE_BITS - 1);

/// Index of a place that holds no exception; no entry has it.
const UNUSED: u64 = 0xFFFF;

type Table = Box<[u64; ENTRIES]>;

/// A frame whose entries all hold one value, but for `count` exceptions in the first places.
#[derive(Clone, Copy)]
struct Few {
    /// The values of the exceptions, and last the one that all other entries hold.
    values: [u64; FEW + 1],
    /// The indices of the exceptions, 16 bits each, the first in the lowest bits.
    indices: u64,
    count: u8,
}

impl Few {
    const fn filled(fill: u64) -> Self {
        Self { values: [fill; FEW + 1], indices: UNUSED * LOW, count: 0 }
    }

    const fn fill(&self) -> u64 {
        self.values[FEW]
    }

    /// The place that holds `index`; [`FEW`], where the fill value stands, if none does.
    ///
    /// Looks at all places at once and takes no branch: which one matches is as random as the
    /// address, and a wrong guess costs more than the whole comparison. The lowest place that
    /// becomes zero is the only one whose highest bit cannot be a borrow from below.
    #[inline]
    const fn position(&self, index: EntryIndex) -> usize {
        let difference = self.indices ^ (index.0 as u64 * LOW);
        let zero = difference.wrapping_sub(LOW) & !difference & HIGH;
        zero.trailing_zeros() as usize / PLACE_BITS
    }

    #[inline]
    const fn load(&self, index: EntryIndex) -> u64 {
        self.values[self.position(index)]
    }

    /// The index in a place.
    const fn index(&self, place: usize) -> usize {
        EntryIndex::truncate(self.indices >> (place * PLACE_BITS)).get()
    }

    fn set_index(&mut self, place: usize, index: u64) {
        let shift = place * PLACE_BITS;
        self.indices = self.indices & !(UNUSED << shift) | index << shift;
    }

    /// Stores in line; `false` if there is no room left.
    fn store(&mut self, index: EntryIndex, value: u64) -> bool {
        let count = usize::from(self.count);
        match self.position(index) {
            FEW if value == self.fill() => {}
            FEW if count == FEW => return false,
            FEW => {
                self.values[count] = value;
                self.set_index(count, index.0.into());
                self.count += 1;
            }
            at if value == self.fill() => {
                self.values[at] = self.values[count - 1];
                self.set_index(at, self.index(count - 1) as u64);
                self.set_index(count - 1, UNUSED);
                self.count -= 1;
            }
            at => self.values[at] = value,
        }
        true
    }

    /// The exceptions: index and value.
    fn exceptions(&self) -> impl Iterator<Item = (usize, u64)> {
        (0..usize::from(self.count)).map(|at| (self.index(at), self.values[at]))
    }

    fn write_to(&self, table: &mut [u64; ENTRIES]) {
        table.fill(self.fill());
        for (index, value) in self.exceptions() {
            table[index] = value;
        }
    }
}

/// One frame, in exactly one cache line.
#[repr(align(64))]
enum Slot {
    Free,
    Few(Few),
    Full(Table),
}

const _: () = assert!(size_of::<Slot>() == 64, "a frame of few exceptions is one cache line");

/// Table frames kept on the heap, with an optional limit on their number.
///
/// Frame number n has the host-physical address (n + 1) · 4096; the addresses mean nothing outside.
pub struct HeapFrames {
    slots: Vec<Slot>,
    free: Vec<u32>,
    in_use: usize,
    limit: usize,
}

impl HeapFrames {
    /// Frames until memory is exhausted.
    pub const fn new() -> Self {
        Self::with_limit(u32::MAX as usize)
    }

    /// At most `limit` frames at a time (and never more than 2^32).
    pub const fn with_limit(limit: usize) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), in_use: 0, limit }
    }

    /// How many frames are allocated now.
    pub const fn frames_in_use(&self) -> usize {
        self.in_use
    }

    /// Bytes of heap memory held now, counted by capacity.
    pub fn bytes(&self) -> usize {
        let full = self.slots.iter().filter(|slot| matches!(slot, Slot::Full(_))).count();
        self.slots.capacity() * size_of::<Slot>()
            + self.free.capacity() * size_of::<u32>()
            + full * size_of::<[u64; ENTRIES]>()
    }

    #[inline]
    fn slot(&self, frame: TableFrame) -> &Slot {
        &self.slots[position(frame)]
    }

    /// Turns a frame into a plain array. Fails without a change if there is no memory.
    fn expand(&mut self, frame: TableFrame) -> Result<(), OutOfFrames> {
        let slot = &mut self.slots[position(frame)];
        let Slot::Few(few) = slot else { return Ok(()) };
        let mut table = empty_table()?;
        few.write_to(&mut table);
        *slot = Slot::Full(table);
        Ok(())
    }
}

impl Default for HeapFrames {
    fn default() -> Self {
        Self::new()
    }
}

/// Position of a frame in the slot list.
#[allow(clippy::cast_possible_truncation)]
const fn position(frame: TableFrame) -> usize {
    (frame.hpa().as_u64() / PAGE_BYTES - 1) as usize
}

fn empty_table() -> Result<Table, OutOfFrames> {
    let mut entries = Vec::new();
    entries.try_reserve_exact(ENTRIES).map_err(|_| OutOfFrames)?;
    entries.resize(ENTRIES, 0);
    entries.into_boxed_slice().try_into().map_err(|_| OutOfFrames)
}

impl TableFrames for HeapFrames {
    fn allocate(&mut self) -> Result<TableFrame, OutOfFrames> {
        if self.in_use >= self.limit {
            return Err(OutOfFrames);
        }
        let index = if let Some(index) = self.free.pop() {
            index
        } else {
            let index = u32::try_from(self.slots.len()).map_err(|_| OutOfFrames)?;
            self.slots.try_reserve(1).map_err(|_| OutOfFrames)?;
            // A release must never need memory, so the free list can hold every frame.
            self.free.try_reserve(self.slots.len() + 1).map_err(|_| OutOfFrames)?;
            self.slots.push(Slot::Free);
            index
        };
        self.slots[index as usize] = Slot::Few(Few::filled(0));
        self.in_use += 1;
        Ok(TableFrame(Hpa::new((u64::from(index) + 1) * PAGE_BYTES)))
    }

    fn release(&mut self, frame: TableFrame) {
        let at = position(frame);
        let slot = mem::replace(&mut self.slots[at], Slot::Free);
        assert!(!matches!(slot, Slot::Free), "a table frame is released twice");
        self.in_use -= 1;
        self.free.push(u32::try_from(at).expect("frame numbers fit 32 bits"));
    }

    #[inline]
    fn make_room(&mut self, frame: TableFrame, stores: usize) -> Result<(), OutOfFrames> {
        match self.slot(frame) {
            Slot::Few(few) if usize::from(few.count) + stores > FEW => self.expand(frame),
            _ => Ok(()),
        }
    }

    #[inline]
    fn load(&self, frame: TableFrame, index: EntryIndex) -> u64 {
        match self.slot(frame) {
            Slot::Few(few) => few.load(index),
            Slot::Full(table) => table[index.get()],
            Slot::Free => panic!("a released table frame is read"),
        }
    }

    #[inline]
    fn store(&mut self, frame: TableFrame, index: EntryIndex, value: u64) {
        match &mut self.slots[position(frame)] {
            Slot::Few(few) => {
                assert!(few.store(index, value), "a store without room made for it");
            }
            Slot::Full(table) => table[index.get()] = value,
            Slot::Free => panic!("a released table frame is written"),
        }
    }

    #[inline]
    fn compare_exchange(
        &mut self,
        frame: TableFrame,
        index: EntryIndex,
        current: u64,
        new: u64,
    ) -> Result<(), u64> {
        if let Slot::Full(table) = &mut self.slots[position(frame)] {
            let entry = &mut table[index.get()];
            if *entry != current {
                return Err(*entry);
            }
            *entry = new;
            return Ok(());
        }
        let found = self.load(frame, index);
        if found != current {
            return Err(found);
        }
        self.store(frame, index, new);
        Ok(())
    }

    #[inline]
    fn load_run(&self, frame: TableFrame, first: EntryIndex, out: &mut [u64]) {
        assert!(first.get() + out.len() <= ENTRIES, "a run leaves its table");
        match self.slot(frame) {
            Slot::Few(few) => {
                out.fill(few.fill());
                for (index, value) in few.exceptions() {
                    if let Some(entry) = out.get_mut(index.wrapping_sub(first.get())) {
                        *entry = value;
                    }
                }
            }
            Slot::Full(table) => {
                out.copy_from_slice(&table[first.get()..first.get() + out.len()]);
            }
            Slot::Free => panic!("a released table frame is read"),
        }
    }

    #[inline]
    fn plain(&self, frame: TableFrame) -> Option<&[u64; ENTRIES]> {
        match self.slot(frame) {
            Slot::Full(table) => Some(table),
            Slot::Few(_) => None,
            Slot::Free => panic!("a released table frame is read"),
        }
    }

    #[inline]
    fn uniform(&self, frame: TableFrame) -> Option<u64> {
        match self.slot(frame) {
            Slot::Few(few) if few.count == 0 => Some(few.fill()),
            Slot::Few(_) | Slot::Full(_) => None,
            Slot::Free => panic!("a released table frame is read"),
        }
    }

    #[inline]
    fn store_run(&mut self, frame: TableFrame, first: EntryIndex, values: &[u64]) {
        assert!(first.get() + values.len() <= ENTRIES, "a run leaves its table");
        if let Slot::Full(table) = &mut self.slots[position(frame)] {
            table[first.get()..first.get() + values.len()].copy_from_slice(values);
            return;
        }
        for (index, value) in first.onwards().zip(values) {
            self.store(frame, index, *value);
        }
    }

    fn fill(&mut self, frame: TableFrame, value: u64) {
        match &mut self.slots[position(frame)] {
            Slot::Few(few) => *few = Few::filled(value),
            Slot::Full(table) => table.fill(value),
            Slot::Free => panic!("a released table frame is written"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u16) -> EntryIndex {
        EntryIndex::new(index).expect("below 512")
    }

    #[test]
    fn few_and_full_frames_read_the_same() {
        let mut frames = HeapFrames::new();
        let few = frames.allocate().expect("memory");
        let full = frames.allocate().expect("memory");
        frames.make_room(full, ENTRIES).expect("memory");
        for frame in [few, full] {
            frames.fill(frame, 7);
            frames.store(frame, at(0), 1);
            frames.store(frame, at(511), 2);
            frames.store(frame, at(300), 3);
            frames.store(frame, at(0), 7);
            assert_eq!(frames.compare_exchange(frame, at(300), 4, 5), Err(3));
            assert_eq!(frames.compare_exchange(frame, at(300), 3, 5), Ok(()));
        }
        for index in EntryIndex::all() {
            assert_eq!(frames.load(few, index), frames.load(full, index));
        }
        let (mut a, mut b) = ([0; 300], [0; 300]);
        frames.load_run(few, at(212), &mut a);
        frames.load_run(full, at(212), &mut b);
        assert_eq!(a, b);
        assert_eq!((a[88], a[299]), (5, 2));
        assert_eq!(frames.frames_in_use(), 2);
    }

    /// Every order in which four places fill and empty, with every index beside its neighbours: the
    /// comparison of all places at once must never take a borrow for a match.
    #[test]
    fn places_are_found_whatever_stands_below() {
        for base in 0..508 {
            let mut few = Few::filled(7);
            for place in [3, 0, 2, 1] {
                assert!(few.store(at(base + place), u64::from(place) + 100));
            }
            assert!(!few.store(at(base + 4), 8), "a fifth exception does not fit");
            assert!(few.store(at(base + 4), 7), "the fill value needs no place");
            for index in 0..512 {
                let place = u16::wrapping_sub(index, base);
                let expected = if place < 4 { u64::from(place) + 100 } else { 7 };
                assert_eq!(few.load(at(index)), expected, "entry {index}, from {base}");
            }
            assert!(few.store(at(base), 7));
            assert_eq!(few.load(at(base)), 7);
            assert!(few.store(at(base + 4), 9));
            assert_eq!(few.load(at(base + 4)), 9);
        }
    }

    #[test]
    fn the_limit_holds_and_released_frames_come_back_zeroed() {
        let mut frames = HeapFrames::with_limit(1);
        let frame = frames.allocate().expect("memory");
        frames.fill(frame, 9);
        assert_eq!(frames.allocate(), Err(OutOfFrames));
        frames.release(frame);
        let again = frames.allocate().expect("memory");
        assert_eq!(frames.load(again, at(5)), 0);
    }

    #[test]
    fn room_promised_is_room_kept() {
        let mut frames = HeapFrames::new();
        let frame = frames.allocate().expect("memory");
        frames.make_room(frame, 5).expect("memory");
        for index in 0..5 {
            frames.store(frame, at(index), 1);
        }
        assert_eq!(frames.load(frame, at(4)), 1);
    }
}

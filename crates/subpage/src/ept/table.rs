//! Walking an EPT, and the two changes of its shape: splitting a large leaf and merging small ones.

use super::{EptEntry, LeafRights, Meaning};
use crate::address::{Gfn, PAGE_BYTES};
use crate::frames::{EntryIndex, OutOfFrames, TableFrame, TableFrames};
use crate::level::{Level, PageSize};

/// The extended page table of one address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ept {
    root: TableFrame,
}

/// An entry and the place where it stands.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Level of the table that holds the entry.
    pub level: Level,
    /// The table.
    pub table: TableFrame,
    /// The entry's index in it.
    pub index: EntryIndex,
    /// The entry as it was read.
    pub entry: EptEntry,
}

impl Place {
    /// The size of the leaf that stands here; `None` if nothing is mapped.
    pub fn leaf_size(&self) -> Option<PageSize> {
        match self.entry.meaning(self.level) {
            Meaning::Leaf(size) => Some(size),
            Meaning::Absent | Meaning::Table(_) => None,
        }
    }

    /// The host frame that `gfn` is mapped to by the leaf that stands here.
    pub fn host_frame(&self, gfn: Gfn) -> crate::address::Hpa {
        let offset = (gfn.as_u64() & (self.level.frames() - 1)) * PAGE_BYTES;
        let base = self.entry.hpa().as_u64() & !(self.level.frames() * PAGE_BYTES - 1);
        crate::address::Hpa::new(base + offset)
    }
}

impl Ept {
    /// Takes one frame: nothing is mapped.
    pub fn new<F: TableFrames>(frames: &mut F) -> Result<Self, OutOfFrames> {
        Ok(Self { root: frames.allocate()? })
    }

    /// The root table, for bits 51:12 of the EPTP field.
    pub const fn root(self) -> TableFrame {
        self.root
    }

    /// Walks to the entry that decides `gfn`: a leaf, or the absent entry at which the walk ends.
    pub fn find<F: TableFrames>(self, frames: &F, gfn: Gfn) -> Place {
        self.find_down_to(frames, gfn, Level::L1)
    }

    /// Walks like [`find`](Self::find), but no further down than `lowest`.
    #[inline]
    pub fn find_down_to<F: TableFrames>(self, frames: &F, gfn: Gfn, lowest: Level) -> Place {
        let mut table = self.root;
        // Levels that the compiler knows: what an entry means there is a test of its bits.
        for level in [Level::L4, Level::L3, Level::L2] {
            let index = level.index(gfn);
            let entry = EptEntry::from(frames.load(table, index));
            match entry.meaning(level) {
                Meaning::Table(next) if level > lowest => table = next,
                _ => return Place { level, table, index, entry },
            }
        }
        let index = Level::L1.index(gfn);
        let entry = EptEntry::from(frames.load(table, index));
        Place { level: Level::L1, table, index, entry }
    }
}

/// Gives a leaf other write rights; accessed and dirty flags that a processor sets meanwhile stay.
///
/// Returns whether the leaf lost a right, so that old translations must be invalidated.
pub(crate) fn set_rights<F: TableFrames>(frames: &mut F, place: Place, rights: LeafRights) -> bool {
    rights.take_from(update(frames, place, |entry| rights.apply_to(entry)))
}

/// Replaces an entry by a function of itself, atomically against processors; returns the old one.
pub(crate) fn update<F: TableFrames>(
    frames: &mut F,
    place: Place,
    new: impl Fn(EptEntry) -> EptEntry,
) -> EptEntry {
    let mut current = place.entry;
    loop {
        let wanted = new(current);
        if wanted == current {
            return current;
        }
        match frames.compare_exchange(place.table, place.index, current.into(), wanted.into()) {
            Ok(()) => return current,
            Err(found) => current = found.into(),
        }
    }
}

/// Replaces a large leaf by a table of leaves one size smaller, with the same rights and flags.
///
/// `table` is unlinked and has room for 512 entries; `rights` gives each small leaf its rights, so
/// the new table is right from the first moment a processor can see it. Accessed and dirty flags go
/// to every small leaf: the large leaf does not say which part was used.
pub(crate) fn split<F: TableFrames>(
    frames: &mut F,
    place: Place,
    table: TableFrame,
    region_start: Gfn,
    rights: impl Fn(Gfn) -> LeafRights,
) {
    let size = place.leaf_size().expect("only a leaf can be split");
    let below = size.level().below().expect("a 4 KiB leaf cannot be split");
    let mut current = place.entry;
    loop {
        for index in EntryIndex::all() {
            let offset = index.get() as u64 * below.frames();
            let gfn = Gfn::new(region_start.as_u64() + offset);
            // A processor sets flags; the address stays that of the entry as it was read.
            let small = current.with_hpa(place.host_frame(gfn)).with_large(below != Level::L1);
            frames.store(table, index, rights(gfn).apply_to(small).into());
        }
        let link = EptEntry::link(table).with_accessed(current.accessed());
        match frames.compare_exchange(place.table, place.index, current.into(), link.into()) {
            Ok(()) => return,
            Err(found) => current = found.into(),
        }
    }
}

/// The large leaf that maps the same memory as 512 small ones, if there is one.
///
/// The small leaves must be present, consecutive, equal in everything but flags, and start at a
/// frame aligned for the large size. Accessed and dirty are the OR over all.
pub(crate) fn merged<F: TableFrames>(
    frames: &F,
    table: TableFrame,
    level: Level,
) -> Option<EptEntry> {
    let size = PageSize::at(level)?;
    let below = level.below()?;
    let first = EptEntry::from(frames.load(table, EntryIndex::truncate(0)));
    if !first.hpa().is_aligned(size.bytes()) {
        return None;
    }
    let shape = |entry: EptEntry| entry.with_accessed(false).with_dirty(false);
    let (mut accessed, mut dirty) = (false, false);
    for index in EntryIndex::all() {
        let entry = EptEntry::from(frames.load(table, index));
        let offset = index.get() as u64 * below.frames() * PAGE_BYTES;
        let expected = shape(first).with_hpa(first.hpa().checked_add(offset)?);
        if !matches!(entry.meaning(below), Meaning::Leaf(_)) || shape(entry) != expected {
            return None;
        }
        accessed |= entry.accessed();
        dirty |= entry.dirty();
    }
    Some(first.with_large(true).with_accessed(accessed).with_dirty(dirty))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Hpa;
    use crate::frames::HeapFrames;

    /// A leaf of 4 KiB at 2 MiB plus so many frames.
    fn leaf(index: EntryIndex) -> EptEntry {
        EptEntry::new()
            .with_read(true)
            .with_host_writable(true)
            .with_hpa(Hpa::new((512 + index.get() as u64) * PAGE_BYTES))
    }

    /// A right is lost if it was there and is not any more, each by itself.
    #[test]
    fn a_lost_right_is_told() {
        let mut frames = HeapFrames::new();
        let table = frames.allocate().expect("memory");
        let index = EntryIndex::truncate(3);
        for bits in 0..16_u8 {
            let bit = |at: u8| bits >> at & 1 == 1;
            let old = LeafRights { write: bit(0), sub_page_write: bit(1) };
            let new = LeafRights { write: bit(2), sub_page_write: bit(3) };
            let entry = old.apply_to(leaf(index));
            frames.store(table, index, entry.into());
            let place = Place { level: Level::L1, table, index, entry };
            let lost = matches!(bits & 0b101, 0b001) || matches!(bits & 0b1010, 0b0010);
            assert_eq!(set_rights(&mut frames, place, new), lost, "{old:?} to {new:?}");
            assert_eq!(EptEntry::from(frames.load(table, index)), new.apply_to(leaf(index)));
        }
    }

    /// One small leaf that was used is enough for the large one to count as used; one that maps
    /// something else is enough for there to be none.
    #[test]
    fn a_large_leaf_has_the_flags_of_any_small_one() {
        let mut frames = HeapFrames::new();
        let table = frames.allocate().expect("memory");
        frames.make_room(table, 512).expect("memory");
        for index in EntryIndex::all() {
            frames.store(table, index, leaf(index).into());
        }
        let large = leaf(EntryIndex::truncate(0)).with_large(true);
        assert_eq!(merged(&frames, table, Level::L2), Some(large));
        for used in [0, 1, 511].map(EntryIndex::truncate) {
            frames.store(table, used, leaf(used).with_accessed(true).into());
            assert_eq!(merged(&frames, table, Level::L2), Some(large.with_accessed(true)));
            frames.store(table, used, leaf(used).with_dirty(true).into());
            assert_eq!(merged(&frames, table, Level::L2), Some(large.with_dirty(true)));
            for other in [
                leaf(used).with_read(false),
                leaf(used).with_execute(true),
                leaf(used).with_hpa(Hpa::new(0x1000)),
            ] {
                frames.store(table, used, other.into());
                assert_eq!(merged(&frames, table, Level::L2), None, "{other:?}");
            }
            frames.store(table, used, leaf(used).into());
        }
        // Nothing is mapped anywhere, and the addresses go on from one another.
        for index in EntryIndex::all() {
            frames.store(table, index, leaf(index).with_read(false).into());
        }
        assert_eq!(merged(&frames, table, Level::L2), None);
    }
}

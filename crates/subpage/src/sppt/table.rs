//! Reading the sub-page permission table, which is the only record of permissions.

use core::hint::select_unpredictable;

use super::SpptEntry;
use crate::access::{AccessMap, SppVector, compress_into};
use crate::address::{Gfn, GfnRange};
use crate::frames::{EntryIndex, OutOfFrames, TableFrame, TableFrames};
use crate::level::Level;

/// Entries that are copied out of a table at a time where they cannot be read in place.
const COPIED: usize = 64;

/// A four-level sub-page permission table, named by its root.
///
/// Two laws hold whenever no call is in progress (design decisions 1 and 2):
/// - an upper entry is valid if and only if some page below it is restricted;
/// - a page without an L1 table is unrestricted.
///
/// So `get` reads leaves, "may this be a large page?" is one look at an upper entry, and an SPP miss
/// is never a routine event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sppt {
    root: TableFrame,
}

impl Sppt {
    /// Takes one frame: a table in which every page is unrestricted.
    pub fn new<F: TableFrames>(frames: &mut F) -> Result<Self, OutOfFrames> {
        Ok(Self { root: frames.allocate()? })
    }

    /// The root table, for the SPPTP field of the control structure (encoding 2030H).
    pub const fn root(self) -> TableFrame {
        self.root
    }

    /// The permission of one page.
    ///
    /// Takes no branch on what the tables hold: whether an address has an L1 table is as random as
    /// the address, and a wrong guess costs more than the rest of the walk. From an absent entry on
    /// the walk goes through the root, which is always there, and what it reads does not count.
    ///
    /// # Panics
    /// If the page's vector has a reserved bit set, which only damage from outside can cause.
    #[inline]
    pub fn vector<F: TableFrames>(self, frames: &F, gfn: Gfn) -> SppVector {
        let mut table = self.root;
        let mut linked = true;
        for level in [Level::L4, Level::L3, Level::L2] {
            let entry = SpptEntry::from(frames.load(table, level.index(gfn)));
            linked &= entry.valid();
            table = select_unpredictable(linked, entry.address(), self.root);
        }
        let leaf = frames.load(table, Level::L1.index(gfn));
        stored_vector(select_unpredictable(linked, leaf, SppVector::ALL.bits()))
    }

    /// The L1 table of a frame's 2 MiB region; `None` if the region is unrestricted.
    #[inline]
    pub(crate) fn leaf_table<F: TableFrames>(self, frames: &F, gfn: Gfn) -> Option<TableFrame> {
        let mut table = self.root;
        for level in [Level::L4, Level::L3, Level::L2] {
            table = SpptEntry::from(frames.load(table, level.index(gfn))).table()?;
        }
        Some(table)
    }

    /// Whether the region that one `level` entry stands for has no restricted page.
    ///
    /// # Panics
    /// Like [`vector`](Self::vector), where `level` is that of a page.
    pub fn is_unrestricted<F: TableFrames>(self, frames: &F, level: Level, gfn: Gfn) -> bool {
        let mut table = self.root;
        for upper in [Level::L4, Level::L3, Level::L2] {
            let entry = SpptEntry::from(frames.load(table, upper.index(gfn)));
            match entry.table() {
                None => return true,
                Some(_) if upper == level => return false,
                Some(next) => table = next,
            }
        }
        stored_vector(frames.load(table, Level::L1.index(gfn))).is_unrestricted()
    }

    /// Reads the maps of consecutive pages.
    ///
    /// # Panics
    /// If `maps` is not exactly as long as `range`.
    pub fn read_run<F: TableFrames>(self, frames: &F, range: GfnRange, maps: &mut [AccessMap]) {
        assert_eq!(maps.len() as u64, range.pages(), "one map per page");
        let mut rest = maps;
        for piece in range.aligned_pieces(Level::L2.order()) {
            let (now, later) = rest.split_at_mut(piece_len(piece));
            rest = later;
            match self.leaf_table(frames, piece.first()) {
                None => now.fill(AccessMap::ALL),
                Some(table) => read_leaves(frames, table, Level::L1.index(piece.first()), now),
            }
        }
    }

    /// The first restricted page at or after `from`, for enumeration without a list.
    ///
    /// # Panics
    /// Like [`vector`](Self::vector), for every page that is passed.
    pub fn next_restricted<F: TableFrames>(self, frames: &F, from: Gfn) -> Option<Gfn> {
        next_restricted_below(frames, self.root, Level::L4, Gfn::new(0), from)
    }
}

/// Reads the maps of a run of leaves.
fn read_leaves<F: TableFrames>(
    frames: &F,
    table: TableFrame,
    first: EntryIndex,
    maps: &mut [AccessMap],
) {
    let first = first.get();
    if let Some(entries) = frames.plain(table) {
        return compress_into(&entries[first..first + maps.len()], maps);
    }
    let mut entries = [0; COPIED];
    for (maps, first) in maps.chunks_mut(COPIED).zip((first..).step_by(COPIED)) {
        let entries = &mut entries[..maps.len()];
        frames.load_run(table, EntryIndex::truncate(first as u64), entries);
        compress_into(entries, maps);
    }
}

/// Searches the subtree of `table`, whose first entry stands for `base`, for a page at or after
/// `from`.
fn next_restricted_below<F: TableFrames>(
    frames: &F,
    table: TableFrame,
    level: Level,
    base: Gfn,
    from: Gfn,
) -> Option<Gfn> {
    let start = from.as_u64().saturating_sub(base.as_u64()) >> level.order();
    let first = u16::try_from(start).ok().and_then(EntryIndex::new)?;
    for index in first.onwards() {
        let gfn = Gfn::new(base.as_u64() + index.get() as u64 * level.frames());
        let raw = frames.load(table, index);
        let found = match (level.below(), SpptEntry::from(raw).table()) {
            (None, _) => (!stored_vector(raw).is_unrestricted()).then_some(gfn),
            (Some(below), Some(next)) => next_restricted_below(frames, next, below, gfn, from),
            (Some(_), None) => None,
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// Reads back a vector that the engine stored.
///
/// # Panics
/// If a reserved bit is set: the table was damaged from outside, and no answer read from it can be
/// trusted.
#[inline]
pub(crate) fn stored_vector(bits: u64) -> SppVector {
    SppVector::try_from_bits(bits).expect("the engine stores vectors without reserved bits")
}

/// Length of a piece that lies within one table.
fn piece_len(piece: GfnRange) -> usize {
    usize::try_from(piece.pages()).expect("a piece has at most 512 pages")
}

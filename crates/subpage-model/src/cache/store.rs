//! Everything a processor may remember, without a limit on how much.

use std::collections::HashMap;

use subpage::access::AccessMap;
use subpage::address::Gfn;
use subpage::level::{Level, PageSize};

use super::Mapping;
use crate::ept_walk::Start;
use crate::sppt_walk::SpptStart;

/// The region of an entry at a level: the frame number without the bits below.
fn region(gfn: Gfn, level: Level) -> u64 {
    gfn.as_u64() >> level.order()
}

const SIZES: [PageSize; 3] = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];
/// Levels of the tables that a remembered upper entry can name, the deepest first: the walk
/// continues as far down as memory reaches.
const BELOW_ROOT: [Level; 3] = [Level::L1, Level::L2, Level::L3];

/// The region that leads to a table of `level`: that of the entry one level above.
fn parent_region(gfn: Gfn, level: Level) -> u64 {
    gfn.as_u64() >> (level.order() + 9)
}

/// Guest-physical mappings of whole pages, vectors, and the entries of both tables on the way.
///
/// Mappings are kept at the size of the page, as TLBs do: a 2 MiB translation used for one of its
/// 4 KiB frames stays good for the 511 others, though a split has since changed the tables.
#[derive(Debug, Clone, Default)]
pub(crate) struct Store {
    /// The mapping's frame is that of the first 4 KiB of the page.
    pages: HashMap<(PageSize, u64), Mapping>,
    vectors: HashMap<Gfn, AccessMap>,
    ept_tables: HashMap<(Level, u64), Start>,
    sppt_tables: HashMap<(Level, u64), SpptStart>,
}

impl Store {
    pub(crate) fn mapping(&self, gfn: Gfn) -> Option<Mapping> {
        let vector = self.vectors.get(&gfn).copied();
        SIZES.iter().find_map(|size| {
            let page = self.pages.get(&(*size, region(gfn, size.level())))?;
            let offset = (gfn.as_u64() % size.frames()) * subpage::address::PAGE_BYTES;
            let frame = page.frame.checked_add(offset).expect("a page lies below 2^52");
            Some(Mapping { frame, vector, ..*page })
        })
    }

    pub(crate) fn insert(&mut self, gfn: Gfn, mapping: &Mapping) {
        let size = mapping.page.size;
        let offset = (gfn.as_u64() % size.frames()) * subpage::address::PAGE_BYTES;
        let first = subpage::address::Hpa::new(mapping.frame.as_u64() - offset);
        let page = Mapping { frame: first, vector: None, ..*mapping };
        self.pages.insert((size, region(gfn, size.level())), page);
        if let Some(vector) = mapping.vector {
            self.vectors.insert(gfn, vector);
        }
    }

    pub(crate) fn insert_ept_table(&mut self, gfn: Gfn, table: Start) {
        self.ept_tables.insert((table.level, parent_region(gfn, table.level)), table);
    }

    pub(crate) fn insert_sppt_table(&mut self, gfn: Gfn, table: SpptStart) {
        self.sppt_tables.insert((table.level, parent_region(gfn, table.level)), table);
    }

    pub(crate) fn deepest_ept_table(&self, gfn: Gfn) -> Option<Start> {
        BELOW_ROOT
            .iter()
            .find_map(|level| self.ept_tables.get(&(*level, parent_region(gfn, *level))).copied())
    }

    pub(crate) fn deepest_sppt_table(&self, gfn: Gfn) -> Option<SpptStart> {
        BELOW_ROOT
            .iter()
            .find_map(|level| self.sppt_tables.get(&(*level, parent_region(gfn, *level))).copied())
    }

    /// Forgets everything that would be used to translate `gfn`. Returns whether that included a
    /// page larger than 4 KiB.
    pub(crate) fn remove(&mut self, gfn: Gfn) -> bool {
        self.vectors.remove(&gfn);
        for level in BELOW_ROOT {
            self.ept_tables.remove(&(level, parent_region(gfn, level)));
            self.sppt_tables.remove(&(level, parent_region(gfn, level)));
        }
        let mut large = false;
        for size in SIZES {
            let removed = self.pages.remove(&(size, region(gfn, size.level()))).is_some();
            large |= removed && size != PageSize::Size4K;
        }
        large
    }

    pub(crate) fn clear(&mut self) {
        self.pages.clear();
        self.vectors.clear();
        self.ept_tables.clear();
        self.sppt_tables.clear();
    }
}

//! Four-level tables as plain arrays of 512 entries.

/// Bit 0 of an upper SPPT entry, and the read right of an EPT entry.
pub(super) const VALID: u64 = 1;
/// Bits 51:12: here the position of the next table, as KVM reaches it by one addition.
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

type Table = [u64; 512];

/// A radix tree over frame numbers.
pub(super) struct DenseTables {
    tables: Vec<Table>,
    /// What is set in an entry that links a table, besides the address.
    link: u64,
}

/// Where an entry stands.
#[derive(Clone, Copy)]
pub(super) struct Place {
    table: usize,
    index: usize,
}

#[allow(clippy::cast_possible_truncation)] // Nine bits.
const fn index(gfn: u64, level: u32) -> usize {
    (gfn >> (9 * (level - 1)) & 0x1FF) as usize
}

#[allow(clippy::cast_possible_truncation)] // Positions in a vector.
const fn next_table(entry: u64) -> usize {
    ((entry & ADDRESS) >> 12) as usize
}

impl DenseTables {
    /// A root; `link` is what a linking entry holds besides the address.
    pub(super) fn new(link: u64) -> Self {
        Self { tables: vec![[0; 512]], link: link | VALID }
    }

    pub(super) fn load(&self, place: Place) -> u64 {
        self.tables[place.table][place.index]
    }

    pub(super) fn store(&mut self, place: Place, entry: u64) {
        self.tables[place.table][place.index] = entry;
    }

    /// Walks from the root to the entry of `gfn` at `level`; `None` if an entry above is not valid.
    pub(super) fn walk(&self, gfn: u64, level: u32) -> Option<Place> {
        let mut table = 0;
        for above in (level + 1..=4).rev() {
            let entry = self.tables[table][index(gfn, above)];
            if entry & VALID == 0 {
                return None;
            }
            table = next_table(entry);
        }
        Some(Place { table, index: index(gfn, level) })
    }

    /// Walks to the leaf of `gfn`, making valid what is not: an entry that still holds an address
    /// gets its valid bit back, any other gets a new table.
    pub(super) fn walk_or_create(&mut self, gfn: u64) -> Place {
        let mut table = 0;
        for level in [4, 3, 2] {
            let index = index(gfn, level);
            let mut entry = self.tables[table][index];
            if entry & VALID == 0 {
                let next = if next_table(entry) == 0 { self.add() } else { next_table(entry) };
                entry = self.link | (next as u64) << 12;
                self.tables[table][index] = entry;
            }
            table = next_table(entry);
        }
        Place { table, index: index(gfn, 1) }
    }

    fn add(&mut self) -> usize {
        self.tables.push([0; 512]);
        self.tables.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_without_its_valid_bit_gets_its_table_back() {
        let mut tables = DenseTables::new(0);
        let gfn = 0x8_1234_5678;
        assert!(tables.walk(gfn, 1).is_none());
        let leaf = tables.walk_or_create(gfn);
        tables.store(leaf, 77);
        let above = tables.walk(gfn, 2).expect("made by the walk");
        let entry = tables.load(above);
        tables.store(above, entry & !VALID);
        assert!(tables.walk(gfn, 1).is_none());
        let again = tables.walk_or_create(gfn);
        assert_eq!(tables.load(again), 77);
        assert_eq!(tables.tables.len(), 4);
    }
}

//! The page-modification log.

use subpage::address::Gpa;

/// Entries in the log: one 4 KiB page of 8-byte addresses.
pub const PML_ENTRIES: usize = 512;

/// The index of an empty log.
const LAST: u16 = 511;

/// The page-modification log of one virtual CPU and its index field.
///
/// SDM Vol. 3C, "Page-Modification Logging"; `docs/spp.md` 1.8. Entries are written from the end
/// of the page to its start: the index counts down from 511 and turns to FFFFH behind entry 0.
#[derive(Debug, Clone)]
pub struct PageModificationLog {
    entries: Box<[u64; PML_ENTRIES]>,
    index: u16,
}

impl PageModificationLog {
    /// An empty log: index 511.
    pub(crate) fn new() -> Self {
        Self { entries: Box::new([0; PML_ENTRIES]), index: LAST }
    }

    /// The PML index field: the entry that is written next, or FFFFH.
    pub const fn index(&self) -> u16 {
        self.index
    }

    /// Whether the index is out of the range 0 to 511, so that the next access that must set an
    /// accessed or dirty flag exits.
    pub const fn is_full(&self) -> bool {
        self.index as usize >= PML_ENTRIES
    }

    /// The logged addresses, oldest first.
    pub fn logged(&self) -> impl Iterator<Item = Gpa> {
        let first = usize::from(self.index.wrapping_add(1));
        self.entries[first..].iter().rev().map(|gpa| Gpa::new(*gpa))
    }

    /// Empties the log, as a hypervisor does by setting the index to 511.
    pub fn clear(&mut self) {
        self.index = LAST;
    }

    /// Logs the page of `gpa` (bits 11:0 are written as 0) and counts the index down.
    ///
    /// # Panics
    /// If the log is full: the processor exits before it sets the dirty flag.
    pub(crate) fn log(&mut self, gpa: Gpa) {
        assert!(!self.is_full(), "a full page-modification log is written");
        self.entries[usize::from(self.index)] = gpa.gfn().gpa().as_u64();
        self.index = self.index.wrapping_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_counts_down_and_turns_over_behind_entry_0() {
        let mut log = PageModificationLog::new();
        for page in 0..512_u64 {
            assert_eq!(u64::from(log.index()), 511 - page);
            assert!(!log.is_full());
            log.log(Gpa::new(page << 12 | 0xABC));
        }
        assert_eq!(log.index(), 0xFFFF);
        assert!(log.is_full());
        let pages: Vec<u64> = log.logged().map(Gpa::as_u64).collect();
        assert_eq!(pages, (0..512).map(|page| page << 12).collect::<Vec<_>>());
        log.clear();
        assert_eq!(log.logged().count(), 0);
    }
}

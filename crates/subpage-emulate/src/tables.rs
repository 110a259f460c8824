//! Which pages hold the guest's page tables.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use subpage::address::{Gfn, Gpa, PAGE_BYTES};

use super::PagingFeatures;
use super::paging::{Format, PRESENT};
use crate::bits::CR0_PG;
use crate::guest::{PhysicalMemory, State};

/// Bytes of a table, whatever the format; the one of PAE paging's root is shorter.
const TABLE_BYTES: usize = 4096;

/// The pages of the page tables below CR3, ascending.
///
/// At most `most` tables are looked at, so that a guest cannot make this take long; tables that are no
/// memory are passed over. Without paging there are none.
pub fn table_frames<M: PhysicalMemory>(
    memory: &M,
    paging: PagingFeatures,
    state: &State,
    most: usize,
) -> Vec<Gfn> {
    let mut frames = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    let format = Format::of(state);
    if state.cr0 & CR0_PG != 0 {
        found.push((format.root(state.cr3), format.levels()));
    }
    while let Some((table, level)) = found.pop() {
        if seen.len() >= most || !seen.insert((table, level)) {
            continue;
        }
        let Ok(gpa) = Gpa::try_new(table) else { continue };
        frames.insert(gpa.gfn());
        if level > 1 {
            let next = Next { memory, paging, state, format };
            next.tables(gpa, level, |below| found.push((below, level - 1)));
        }
    }
    frames.into_iter().collect()
}

struct Next<'a, M> {
    memory: &'a M,
    paging: PagingFeatures,
    state: &'a State,
    format: Format,
}

impl<M: PhysicalMemory> Next<'_, M> {
    /// Calls `each` with every table that an entry of the table at `gpa` leads to.
    fn tables(&self, gpa: Gpa, level: u32, mut each: impl FnMut(u64)) {
        let mut bytes = [0; TABLE_BYTES];
        let length = self.format.table_bytes(level).min(rest_of_page(gpa));
        let bytes = &mut bytes[..length];
        if self.memory.read(gpa, bytes).is_err() {
            return;
        }
        let entry_bytes = usize::from(self.format.entry_bytes());
        for entry in bytes.chunks_exact(entry_bytes) {
            let mut value = [0; 8];
            value[..entry_bytes].copy_from_slice(entry);
            let value = u64::from_le_bytes(value);
            let leaf = self.format.is_leaf(self.state, level, value);
            let reserved = self.format.reserved(self.paging, self.state, level, leaf);
            if value & PRESENT != 0 && !leaf && value & reserved == 0 {
                each(self.format.address(level, false, value));
            }
        }
    }
}

#[allow(clippy::cast_possible_truncation)] // At most 4096.
fn rest_of_page(gpa: Gpa) -> usize {
    (PAGE_BYTES - u64::from(gpa.page_offset())) as usize
}

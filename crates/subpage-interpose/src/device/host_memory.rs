//! This process's own memory, as a guest's: for instructions of the VMM.
//!
//! Page tables that map every address to itself are made up while they are read.

use subpage::address::Gpa;
use subpage_emulate::PagingFeatures;
use subpage_emulate::guest::{NotMemory, PhysicalMemory};

use crate::memory::raw::read_own;

/// Where the page tables are: behind all addresses of programs, below what the engine takes for none.
pub(crate) const TABLES: u64 = 1 << 47;

/// Behind the last address of a program.
const END: u64 = 1 << 47;

/// Present, writable, user, accessed, dirty.
const FLAGS: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 5 | 1 << 6;

/// What walks go by.
pub(crate) fn paging() -> PagingFeatures {
    PagingFeatures { gigabyte_pages: true, ..crate::processor::widest_paging() }
}

/// The memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HostMemory;

impl PhysicalMemory for HostMemory {
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), NotMemory> {
        let at = gpa.as_u64();
        if at >= TABLES {
            let word = entry(at & !7).to_ne_bytes();
            let skip = usize::try_from(at & 7).expect("less than 8");
            let part = word.get(skip..skip + buffer.len()).ok_or(NotMemory)?;
            buffer.copy_from_slice(part);
            return Ok(());
        }
        if at.checked_add(buffer.len() as u64).is_none_or(|end| end > END) {
            return Err(NotMemory);
        }
        read_own(at, buffer);
        Ok(())
    }

    fn write(&self, _: Gpa, _: &[u8]) -> Result<(), NotMemory> {
        Err(NotMemory)
    }

    fn set_bits(&self, _: Gpa, _: u64, _: u64) -> Result<Result<(), u64>, NotMemory> {
        // All entries are marked.
        Err(NotMemory)
    }
}

/// An entry of the tables: of the first, which has one for each 512 GiB, or of one for these.
fn entry(at: u64) -> u64 {
    let (table, number) = ((at - TABLES) / 4096, (at & 0xfff) / 8);
    match table {
        0 => (TABLES + (1 + number) * 4096) | FLAGS,
        // A page of 1 GiB.
        table => (table - 1) << 39 | number << 30 | 1 << 7 | FLAGS,
    }
}

#[cfg(test)]
mod tests {
    use subpage_emulate::guest::State;
    use subpage_emulate::{Access, translate};

    use super::*;

    #[test]
    fn every_address_is_itself() {
        let mut state = State { cr3: TABLES, cpl: 3, ..State::default() };
        (state.cr0, state.cr4, state.efer) = (1 << 31 | 1, 1 << 5, 1 << 10 | 1 << 8);
        state.segments.cs.access = subpage_emulate::bits::SEGMENT_LONG;
        for address in [0, 0x1234, 0x5555_5555_5008, 0x7fff_ffff_f000] {
            let access = Access::write_by(&state);
            let found = translate(&HostMemory, paging(), &state, address, access);
            let found = found.expect("mapped");
            assert_eq!(found.gpa.as_u64(), address);
            assert!(found.marks.is_empty(), "nothing is to be marked");
        }
    }
}

//! Which pages hold page tables.

use subpage::address::Gfn;
use subpage_emulate::guest::State;
use subpage_emulate::table_frames;

use crate::flat::Flat;
use crate::machine::{PAGING, state_64};

fn four_level(cr3: u64) -> State {
    State { cr0: 0x8000_0011, cr3, cr4: 1 << 5, efer: 0x501, ..state_64() }
}

fn frames(memory: &Flat, state: &State, most: usize) -> Vec<u64> {
    table_frames(memory, PAGING, state, most).into_iter().map(Gfn::as_u64).collect()
}

#[test]
fn all_tables_are_found_and_no_page_that_a_leaf_maps() {
    let memory = Flat::new(0x10000);
    memory.put(0x1000, &0x2003_u64.to_le_bytes());
    memory.put(0x1ff8, &0x3003_u64.to_le_bytes());
    // A 1 GiB page, an absent entry, a directory.
    memory.put(0x2000, &0x4000_0083_u64.to_le_bytes());
    memory.put(0x2008, &0x9002_u64.to_le_bytes());
    memory.put(0x2010, &0x4003_u64.to_le_bytes());
    memory.put(0x3000, &0x4003_u64.to_le_bytes());
    // A 2 MiB page and a table, whose entries are leaves.
    memory.put(0x4000, &0x20_0083_u64.to_le_bytes());
    memory.put(0x4008, &0x5003_u64.to_le_bytes());
    memory.put(0x5000, &0xa003_u64.to_le_bytes());
    assert_eq!(frames(&memory, &four_level(0x1000), 100), [1, 2, 3, 4, 5]);
    let unpaged = State { cr0: 0x11, ..four_level(0x1000) };
    assert!(frames(&memory, &unpaged, 100).is_empty());
}

#[test]
fn tables_that_lead_to_themselves_end() {
    let memory = Flat::new(0x3000);
    // Each entry of two pages leads to one of them.
    for index in 0..1024_u64 {
        let to = 0x1003 + (index % 2) * 0x1000;
        memory.put(0x1000 + index * 8, &to.to_le_bytes());
    }
    assert_eq!(frames(&memory, &four_level(0x1000), 100), [1, 2]);
    assert_eq!(frames(&memory, &four_level(0x1000), 1), [1], "and no more than asked for");
}

#[test]
fn formats_of_32_bits_have_theirs() {
    let memory = Flat::new(0x10000);
    memory.put(0x1000, &0x2003_u32.to_le_bytes());
    memory.put(0x1004, &0x40_0083_u32.to_le_bytes());
    memory.put(0x1ffc, &0x3003_u32.to_le_bytes());
    let bits32 = State { cr0: 0x8000_0011, cr3: 0x1000, cr4: 1 << 4, efer: 0, ..state_64() };
    assert_eq!(frames(&memory, &bits32, 100), [1, 2, 3]);
    let memory = Flat::new(0x10000);
    // PAE: four entries at CR3, without a writable flag; what lies behind them is none.
    memory.put(0x1020, &0x2001_u64.to_le_bytes());
    memory.put(0x1018 + 0x20, &0x3001_u64.to_le_bytes());
    memory.put(0x1040, &0x4001_u64.to_le_bytes());
    memory.put(0x2000, &0x5003_u64.to_le_bytes());
    let pae = State { cr3: 0x1020, cr4: 1 << 5, ..bits32 };
    assert_eq!(frames(&memory, &pae, 100), [1, 2, 3, 5]);
}

#[test]
fn tables_that_are_no_memory_are_passed_over() {
    let memory = Flat::new(0x2000);
    memory.put(0x1000, &0x000f_ffff_f000_0003_u64.to_le_bytes());
    memory.put(0x1008, &0x7f_ffff_f003_u64.to_le_bytes());
    let found = frames(&memory, &four_level(0x1000), 100);
    assert_eq!(found.first(), Some(&1));
}

//! Guest page tables in restricted pages: the processor's walks are no writes of the guest, its
//! translations are right, and a direct write to an entry is denied.

use crate::hypervisor::set_access;
use crate::hypervisor::test_hooks::{Counter, growth};
use crate::memory::paging::{ACCESSED, DIRTY, PRESENT, Space, USER, WRITE};
use crate::memory::{Bytes, frames};
use crate::test;

/// Which tables of the window are closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Closed {
    /// All: each instruction's own fetch goes through a closed table.
    All,
    /// All but the root: only walks for the window meet one.
    BelowRoot,
}

/// A mapped window with closed tables.
fn closed(pages: [Bytes; 3], which: Closed) -> Space {
    let space = Space::new();
    for (index, page) in pages.into_iter().enumerate() {
        space.map(index as u64, page, WRITE | USER);
    }
    for table in [space.pointers, space.directory, space.table] {
        set_access(table, 0);
    }
    if which == Closed::All {
        set_access(space.root, 0);
    }
    space
}

/// Translations through closed tables are right, and accessed and dirty flags are kept.
fn walks_through_protected_tables() {
    check_walks(Closed::All);
}
test!(walks_through_protected_tables);

/// The same where instructions are fetched through open tables.
fn data_walks_through_protected_tables() {
    check_walks(Closed::BelowRoot);
}
test!(data_walks_through_protected_tables);

fn check_walks(which: Closed) {
    let pages = core::array::from_fn(|_| frames::page());
    for (index, page) in pages.iter().enumerate() {
        page.write(0, 0x100 + index as u64);
    }
    let space = closed(pages, which);
    let entry = |index: u64| space.table.read::<u64>(8 * index);
    let denied = growth(Counter::Denied, || {
        space.run(|| {
            for round in 0..3 {
                for index in 0..3 {
                    let expected = 0x100 * (round + 1) + index;
                    assert_eq!(Space::page(index).read::<u64>(0), expected, "page {index}");
                    Space::page(index).write(0, expected + 0x100);
                }
            }
        });
    });
    assert_eq!(denied, 0, "a page walk counted as a write of the guest");
    for (index, page) in pages.iter().enumerate() {
        assert_eq!(page.read::<u64>(0), 0x400 + index as u64);
        assert_eq!(entry(index as u64) & (ACCESSED | DIRTY), ACCESSED | DIRTY, "entry {index}");
    }
    assert_eq!(space.table.read::<u64>(8 * 3), 0);
    for table in [space.root, space.pointers, space.directory] {
        let offset = if table == space.root { 8 } else { 0 };
        assert_eq!(table.read::<u64>(offset) & (PRESENT | ACCESSED), PRESENT | ACCESSED);
    }
}
/// A read sets the accessed flag only.
fn reads_leave_the_dirty_flag() {
    for which in [Closed::All, Closed::BelowRoot] {
        let pages = core::array::from_fn(|_| frames::page());
        let space = closed(pages, which);
        space.run(|| assert_eq!(Space::page(1).read::<u64>(8), 0));
        let entry: u64 = space.table.read(8);
        assert_eq!(entry & (ACCESSED | DIRTY), ACCESSED, "{which:?}");
        assert_eq!(space.table.read::<u64>(0) & (ACCESSED | DIRTY), 0, "page 0 was not touched");
    }
}
test!(reads_leave_the_dirty_flag);

/// The guest cannot change an entry of a closed table, neither by its own address nor by another
/// mapping, but can one in a permitted sub-page.
fn entries_in_protected_tables_are_closed() {
    let pages: [Bytes; 3] = core::array::from_fn(|_| frames::page());
    let space = closed(pages, Closed::All);
    let stranger = frames::page();
    stranger.write(0, 0xbad_u64);
    let forged = stranger.address() | PRESENT | WRITE;
    let entry: u64 = space.table.read(0);
    let denied = growth(Counter::Denied, || {
        space.table.write(0, forged);
        space.table.write(0, 0_u8);
        space.run(|| space.directory.write(0, 0_u64));
    });
    assert_eq!(denied, 3);
    assert_eq!(space.table.read::<u64>(0) & !(ACCESSED | DIRTY), entry & !(ACCESSED | DIRTY));
    space.run(|| assert_eq!(Space::page(0).read::<u64>(0), 0));
    // Entries 16 to 31 lie in sub-page 1.
    set_access(space.table, 1 << 1);
    space.map(16, stranger, WRITE);
    let value = space.run(|| {
        Space::page(16).increment(0);
        Space::page(16).read::<u64>(0)
    });
    assert_eq!(value, 0xbae);
    assert_eq!(stranger.read::<u64>(0), 0xbae);
}
test!(entries_in_protected_tables_are_closed);

/// A denied write whose page walk goes through closed tables is still denied, once.
fn denied_write_behind_a_protected_table() {
    let pages: [Bytes; 3] = core::array::from_fn(|_| frames::page());
    let space = closed(pages, Closed::All);
    set_access(pages[0], !1);
    let denied = growth(Counter::Denied, || {
        space.run(|| {
            Space::page(0).write(0, 1_u64);
            Space::page(0).write(0x80, 2_u64);
        });
    });
    assert_eq!(denied, 1);
    assert_eq!(pages[0].read::<u64>(0), 0);
    assert_eq!(pages[0].read::<u64>(0x80), 2);
}
test!(denied_write_behind_a_protected_table);

/// A store across the end of a linear page, whose two parts lie in guest-physical pages that are no
/// neighbours: each part is judged where it lies, and both or none take effect.
fn store_across_distant_pages() {
    let pages: [Bytes; 3] = core::array::from_fn(|_| frames::page());
    let space = Space::new();
    // The linear neighbour of the first page is the last one, and the other way round.
    for (index, page) in [(0, pages[0]), (1, pages[2]), (2, pages[1])] {
        space.map(index, page, WRITE | USER);
    }
    let store = |first: u64, value: u64| {
        space.run(|| Space::pages(first, 2).write(0xffc, value));
    };
    let ends = |lower: Bytes, upper: Bytes| (lower.read::<u32>(0xffc), upper.read::<u32>(0));
    // A closed neighbour in guest-physical memory is none of the store's business.
    set_access(pages[0], 1 << 31);
    set_access(pages[1], 0);
    set_access(pages[2], 1);
    let denied = growth(Counter::Denied, || store(0, 0x1111_1111_2222_2222));
    assert_eq!((denied, ends(pages[0], pages[2])), (0, (0x2222_2222, 0x1111_1111)));
    set_access(pages[2], !1);
    let denied = growth(Counter::Denied, || store(0, 0x3333_3333_4444_4444));
    assert_eq!((denied, ends(pages[0], pages[2])), (1, (0x2222_2222, 0x1111_1111)));
    set_access(pages[2], 0x8000_0001);
    let denied = growth(Counter::Denied, || store(1, 0x5555_5555_6666_6666));
    assert_eq!((denied, ends(pages[2], pages[1])), (1, (0, 0)));
    set_access(pages[1], 1);
    let denied = growth(Counter::Denied, || store(1, 0x5555_5555_6666_6666));
    assert_eq!((denied, ends(pages[2], pages[1])), (0, (0x6666_6666, 0x5555_5555)));
    assert_eq!(pages[2].read::<u32>(0), 0x1111_1111);
}
test!(store_across_distant_pages);

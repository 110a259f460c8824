//! The decision about an 8-byte write in a guest of 1 TiB with 1,000 restricted pages.

use std::hint::black_box;

use subpage::access::{AccessMap, SUB_PAGE_BYTES};
use subpage::address::{ByteRange, Gfn, Gpa};
use subpage::slots::AddressSpace;

use crate::guest::{self, TIB};
use subpage_bench::report::Record;
use subpage_bench::rounds::{Rounds, timed};

pub(super) const NAME: &str = "check_write";

/// Restricted pages.
pub(super) const RESTRICTED: u64 = 1000;

/// Different addresses; enough that no branch is remembered.
const ADDRESSES: usize = 1 << 16;

/// Passes over the addresses in one round.
const PASSES: u32 = 4;

/// The restricted pages, spread evenly over the guest, with their maps.
pub(super) fn restricted_pages(random: &mut fastrand::Rng) -> Vec<(u64, AccessMap)> {
    let maps = guest::mixed_maps(random, usize::try_from(RESTRICTED).expect("a small count"));
    (0..RESTRICTED).map(|n| guest::nth_page(n * (TIB / RESTRICTED) + n % 512)).zip(maps).collect()
}

/// A plain radix tree of the shape of the SPPT: four dependent loads, whatever the address.
///
/// A page without a restriction takes four loads too: entries that would be absent lead through one
/// table of each level to a map of ones. That spares the baseline a branch nobody can predict.
struct Walk4 {
    tables: Vec<[u64; 512]>,
    root: u64,
}

impl Walk4 {
    fn new(pages: &[(u64, AccessMap)]) -> Self {
        let mut tree = Self { tables: vec![[u64::from(u32::MAX); 512]], root: 0 };
        for unrestricted in 0..3 {
            tree.tables.push([unrestricted; 512]);
        }
        tree.root = tree.copy_of(3);
        for (gfn, map) in pages {
            let mut table = tree.root;
            for (level, absent) in [(3, 2), (2, 1), (1, 0)] {
                let (at, index) = (position(table), index(*gfn, level));
                if tree.tables[at][index] == absent {
                    tree.tables[at][index] = tree.copy_of(absent);
                }
                table = tree.tables[at][index];
            }
            tree.tables[position(table)][index(*gfn, 0)] = map.bits().into();
        }
        tree
    }

    fn copy_of(&mut self, table: u64) -> u64 {
        self.tables.push(self.tables[position(table)]);
        self.tables.len() as u64 - 1
    }

    /// Whether the sub-page that holds an address may be written.
    fn permits(&self, gpa: u64) -> bool {
        let gfn = gpa >> 12;
        let mut entry = self.root;
        for level in [3, 2, 1, 0] {
            entry = self.tables[position(entry)][index(gfn, level)];
        }
        entry >> (gpa / SUB_PAGE_BYTES % 32) & 1 == 1
    }
}

#[allow(clippy::cast_possible_truncation)] // Positions in a vector.
const fn position(table: u64) -> usize {
    table as usize
}

#[allow(clippy::cast_possible_truncation)] // Nine bits.
const fn index(gfn: u64, level: u32) -> usize {
    (gfn >> (9 * level) & 0x1FF) as usize
}

/// Addresses of 8-byte writes: half in restricted pages, half anywhere.
fn addresses(random: &mut fastrand::Rng, pages: &[(u64, AccessMap)]) -> Vec<u64> {
    (0..ADDRESSES)
        .map(|_| {
            let gfn = if random.bool() {
                pages[random.usize(..pages.len())].0
            } else {
                guest::nth_page(random.u64(..TIB))
            };
            (gfn << 12) + random.u64(..512) * 8
        })
        .collect()
}

/// Measures [`NAME`].
pub(super) fn run() -> Vec<Record> {
    let mut random = fastrand::Rng::with_seed(4);
    let pages = restricted_pages(&mut random);
    let mut engine = guest::domain(TIB);
    engine.enable().expect("memory for the root");
    for (gfn, map) in &pages {
        let token = engine.set_access(Gfn::new(*gfn), &[*map]).expect("a frame of a slot");
        engine.finish(&token.without_processors());
    }
    let tree = Walk4::new(&pages);
    let addresses = addresses(&mut random, &pages);

    let decide = |gpa: u64| {
        let write = ByteRange::new(Gpa::new(gpa), 8).expect("8 bytes of the guest");
        engine.check_write(AddressSpace::Normal, write).permits()
    };
    for gpa in &addresses {
        assert_eq!(decide(*gpa), tree.permits(*gpa), "engine and tree differ at {gpa:#x}");
    }

    let mut by_engine = || timed(|| chained(&addresses, decide));
    let mut by_tree = || timed(|| chained(&addresses, |gpa| tree.permits(gpa)));
    let mut engine_overlapped = || timed(|| overlapped(&addresses, decide));
    let mut tree_overlapped = || timed(|| overlapped(&addresses, |gpa| tree.permits(gpa)));
    let rounds =
        Rounds::run([&mut by_engine, &mut by_tree, &mut engine_overlapped, &mut tree_overlapped]);
    let decisions = u32::try_from(ADDRESSES).expect("a small count") * PASSES;
    vec![
        Record::new(
            NAME,
            "ns",
            rounds.nanoseconds(0, decisions),
            "walk4",
            rounds.nanoseconds(1, decisions),
        )
        .with_ratio(rounds.ratio(1, 0))
        .with("overlapped", rounds.nanoseconds(2, decisions))
        .with("overlapped_baseline", rounds.nanoseconds(3, decisions))
        .with("overlapped_ratio", rounds.ratio(3, 2).median)
        .with_note(
            "each decision waits for the one before; overlapped: independent ones in a loop",
        ),
    ]
}

/// Decisions that the processor may overlap.
fn overlapped(addresses: &[u64], decide: impl Fn(u64) -> bool) {
    for _ in 0..PASSES {
        let permitted = addresses.iter().filter(|gpa| decide(**gpa)).count();
        black_box(permitted);
    }
}

/// Decisions of which each waits for the one before, as writes that trap do.
fn chained(addresses: &[u64], decide: impl Fn(u64) -> bool) {
    for _ in 0..PASSES {
        let mut wait = 0;
        for gpa in addresses {
            wait = black_box(u64::from(decide(*gpa | wait))) >> 1;
        }
        black_box(wait);
    }
}

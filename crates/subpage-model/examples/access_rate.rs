//! Times one access of the model, in nanoseconds, for the kinds that a replay is made of.
//!
//! Run with `cargo run --release -p subpage-model --example access_rate`.

use std::hint::black_box;
use std::time::Instant;

use subpage::access::{AccessMap, SppVector};
use subpage::address::{Gpa, Hpa, PAGE_BYTES, PhysicalWidth};
use subpage::ept::EptEntry;
use subpage::frames::{ENTRIES, EntryIndex, HeapFrames, TableFrame, TableFrames};
use subpage::sppt::SpptEntry;
use subpage_model::{Access, AccessKind, Deviations, Features, Roots, Staleness, Vcpu};

/// Pages of the guest: the reach of one level-1 table.
const PAGES: u64 = 512;
/// Rounds of 64 accesses in one slice; the best of [`SLICES`] counts, so that other work on the
/// machine does not.
const ROUNDS: u64 = 1000;
const SLICES: u64 = 100;

fn table(frames: &mut HeapFrames) -> TableFrame {
    let table = frames.allocate().expect("memory for a few tables");
    frames.make_room(table, ENTRIES).expect("memory for a few tables");
    table
}

/// Four levels of each table for the first 2 MiB; the upper half of the pages is under SPP.
fn guest(frames: &mut HeapFrames) -> Roots {
    let zero = EntryIndex::truncate(0);
    let ept: Vec<_> = (0..4).map(|_| table(frames)).collect();
    let sppt: Vec<_> = (0..4).map(|_| table(frames)).collect();
    for level in 0..3 {
        frames.store(ept[level], zero, EptEntry::link(ept[level + 1]).into());
        frames.store(sppt[level], zero, SpptEntry::link(sppt[level + 1]).into());
    }
    for page in 0..PAGES {
        let spp = page >= PAGES / 2;
        let entry = EptEntry::new()
            .with_read(true)
            .with_write(!spp)
            .with_execute(true)
            .with_memory_type(6)
            .with_sub_page_write(spp)
            .with_hpa(Hpa::new(page * PAGE_BYTES));
        frames.store(ept[3], EntryIndex::truncate(page), entry.into());
        let vector = SppVector::from_map(AccessMap::from_bits(!1));
        frames.store(sppt[3], EntryIndex::truncate(page), vector.bits());
    }
    Roots { ept: ept[0], ept_accessed_dirty: false, sppt: Some(sppt[0]) }
}

fn main() {
    let mut frames = HeapFrames::new();
    let roots = guest(&mut frames);
    let features = Features::new(PhysicalWidth::MAX);
    for (name, staleness, first, offset) in [
        ("write, remembered, W = 1", Staleness::UntilEvicted, 0, 0x100),
        ("write, remembered, by vector", Staleness::UntilEvicted, PAGES / 2, 0x100),
        ("write, remembered, by vector, across sub-pages", Staleness::UntilEvicted, 256, 0x17C),
        ("write, denied by vector", Staleness::UntilEvicted, PAGES / 2, 0x7C),
        ("write, four-level walk, W = 1", Staleness::None, 0, 0x100),
        ("write, two four-level walks, by vector", Staleness::None, PAGES / 2, 0x100),
    ] {
        let mut vcpu = Vcpu::new(features, Deviations::NONE, staleness);
        let (mut exits, mut sum) = (0_u64, 0_u64);
        let mut best = f64::INFINITY;
        for slice in 0..SLICES {
            let start = Instant::now();
            for round in 0..ROUNDS {
                for page in 0..64 {
                    // A stride that visits every page, as a replay jumps about.
                    let page = first + (page * 37 + slice + round) % (PAGES / 2);
                    let gpa = Gpa::new(page * PAGE_BYTES + offset);
                    let access = Access::new(AccessKind::Write, black_box(gpa), 8).expect("legal");
                    match vcpu.access(&roots, &mut frames, &access) {
                        Ok(translation) => sum ^= translation.first.as_u64(),
                        Err(exit) => exits += u64::from(exit.reason.0 == 48),
                    }
                }
            }
            #[allow(clippy::cast_precision_loss)]
            let each = start.elapsed().as_nanos() as f64 / (ROUNDS * 64) as f64;
            best = best.min(each);
        }
        black_box(sum);
        println!("{best:7.2} ns  {name} ({exits} exits)");
    }
}

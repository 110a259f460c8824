//! Bytes held for 1,000 restricted pages spread evenly over 1 TiB.

use stats_alloc::Region;
use subpage::address::{Gfn, PAGE_BYTES};
use subpage::domain::Domain;
use subpage::frames::HeapFrames;

use super::check_write::restricted_pages;
use crate::HEAP;
use crate::dense::Dense;
use crate::guest::{self, TIB};
use subpage_bench::report::Record;

pub(super) const NAME: &str = "memory_1tib";

/// The same tables as a processor needs them.
const PROCESSOR_NAME: &str = "memory_1tib_processor";

/// Measures [`NAME`] and [`PROCESSOR_NAME`].
pub(super) fn run() -> Vec<Record> {
    let pages = restricted_pages(&mut fastrand::Rng::with_seed(5));

    let before = Region::new(HEAP);
    let mut engine = guest::domain(TIB);
    engine.enable().expect("memory for the root");
    for (gfn, map) in &pages {
        let token = engine.set_access(Gfn::new(*gfn), &[*map]).expect("a frame of a slot");
        engine.finish(&token.without_processors());
    }
    let engine_bytes = held(&before) + size_of::<Domain<HeapFrames>>();
    assert!(engine_bytes > engine.frames().bytes(), "the heap holds more than the tables");

    let before = Region::new(HEAP);
    let mut dense = Dense::new(&guest::slots(TIB));
    dense.enable();
    for (gfn, map) in &pages {
        dense.set_access(*gfn, &[map.bits()]).expect("a frame of a slot");
    }
    let dense_bytes = held(&before) + size_of::<Dense>();
    for (gfn, _) in &pages {
        let mut map = [0];
        dense.get_access(*gfn, &mut map).expect("a frame of a slot");
        assert_eq!(engine.permitted(Gfn::new(*gfn)).bits(), map[0], "frame {gfn:#x}");
    }

    let frames = engine.frames().frames_in_use();
    let page_bytes = usize::try_from(PAGE_BYTES).expect("4096");
    #[allow(clippy::cast_precision_loss)] // Far below 2^53.
    let record = |name, bytes: usize| {
        Record::new(name, "bytes", bytes as f64, "dense", dense_bytes as f64)
            .with("frames", frames as f64)
    };
    vec![
        record(NAME, engine_bytes).with_note(
            "everything on the heap; the baseline has one address space and no SPPT yet",
        ),
        record(PROCESSOR_NAME, frames * page_bytes).with_note(
            "tables as 4 KiB frames for a processor to walk: an L1 and an L2 for nearly every page",
        ),
    ]
}

/// Bytes in use now that were not when `before` began. What an allocation grew or shrank by counts
/// as allocated or deallocated.
fn held(before: &Region<'_, std::alloc::System>) -> usize {
    let change = before.change();
    change.bytes_allocated - change.bytes_deallocated
}

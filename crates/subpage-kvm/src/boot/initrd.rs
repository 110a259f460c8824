//! A place for the initrd: as high as the kernel takes it, in memory below 3 GiB.

use std::path::Path;

use subpage::address::{ByteRange, Gpa, PAGE_BYTES};

use super::part::HIGH_MEMORY;
use super::source::Source;
use super::{BootError, Part, Placed};

/// An initrd with its place.
#[derive(Debug)]
pub(super) struct Initrd {
    pub(super) source: Source,
    pub(super) placed: Placed,
}

/// Finds the highest place before `end` next to what is `taken`; whole pages from 1 MiB on.
pub(super) fn plan(path: &Path, end: u64, taken: &[Placed]) -> Result<Initrd, BootError> {
    let source = Source::open(path)?;
    let bytes = source.bytes();
    let Some(range) = highest_gap(bytes, end, taken) else {
        return Err(BootError::InitrdTooLarge {
            path: source.path(),
            bytes,
            from: HIGH_MEMORY,
            to: end,
        });
    };
    Ok(Initrd { source, placed: Placed { part: Part::Initrd, range } })
}

fn highest_gap(bytes: u64, end: u64, taken: &[Placed]) -> Option<ByteRange> {
    let mut taken = taken.to_vec();
    taken.sort_by_key(|placed| std::cmp::Reverse(placed.range.first()));
    let below = |end: u64| {
        let first = end.checked_sub(bytes)? / PAGE_BYTES * PAGE_BYTES;
        let range = ByteRange::new(Gpa::try_new(first).ok()?, bytes).ok()?;
        (first >= HIGH_MEMORY).then_some(range)
    };
    let mut range = below(end)?;
    for placed in taken {
        // From the highest part down: a part that the range misses is below or behind it, and no
        // later one can be behind.
        if placed.range.intersection(range).is_some() {
            range = below(placed.range.first().as_u64())?;
        }
    }
    Some(range)
}

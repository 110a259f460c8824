//! Which rules a write touches.

use subpage::address::ByteRange;

/// Which ranges a write touches, when both are widened to whole units.
#[derive(Debug, Clone)]
pub(super) struct TouchIndex {
    /// Unit in bytes.
    unit: u64,
    /// First unit, last unit and position of each range, by first unit.
    sorted: Vec<(u64, u64, usize)>,
    /// The highest last unit of all ranges up to here: where a search backwards may end.
    reach: Vec<u64>,
}

impl TouchIndex {
    pub(super) fn new(ranges: &[ByteRange], unit: u64) -> Self {
        Self::of(ranges.iter().copied().enumerate(), unit)
    }

    /// Of some ranges, each with its position.
    pub(super) fn of(ranges: impl Iterator<Item = (usize, ByteRange)>, unit: u64) -> Self {
        let units =
            |range: ByteRange| (range.first().as_u64() / unit, range.last().as_u64() / unit);
        let mut sorted: Vec<_> =
            ranges.map(|(position, range)| (units(range).0, units(range).1, position)).collect();
        sorted.sort_unstable();
        let reach = sorted
            .iter()
            .scan(0, |most, (_, last, _)| {
                *most = last.max(most).to_owned();
                Some(*most)
            })
            .collect();
        Self { unit, sorted, reach }
    }

    /// Calls `found` with the position of every range that shares a unit with `bytes`.
    pub(super) fn for_each(&self, bytes: ByteRange, mut found: impl FnMut(usize)) {
        let first = bytes.first().as_u64() / self.unit;
        let last = bytes.last().as_u64() / self.unit;
        let end = self.sorted.partition_point(|(start, _, _)| *start <= last);
        for at in (0..end).rev() {
            if self.reach[at] < first {
                break;
            }
            let (_, range_last, position) = self.sorted[at];
            if first <= range_last {
                found(position);
            }
        }
    }
}

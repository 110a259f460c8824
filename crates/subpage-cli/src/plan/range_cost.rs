//! What protecting given ranges would cost.

use schemars::JsonSchema;
use serde::Serialize;
use subpage::access::SUB_PAGE_BYTES;
use subpage::address::{ByteRange, PAGE_BYTES};

use subpage_trap::Address;

/// The cost of protecting one range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RangeCost {
    /// As the user gave it.
    pub name: String,
    /// First byte.
    pub start: Address,
    /// Bytes.
    pub length: u64,
    /// Writes that touch one of its bytes.
    pub writes: u64,
    /// Writes that touch one of its pages: the exits with page granularity.
    pub exits_page: u64,
    /// Writes that touch one of its sub-pages: the exits with sub-page granularity.
    pub exits_sub_page: u64,
}

/// Counts the cost of several ranges, each as if it were the only one.
#[derive(Debug, Clone, Default)]
pub struct RangeCosts {
    ranges: Vec<(ByteRange, RangeCost)>,
}

impl RangeCosts {
    /// Adds a range that is written from now on.
    pub fn add(&mut self, name: impl Into<String>, range: ByteRange) {
        let cost = RangeCost {
            name: name.into(),
            start: Address(range.first().as_u64()),
            length: range.bytes(),
            writes: 0,
            exits_page: 0,
            exits_sub_page: 0,
        };
        self.ranges.push((range, cost));
    }

    /// Counts a write.
    #[inline]
    pub fn count(&mut self, bytes: ByteRange) {
        for (range, cost) in &mut self.ranges {
            if !touches(bytes, *range, PAGE_BYTES) {
                continue;
            }
            cost.exits_page += 1;
            if touches(bytes, *range, SUB_PAGE_BYTES) {
                cost.exits_sub_page += 1;
                cost.writes += u64::from(touches(bytes, *range, 1));
            }
        }
    }

    /// The costs, in the order in which the ranges were added.
    pub fn into_costs(self) -> Vec<RangeCost> {
        self.ranges.into_iter().map(|(_, cost)| cost).collect()
    }
}

/// Whether two ranges have a unit of `unit` bytes in common.
fn touches(a: ByteRange, b: ByteRange, unit: u64) -> bool {
    let first = |range: ByteRange| range.first().as_u64() / unit;
    let last = |range: ByteRange| range.last().as_u64() / unit;
    first(a) <= last(b) && first(b) <= last(a)
}

#[cfg(test)]
mod tests {
    use subpage::address::Gpa;

    use super::*;

    fn range(start: u64, length: u64) -> ByteRange {
        ByteRange::new(Gpa::new(start), length).expect("a range")
    }

    /// Every short write around a range, against a loop over bytes.
    #[test]
    fn costs_agree_with_a_loop_over_bytes() {
        let guarded = range(0x1fe0, 0x120);
        let mut costs = RangeCosts::default();
        costs.add("x", guarded);
        let mut expected = [0; 3];
        for start in 0xf00..0x3100 {
            for length in [1, 8, 64] {
                let write = range(start, length);
                costs.count(write);
                for (index, unit) in [1, SUB_PAGE_BYTES, PAGE_BYTES].into_iter().enumerate() {
                    let units = |range: ByteRange| {
                        let all = range.first().as_u64()..=range.last().as_u64();
                        all.map(move |byte| byte / unit)
                    };
                    let met = units(write).any(|unit| {
                        units(guarded).next().is_some_and(|first| first <= unit)
                            && units(guarded).next_back().is_some_and(|last| unit <= last)
                    });
                    expected[index] += u64::from(met);
                }
            }
        }
        let cost = &costs.into_costs()[0];
        assert_eq!([cost.writes, cost.exits_sub_page, cost.exits_page], expected);
    }
}

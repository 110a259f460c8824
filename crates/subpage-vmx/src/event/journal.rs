//! Which events leave the machine although a guest may read the ring empty.
//!
//! An attacker in the guest's kernel can read the events of the attack before anybody else, and
//! what was read is gone from the ring. So events of what the host guards are printed, too, whatever
//! the guest does: the first of each rule, and one at each power of ten of them, so that a guest that
//! repeats its writes does not fill the line.

use alloc::vec::Vec;

use subpage::frames::OutOfFrames;
use subpage::rules::RuleId;

/// Rules of the host whose events are counted. Events of more are all printed.
const CAPACITY: usize = 1024;

/// How many events each rule of the host had.
#[derive(Debug)]
pub struct Journal {
    /// Ascending by rule; without one they are those of the host's access maps.
    counts: Vec<(Option<RuleId>, u64)>,
}

impl Journal {
    /// Counts of no event; takes all the memory that it will ever use.
    pub fn new() -> Result<Self, OutOfFrames> {
        let mut counts = Vec::new();
        counts.try_reserve_exact(CAPACITY).map_err(|_| OutOfFrames)?;
        Ok(Self { counts })
    }

    /// Counts an event of a rule, or of an access map, of the host. If it is to be printed, how many
    /// there were.
    pub fn note(&mut self, rule: Option<RuleId>) -> Option<u64> {
        let count = match self.counts.binary_search_by_key(&rule, |(rule, _)| *rule) {
            Ok(at) => {
                let count = &mut self.counts[at].1;
                *count += 1;
                *count
            }
            Err(at) => {
                if self.counts.len() < CAPACITY {
                    self.counts.insert(at, (rule, 1));
                }
                1
            }
        };
        is_power_of_ten(count).then_some(count)
    }
}

fn is_power_of_ten(count: u64) -> bool {
    count.checked_ilog10().is_some_and(|digits| 10_u64.pow(digits) == count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_each_power_of_ten() {
        let mut journal = Journal::new().expect("memory");
        let rule = Some(RuleId(7));
        let told: Vec<u64> = (0..12_345).filter_map(|_| journal.note(rule)).collect();
        assert_eq!(told, [1, 10, 100, 1000, 10_000]);
        // Others are counted for themselves, access maps too.
        assert_eq!(journal.note(Some(RuleId(3))), Some(1));
        assert_eq!(journal.note(None), Some(1));
        assert_eq!(journal.note(None), None);
        assert_eq!(journal.note(Some(RuleId(3))), None);
    }

    #[test]
    fn more_rules_than_are_counted_are_all_told() {
        let mut journal = Journal::new().expect("memory");
        let capacity = journal.counts.capacity();
        for rule in 0..2 * capacity as u64 {
            assert_eq!(journal.note(Some(RuleId(rule))), Some(1));
        }
        assert_eq!(journal.note(Some(RuleId(0))), None);
        assert_eq!(journal.note(Some(RuleId(2 * capacity as u64 - 1))), Some(1));
        assert_eq!(journal.counts.capacity(), capacity, "nothing was allocated");
    }
}

//! Counts of what trapped.

use std::collections::BTreeMap;
use std::sync::Arc;

use subpage::access::SUB_PAGE_BYTES;
use subpage::address::{ByteRange, Gpa};
use subpage::domain::{Domain, WriteParts};
use subpage::frames::HeapFrames;
use subpage::rules::RuleId;
use subpage_trap::{Record, Verdict};

/// What one rule did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuleCounts {
    /// Writes that touched a sub-page of the rule.
    pub checked: u64,
    /// Of these, writes to bytes of the rule about which another rule decided, a stronger one or an
    /// equally strong one before it, or an access map.
    pub overruled: u64,
    /// Of these, writes that took effect and were reported because of it.
    pub logged: u64,
    /// Of these, writes that had no effect because of it.
    pub denied: u64,
    /// The first of the denied.
    pub first_denial: Option<Arc<Record>>,
}

/// Counts since the guest was made.
#[derive(Debug, Clone, Default)]
pub struct TrapCounts {
    writes: u64,
    bytes: u64,
    guarded: u64,
    events: u64,
    rules: BTreeMap<u64, RuleCounts>,
    /// A rule that is none of the user's, and is not counted.
    hidden: Option<RuleId>,
    /// The rules that the last write touched; kept for its memory.
    touched: Vec<RuleId>,
}

impl TrapCounts {
    /// Writes that trapped.
    pub const fn writes(&self) -> u64 {
        self.writes
    }

    /// Bytes of those writes.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Of those writes, the ones that touched a sub-page with a rule: what would still trap with
    /// sub-page permissions in the processor.
    pub const fn guarded(&self) -> u64 {
        self.guarded
    }

    /// Events so far.
    pub const fn events(&self) -> u64 {
        self.events
    }

    /// Leaves this rule out of all counts.
    pub(crate) fn hide(&mut self, rule: RuleId) {
        self.hidden = Some(rule);
    }

    /// What a rule did.
    pub fn rule(&self, rule: u64) -> RuleCounts {
        self.rules.get(&rule).cloned().unwrap_or_default()
    }

    /// Counts a write that trapped.
    pub(crate) fn count(&mut self, domain: &Domain<HeapFrames>, write: &WriteParts) {
        self.count_open(write);
        self.touch(domain, write.runs().iter().map(|run| whole_sub_pages(*run)));
        for rule in &self.touched {
            self.rules.entry(rule.0).or_default().checked += 1;
        }
        self.guarded += u64::from(!self.touched.is_empty());
    }

    /// Counts a write that trapped and touches no restricted sub-page, so none of a rule.
    pub(crate) fn count_open(&mut self, write: &WriteParts) {
        self.writes += 1;
        self.bytes += write.bytes();
    }

    /// Finds the rules that guard bytes of these runs, each once.
    fn touch(&mut self, domain: &Domain<HeapFrames>, runs: impl Iterator<Item = ByteRange>) {
        self.touched.clear();
        for name in runs.flat_map(|run| domain.names_of(run)) {
            self.touched.extend(domain.rules().touching(name).map(|active| active.id));
        }
        self.touched.retain(|id| Some(*id) != self.hidden);
        self.touched.sort_unstable();
        self.touched.dedup();
    }

    /// Numbers the event of a write that was just decided about. Counts it for its rule, and for the
    /// rules that guard bytes of it and did not decide.
    pub(crate) fn record(
        &mut self,
        domain: &Domain<HeapFrames>,
        mut record: Record,
        write: &WriteParts,
    ) -> Arc<Record> {
        write.with_written(|runs| self.touch(domain, runs.iter().copied()));
        for rule in self.touched.iter().filter(|rule| Some(**rule) != record.event.rule) {
            self.rules.entry(rule.0).or_default().overruled += 1;
        }
        self.events += 1;
        record.seq = self.events;
        record.write = self.writes;
        let record = Arc::new(record);
        if let Some(RuleId(rule)) = record.event.rule {
            let counts = self.rules.entry(rule).or_default();
            match record.event.verdict {
                Verdict::Logged | Verdict::AllowedOnce => counts.logged += 1,
                Verdict::Denied | Verdict::Stopped => {
                    counts.denied += 1;
                    counts.first_denial.get_or_insert_with(|| Arc::clone(&record));
                }
            }
        }
        record
    }
}

/// The bytes of all sub-pages that a run touches.
fn whole_sub_pages(run: ByteRange) -> ByteRange {
    let first = run.first().as_u64() / SUB_PAGE_BYTES * SUB_PAGE_BYTES;
    let last = run.last().as_u64() / SUB_PAGE_BYTES * SUB_PAGE_BYTES + SUB_PAGE_BYTES - 1;
    ByteRange::new(Gpa::new(first), last - first + 1).expect("sub-pages of guest memory")
}

#[cfg(test)]
mod tests {
    use subpage::address::{Gfn, GfnRange, PhysicalWidth};
    use subpage::rules::{Action, Owner, Rule, RuleName};
    use subpage::slots::{SlotFlags, SlotId};
    use subpage_trap::Event;

    use super::*;
    use crate::guard::SPACE;

    fn bytes(first: u64, length: u64) -> ByteRange {
        ByteRange::new(Gpa::new(first), length).expect("a range")
    }

    /// Rules 1, 2 and so on over 16 pages.
    fn domain(rules: &[(ByteRange, Action)]) -> Domain<HeapFrames> {
        let mut domain = Domain::new(HeapFrames::new(), PhysicalWidth::MAX);
        domain.enable().expect("memory");
        let pages = GfnRange::new(Gfn::new(0), 16).expect("pages");
        domain.add_slot(SPACE, SlotId(0), pages, SlotFlags::default()).expect("memory");
        let rule = |&(range, action): &(ByteRange, Action)| Rule {
            name: RuleName::new("rule").expect("a name"),
            range,
            owner: Owner::HOST,
            action,
            locked: false,
        };
        let rules: Vec<_> = rules.iter().map(rule).collect();
        let (_, token) = domain.add_rules(&rules).expect("memory");
        domain.finish(&token.without_processors());
        domain
    }

    /// Checked, overruled, logged and denied of a rule.
    fn of(counts: &TrapCounts, rule: u64) -> [u64; 4] {
        let RuleCounts { checked, overruled, logged, denied, .. } = counts.rule(rule);
        [checked, overruled, logged, denied]
    }

    fn denied_by(rule: Option<u64>, write: &WriteParts) -> Record {
        let event = Event {
            rule: rule.map(RuleId),
            ..Event::bare(Verdict::Denied, Action::Deny, write.first())
        };
        Record::new(0, 0, event)
    }

    #[test]
    fn a_write_to_two_pages_counts_once_for_a_rule() {
        let all = bytes(0x1000, 0x4000);
        let domain = domain(&[(all, Action::Log), (bytes(0x4000, 4), Action::Deny)]);
        let write = WriteParts::two(bytes(0x1ffc, 4), bytes(0x4000, 4));
        let mut counts = TrapCounts::default();
        counts.count(&domain, &write);
        counts.record(&domain, denied_by(Some(2), &write), &write);
        assert_eq!(of(&counts, 1), [1, 1, 0, 0]);
        assert_eq!(of(&counts, 2), [1, 0, 0, 1]);
        assert_eq!((counts.writes(), counts.guarded(), counts.events()), (1, 1, 1));
    }

    #[test]
    fn a_map_overrules_and_a_byte_that_is_not_written_does_not_count() {
        let domain = domain(&[(bytes(0x1000, 4), Action::Log), (bytes(0x1008, 4), Action::Log)]);
        let write = WriteParts::one(bytes(0x1000, 16)).under_mask(0xff0f);
        let mut counts = TrapCounts::default();
        counts.count(&domain, &write);
        counts.record(&domain, denied_by(None, &write), &write);
        assert_eq!([of(&counts, 1), of(&counts, 2)], [[1, 1, 0, 0]; 2]);
        let write = WriteParts::one(bytes(0x1000, 16)).under_mask(0xf00f);
        counts.count(&domain, &write);
        counts.record(&domain, denied_by(Some(1), &write), &write);
        assert_eq!([of(&counts, 1), of(&counts, 2)], [[2, 1, 0, 1], [2, 1, 0, 0]]);
    }
}

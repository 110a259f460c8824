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

    /// What a rule did.
    pub fn rule(&self, rule: u64) -> RuleCounts {
        self.rules.get(&rule).cloned().unwrap_or_default()
    }

    /// Counts a write that trapped.
    pub(crate) fn count(&mut self, domain: &Domain<HeapFrames>, write: &WriteParts) {
        self.count_open(write);
        let mut guarded = false;
        for run in write.runs() {
            for name in domain.names_of(whole_sub_pages(*run)) {
                for active in domain.rules().touching(name) {
                    guarded = true;
                    self.rules.entry(active.id.0).or_default().checked += 1;
                }
            }
        }
        self.guarded += u64::from(guarded);
    }

    /// Counts a write that trapped and touches no restricted sub-page, so none of a rule.
    pub(crate) fn count_open(&mut self, write: &WriteParts) {
        self.writes += 1;
        self.bytes += write.bytes();
    }

    /// Numbers an event and counts it for its rule.
    pub(crate) fn record(&mut self, mut record: Record) -> Arc<Record> {
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

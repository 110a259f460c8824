//! What a run on KVM amounts to.

use subpage::access::SUB_PAGE_BYTES;
use subpage::address::{ByteRange, Gpa, PAGE_BYTES};
use subpage_kvm::control::protocol::NewRule;
use subpage_kvm::event::Event;
use subpage_kvm::guard::{Ledger, RuleCounts};

use super::super::intervals::Intervals;
use super::ending::RunEnd;
use crate::heat::Heat;
use crate::hex::Hex;
use crate::policy::PolicyRule;
use crate::summary::{LiveSummary, MAX_FIRST_DENIALS, RuleSummary, Summary};
use crate::write_event::{WriteEvent, action_of_word, action_word};

/// A rule that the run began with.
struct Known {
    id: u64,
    range: ByteRange,
    summary: RuleSummary,
}

/// Collects from the events what the machine's own counts do not say.
pub(super) struct Count {
    rules: Vec<Known>,
    heat: Heat,
    first_denials: Vec<WriteEvent>,
    denied_by_maps: u64,
    dropped: u64,
}

impl Count {
    /// Of no event, under rules with their numbers.
    pub(super) fn new<'r>(rules: impl IntoIterator<Item = (u64, &'r PolicyRule)>) -> Self {
        let rules: Vec<_> = rules
            .into_iter()
            .map(|(id, rule)| Known { id, range: rule.rule.range, summary: RuleSummary::new(rule) })
            .collect();
        let ranges: Vec<_> = rules.iter().map(|rule| rule.range).collect();
        Self {
            rules,
            heat: Heat::around(&ranges),
            first_denials: Vec::new(),
            denied_by_maps: 0,
            dropped: 0,
        }
    }

    /// An event that was shown.
    pub(super) fn event(&mut self, event: &Event) {
        let denied = event.verdict.is_denial();
        self.count_heat(event, denied);
        if !denied {
            return;
        }
        if event.rule.is_none() {
            self.denied_by_maps += 1;
        }
        if self.first_denials.len() < MAX_FIRST_DENIALS {
            self.first_denials.push(WriteEvent::from(event));
        }
    }

    /// Events that were not shown.
    pub(super) fn dropped(&mut self, events: u64) {
        self.dropped += events;
    }

    /// The bytes in the write's first page, and the one that the rule holds: where a write goes on in
    /// another page, the event does not say.
    fn count_heat(&mut self, event: &Event, denied: bool) {
        let room = PAGE_BYTES - event.gpa % PAGE_BYTES;
        let length = (event.bytes.len() as u64).min(room);
        let bytes = |first: u64, length: u64| {
            Gpa::try_new(first).and_then(|first| ByteRange::new(first, length)).ok()
        };
        let first = bytes(event.gpa, length);
        if let Some(first) = first {
            self.heat.count(first, denied);
        }
        let elsewhere = event.at / PAGE_BYTES != event.gpa / PAGE_BYTES;
        if let Some(held) = bytes(event.at, 1).filter(|_| elsewhere) {
            self.heat.count(held, denied);
        }
    }

    /// What the run amounts to; guest, policy, backend and duration are left empty.
    pub(super) fn into_summary(
        self,
        ledger: &Ledger,
        added: &[(u64, NewRule)],
        end: RunEnd,
    ) -> Summary {
        let mut ranges: Vec<_> = self.rules.iter().map(|rule| rule.range).collect();
        let mut rules = Vec::with_capacity(self.rules.len() + added.len());
        for known in self.rules {
            rules.push(counted(known.summary, ledger.rule(known.id)));
        }
        for (id, rule) in added {
            let range = Gpa::try_new(rule.start)
                .and_then(|first| ByteRange::new(first, rule.length))
                .expect("the machine took this rule");
            ranges.push(range);
            rules.push(counted(summary_of(rule), ledger.rule(*id)));
        }
        Summary {
            guest: String::new(),
            policy: String::new(),
            backend: String::new(),
            writes: ledger.writes(),
            bytes: ledger.bytes(),
            rules,
            exits_page: ledger.writes(),
            exits_sub_page: ledger.guarded(),
            pages_protected: widened(&ranges, PAGE_BYTES),
            sub_pages_protected: widened(&ranges, SUB_PAGE_BYTES),
            stopped_at: end.stopped_at,
            elapsed: None,
            live: Some(LiveSummary {
                kind: end.kind,
                exit_code: end.exit_code,
                message: end.message,
                denied_by_maps: self.denied_by_maps,
                events_dropped: self.dropped,
            }),
            first_denials: self.first_denials,
            heat_omitted: self.heat.omitted(),
            heat: self.heat.into_pages(),
        }
    }
}

/// A rule that was added while the guest ran.
fn summary_of(rule: &NewRule) -> RuleSummary {
    RuleSummary {
        name: rule.name.clone(),
        action: action_of_word(&rule.action).map_or("deny", action_word),
        start: Hex(rule.start),
        length: rule.length,
        line: None,
        checked: 0,
        allowed: 0,
        logged: 0,
        denied: 0,
        first_denial: None,
    }
}

fn counted(rule: RuleSummary, counts: RuleCounts) -> RuleSummary {
    let RuleCounts { checked, logged, denied, first_denial } = counts;
    RuleSummary {
        checked,
        allowed: checked.saturating_sub(logged + denied),
        logged,
        denied,
        first_denial: first_denial.map(|event| WriteEvent::from(&*event)),
        ..rule
    }
}

/// How many units the ranges touch.
fn widened(ranges: &[ByteRange], unit: u64) -> u64 {
    let runs =
        ranges.iter().map(|range| (range.first().as_u64() / unit, range.last().as_u64() / unit));
    Intervals::new(runs.collect()).count()
}

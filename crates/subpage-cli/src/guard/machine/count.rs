//! What a run on KVM amounts to.

use std::time::Duration;

use subpage::access::{AccessMap, SUB_PAGE_BYTES};
use subpage::address::{ByteRange, Gfn, Gpa, PAGE_BYTES};
use subpage::rules::Action;
use subpage_kvm::control::protocol::NewRule;
use subpage_kvm::guard::{RuleCounts, TrapCounts};
use subpage_trap::{Address, Record};

use super::super::intervals::Intervals;
use super::ending::RunEnd;
use crate::events::RunHeader;
use crate::heat::{Heat, cell_bytes};
use crate::policy::PolicyRule;
use crate::summary::{HotPage, LiveSummary, MAX_FIRST_DENIALS, RuleSummary, Summary};

/// A rule that the run began with.
pub(super) struct Known {
    id: u64,
    range: ByteRange,
    summary: RuleSummary,
}

impl Known {
    /// A rule of the policy, with its number.
    pub(super) fn of_policy(id: u64, rule: &PolicyRule) -> Self {
        Self { id, range: rule.rule.range, summary: RuleSummary::new(rule) }
    }

    /// A rule that is in force, or was, wherever it came from.
    ///
    /// # Panics
    /// If its bytes are no range of guest memory: the machine did not take it.
    pub(super) fn of_machine(id: u64, rule: &NewRule) -> Self {
        let range = Gpa::try_new(rule.start)
            .and_then(|first| ByteRange::new(first, rule.length))
            .expect("the machine took this rule");
        let summary = RuleSummary {
            name: rule.name.clone(),
            action: Action::from_word(&rule.action).unwrap_or(Action::Deny).word(),
            start: Address(rule.start),
            length: rule.length,
            file: None,
            line: None,
            exits: 0,
            exits_alone: 0,
            exits_per_second: None,
            hottest_page: None,
            checked: 0,
            allowed: 0,
            overruled: 0,
            logged: 0,
            denied: 0,
            first_denial: None,
        };
        Self { id, range, summary }
    }
}

/// Collects from the events what the machine's own counts do not say.
pub(super) struct Count {
    rules: Vec<Known>,
    first_denials: Vec<Record>,
    denied_by_maps: u64,
    dropped: u64,
    console_dropped: u64,
    notices_dropped: u64,
}

impl Count {
    /// Of no event.
    pub(super) fn new(rules: Vec<Known>) -> Self {
        Self {
            rules,
            first_denials: Vec::new(),
            denied_by_maps: 0,
            dropped: 0,
            console_dropped: 0,
            notices_dropped: 0,
        }
    }

    /// The name of a rule that the run began with.
    pub(super) fn name(&self, id: u64) -> &str {
        let known = self.rules.iter().find(|rule| rule.id == id);
        known.map_or("", |rule| rule.summary.name.as_str())
    }

    /// An event, shown or not.
    pub(super) fn event(&mut self, record: &Record) {
        let event = &record.event;
        if !event.verdict.is_denial() {
            return;
        }
        if event.rule.is_none() {
            self.denied_by_maps += 1;
        }
        if self.first_denials.len() < MAX_FIRST_DENIALS {
            self.first_denials.push(record.clone());
        }
    }

    /// Events that were not shown.
    pub(super) fn dropped(&mut self, events: u64) {
        self.dropped += events;
    }

    /// Bytes of the guest's console that were not shown.
    pub(super) fn console_dropped(&mut self, bytes: u64) {
        self.console_dropped += bytes;
    }

    /// Notices that were not shown.
    pub(super) fn notices_dropped(&mut self, notices: u64) {
        self.notices_dropped += notices;
    }

    /// What a run of this duration amounts to; guest, policy and backend are left empty.
    ///
    /// `added`: rules that came later, gone ones too. `maps`: what access maps deny at the end.
    pub(super) fn into_summary(
        self,
        trap_counts: &TrapCounts,
        added: &[(u64, NewRule)],
        maps: &[(Gfn, AccessMap)],
        end: RunEnd,
        elapsed: Duration,
    ) -> Summary {
        let Self {
            mut rules,
            first_denials,
            denied_by_maps,
            dropped,
            console_dropped,
            notices_dropped,
        } = self;
        rules.extend(added.iter().map(|(id, rule)| Known::of_machine(*id, rule)));
        let ranges: Vec<_> = rules.iter().map(|rule| rule.range).collect();
        let counts = trap_counts.sub_pages();
        let hottest = counts.hottest(counts.pages().len());
        let hottest = hottest.iter().map(|(gfn, page)| (*gfn, &page.sub_pages, &page.denied));
        let mut heat = Heat::counted(hottest, &ranges);
        heat.deny_by_maps(maps);
        let rules = rules.into_iter().map(|rule| counted(rule, trap_counts, elapsed)).collect();
        Summary {
            header: RunHeader::default(),
            guest: String::new(),
            policy: String::new(),
            backend: String::new(),
            writes: trap_counts.writes(),
            bytes: trap_counts.bytes(),
            rules,
            exits_page: trap_counts.writes(),
            exits_sub_page: trap_counts.guarded(),
            pages_protected: widened(&ranges, maps, PAGE_BYTES),
            sub_pages_protected: widened(&ranges, maps, SUB_PAGE_BYTES),
            stopped_at: end.stopped_at,
            warnings: Vec::new(),
            elapsed: Some(elapsed),
            live: Some(LiveSummary {
                kind: end.kind,
                exit_code: end.exit_code,
                message: end.message,
                panic_console: Vec::new(),
                console_shown: false,
                denied_by_maps,
                events_dropped: dropped,
                console_dropped,
                notices_dropped,
            }),
            first_denials,
            heat_omitted: heat.omitted(),
            heat: heat.into_pages(),
        }
    }
}

fn counted(rule: Known, trap_counts: &TrapCounts, elapsed: Duration) -> RuleSummary {
    let RuleCounts { exits, exits_alone, checked, overruled, logged, denied, first_denial } =
        trap_counts.rule(rule.id);
    let hottest = trap_counts.hottest_page(rule.range).filter(|_| exits > 0);
    RuleSummary {
        exits,
        exits_alone,
        exits_per_second: per_second(exits, elapsed),
        hottest_page: hottest
            .map(|(page, writes)| HotPage { page: Address(page.gpa().as_u64()), writes }),
        checked,
        allowed: checked.saturating_sub(overruled + logged + denied),
        overruled,
        logged,
        denied,
        first_denial: first_denial.map(|record| (*record).clone()),
        ..rule.summary
    }
}

/// To the thousandth; none of a run without duration.
#[allow(clippy::cast_precision_loss, reason = "a rate for people")]
fn per_second(exits: u64, elapsed: Duration) -> Option<f64> {
    let rate = exits as f64 / elapsed.as_secs_f64();
    rate.is_finite().then(|| (rate * 1e3).round() / 1e3)
}

/// How many units the ranges, and the sub-pages that maps deny, touch.
fn widened(ranges: &[ByteRange], maps: &[(Gfn, AccessMap)], unit: u64) -> u64 {
    let ruled =
        ranges.iter().map(|range| (range.first().as_u64() / unit, range.last().as_u64() / unit));
    let mapped = maps.iter().flat_map(|(gfn, denied)| {
        denied.iter().map(|sub_page| {
            let at = cell_bytes(*gfn, sub_page).0 / unit;
            (at, at)
        })
    });
    Intervals::new(ruled.chain(mapped).collect()).count()
}

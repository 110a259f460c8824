//! Counts of a run.

use subpage::access::SUB_PAGE_BYTES;
use subpage::address::{ByteRange, PAGE_BYTES};
use subpage::rules::{Action, RuleId};

use super::intervals::Intervals;
use super::page_costs::PageCosts;
use super::touch_index::TouchIndex;
use crate::events::RunHeader;
use crate::heat::Heat;
use crate::policy::{Policy, PolicyRule};
use crate::summary::{MAX_FIRST_DENIALS, RuleSummary, Summary};
use subpage_trap::{Event, Record, Verdict};

/// Entries of the cache that tells pages without a rule.
const CACHE: usize = 1024;

/// Counts every write of a run, and what the rules did.
///
/// The exits at both granularities are counted from the rules alone, so they do not depend on what
/// enforces them.
#[derive(Debug)]
pub struct RunCounters {
    ranges: Vec<ByteRange>,
    actions: Vec<Action>,
    rules: Vec<RuleSummary>,
    /// For each rule, whether a write met one of its bytes.
    met: Vec<bool>,
    /// For each rule, whether it is in force.
    armed: Vec<bool>,
    index: TouchIndex,
    pages: Intervals,
    costs: PageCosts,
    sub_pages: Intervals,
    /// Direct-mapped by low bits: the number of a page without a rule, plus one.
    unguarded: Box<[u64; CACHE]>,
    heat: Heat,
    writes: u64,
    bytes: u64,
    exits_page: u64,
    exits_sub_page: u64,
    events: u64,
    stopped_at: Option<u64>,
    first_denials: Vec<Record>,
}

impl RunCounters {
    /// Counts of no write under a policy.
    pub fn new(policy: &Policy) -> Self {
        let ranges: Vec<_> = policy.rules.iter().map(|rule| rule.rule.range).collect();
        let mut counters = Self {
            actions: policy.rules.iter().map(|rule| rule.rule.action).collect(),
            rules: policy.rules.iter().map(RuleSummary::new).collect(),
            met: vec![false; ranges.len()],
            armed: policy.rules.iter().map(PolicyRule::holds_from_start).collect(),
            index: TouchIndex::new(&[], SUB_PAGE_BYTES),
            pages: Intervals::default(),
            costs: PageCosts::new(&ranges),
            sub_pages: Intervals::default(),
            unguarded: Box::new([0; CACHE]),
            heat: Heat::around(&ranges),
            ranges,
            writes: 0,
            bytes: 0,
            exits_page: 0,
            exits_sub_page: 0,
            events: 0,
            stopped_at: None,
            first_denials: Vec::new(),
        };
        counters.index_armed();
        counters
    }

    /// Counts for these rules as well from now on, by their indices: they have come into force.
    pub fn arm(&mut self, rules: &[usize]) {
        for &rule in rules {
            self.armed[rule] = true;
        }
        self.index_armed();
    }

    /// Prepares what tells the armed rules of a write.
    fn index_armed(&mut self) {
        let armed: Vec<_> = (0..self.ranges.len()).filter(|rule| self.armed[*rule]).collect();
        let ranges = || armed.iter().map(|&rule| (rule, self.ranges[rule]));
        let widened = |unit: u64| {
            let runs = ranges()
                .map(|(_, range)| (range.first().as_u64() / unit, range.last().as_u64() / unit));
            Intervals::new(runs.collect())
        };
        self.index = TouchIndex::of(ranges(), SUB_PAGE_BYTES);
        (self.pages, self.sub_pages) = (widened(PAGE_BYTES), widened(SUB_PAGE_BYTES));
        self.costs.go_on_with(ranges());
        self.unguarded.fill(0);
    }

    /// Counts a write that an enforcer has decided; gives the event if a rule had something to say.
    ///
    /// The event's program counter is not known here.
    ///
    /// # Panics
    /// If the deciding rule guards none of the bytes: the enforcer is wrong.
    #[inline]
    pub fn count(
        &mut self,
        bytes: ByteRange,
        decision: Option<(usize, Verdict)>,
    ) -> Option<Record> {
        self.writes += 1;
        self.bytes += bytes.bytes();
        let denied = decision.is_some_and(|(_, verdict)| verdict.is_denial());
        self.heat.count(bytes, denied);
        if !self.is_guarded(bytes) {
            assert!(decision.is_none(), "a rule decided a write to pages without a rule");
            return None;
        }
        self.count_guarded(bytes, decision)
    }

    /// Whether one of the write's pages has a rule.
    fn is_guarded(&mut self, bytes: ByteRange) -> bool {
        let (first, last) = (bytes.first().gfn().as_u64(), bytes.last().gfn().as_u64());
        #[allow(clippy::cast_possible_truncation)]
        let slot = first as usize % CACHE;
        if first == last && self.unguarded[slot] == first + 1 {
            return false;
        }
        let guarded = self.pages.touches(first, last);
        if !guarded && first == last {
            self.unguarded[slot] = first + 1;
        }
        guarded
    }

    fn count_guarded(
        &mut self,
        bytes: ByteRange,
        decision: Option<(usize, Verdict)>,
    ) -> Option<Record> {
        self.exits_page += 1;
        self.costs.count(bytes);
        let unit = |address: u64| address / SUB_PAGE_BYTES;
        let (first, last) = (bytes.first().as_u64(), bytes.last().as_u64());
        if self.sub_pages.touches(unit(first), unit(last)) {
            self.exits_sub_page += 1;
            let (rules, met, ranges) = (&mut self.rules, &mut self.met, &self.ranges);
            self.index.for_each(bytes, |rule| {
                let summary = &mut rules[rule];
                summary.checked += 1;
                let meets = ranges[rule].intersection(bytes).is_some();
                met[rule] |= meets;
                match decision {
                    Some((decider, verdict)) if decider == rule => {
                        if verdict.is_denial() {
                            summary.denied += 1;
                        } else {
                            summary.logged += 1;
                        }
                    }
                    Some(_) if meets => summary.overruled += 1,
                    _ => summary.allowed += 1,
                }
            });
        }
        let (rule, verdict) = decision?;
        let met = self.ranges[rule].intersection(bytes);
        let met = met.expect("a rule decided a write to none of its bytes");
        self.events += 1;
        if verdict == Verdict::Stopped {
            self.stopped_at = Some(self.writes);
        }
        let event = Event {
            rule: Some(RuleId(rule as u64 + 1)),
            at: met.first(),
            ..Event::bare(verdict, self.actions[rule], bytes)
        };
        let rule_name = Some(self.rules[rule].name.clone());
        Some(Record { rule_name, ..Record::new(self.events, self.writes, event) })
    }

    /// Keeps the event of a decision by `rule` for the summary, if it is one of the first denials.
    pub fn keep(&mut self, rule: usize, event: Record) {
        if !event.event.verdict.is_denial() {
            return;
        }
        let first = &mut self.rules[rule].first_denial;
        if first.is_none() {
            *first = Some(event.clone());
        }
        if self.first_denials.len() < MAX_FIRST_DENIALS {
            self.first_denials.push(event);
        }
    }

    /// How many writes were counted.
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// Whether a rule stopped the run.
    pub fn is_stopped(&self) -> bool {
        self.stopped_at.is_some()
    }

    /// Places of the rules that are in force, and of which no write met a byte.
    pub fn unmet(&self) -> Vec<usize> {
        (0..self.met.len()).filter(|&rule| self.armed[rule] && !self.met[rule]).collect()
    }

    /// What the run amounts to; guest, policy and backend are left empty.
    pub fn into_summary(mut self) -> Summary {
        for (rule, cost) in self.rules.iter_mut().zip(self.costs.finish()) {
            rule.exits = cost.exits;
            rule.exits_alone = cost.alone;
            rule.hottest_page = cost.hottest;
        }
        Summary {
            header: RunHeader::default(),
            guest: String::new(),
            policy: String::new(),
            backend: String::new(),
            writes: self.writes,
            bytes: self.bytes,
            rules: self.rules,
            exits_page: self.exits_page,
            exits_sub_page: self.exits_sub_page,
            pages_protected: self.pages.count(),
            sub_pages_protected: self.sub_pages.count(),
            stopped_at: self.stopped_at,
            warnings: Vec::new(),
            elapsed: None,
            live: None,
            first_denials: self.first_denials,
            heat_omitted: self.heat.omitted(),
            heat: self.heat.into_pages(),
        }
    }
}

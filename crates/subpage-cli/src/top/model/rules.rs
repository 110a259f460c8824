//! The rules, with rates.

use std::cmp::Ordering;
use std::collections::HashMap;

use subpage_kvm::control::protocol::ShownRule;

use super::clip;
use super::rates::{Count, hottest_first};

const ZERO: Count = Count::first(0);

/// A rule as it is shown.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RuleRow {
    pub(crate) id: u64,
    /// Printable.
    pub(crate) name: String,
    /// Printable.
    pub(crate) action: String,
    pub(crate) start: u64,
    pub(crate) length: u64,
    /// What it waits for, printable.
    pub(crate) waits_for: Option<String>,
    pub(crate) locked: bool,
    pub(crate) spent: bool,
    pub(crate) exits: Count,
    pub(crate) logged: Count,
    pub(crate) denied: Count,
}

impl RuleRow {
    fn new(rule: &ShownRule) -> Self {
        Self {
            id: rule.rule,
            name: clip(&rule.new.name),
            action: clip(&rule.new.action),
            start: rule.new.start,
            length: rule.new.length,
            waits_for: rule.waits_for.as_deref().map(clip),
            locked: rule.new.locked,
            spent: rule.spent,
            exits: Count::first(rule.exits),
            logged: Count::first(rule.logged),
            denied: Count::first(rule.denied),
        }
    }

    fn after(mut self, before: &Self, seconds: f64) -> Self {
        self.exits = before.exits.next(self.exits.total, seconds);
        self.logged = before.logged.next(self.logged.total, seconds);
        self.denied = before.denied.next(self.denied.total, seconds);
        self
    }

    /// What is special about it, in a word or two; nothing if it is simply in force.
    pub(crate) fn state(&self) -> String {
        match (&self.waits_for, self.spent, self.locked) {
            (Some(moment), ..) => format!("waits: {moment}"),
            (None, true, _) => "spent".to_owned(),
            (None, false, true) => "locked".to_owned(),
            (None, false, false) => String::new(),
        }
    }

    /// Whether a byte of the page's sub-page is its.
    pub(crate) fn touches(&self, first: u64, last: u64) -> bool {
        self.start <= last && first <= self.start.saturating_add(self.length.saturating_sub(1))
    }
}

/// In which order rules are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum RuleOrder {
    /// The most exits a second first.
    #[default]
    Hottest,
    /// The most denials first.
    Denied,
    /// As they lie in memory.
    Address,
}

impl RuleOrder {
    pub(crate) const fn next(self) -> Self {
        match self {
            Self::Hottest => Self::Denied,
            Self::Denied => Self::Address,
            Self::Address => Self::Hottest,
        }
    }

    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Hottest => "by exits",
            Self::Denied => "by denials",
            Self::Address => "by address",
        }
    }

    fn compare(self, a: &RuleRow, b: &RuleRow) -> Ordering {
        let order = match self {
            Self::Hottest => hottest_first(a.exits, b.exits),
            Self::Denied => hottest_first(a.denied, b.denied),
            Self::Address => a.start.cmp(&b.start),
        };
        order.then(a.start.cmp(&b.start)).then(a.id.cmp(&b.id))
    }
}

/// The rows of the rules as they are now, `seconds` after those before.
pub(super) fn rows(before: &[RuleRow], now: &[ShownRule], seconds: Option<f64>) -> Vec<RuleRow> {
    let before: HashMap<u64, &RuleRow> = before.iter().map(|row| (row.id, row)).collect();
    let row = |rule: &ShownRule| {
        let row = RuleRow::new(rule);
        match (before.get(&rule.rule), seconds) {
            (Some(before), Some(seconds)) => row.after(before, seconds),
            // It was added meanwhile.
            (None, Some(seconds)) => {
                let before = RuleRow { exits: ZERO, logged: ZERO, denied: ZERO, ..row.clone() };
                row.after(&before, seconds)
            }
            (_, None) => row,
        }
    };
    now.iter().map(row).collect()
}

/// Puts rows in order.
pub(super) fn sort(rows: &mut [RuleRow], order: RuleOrder) {
    rows.sort_by(|a, b| order.compare(a, b));
}

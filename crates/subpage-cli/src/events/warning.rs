//! What may make a run mean less than it seems to.

use schemars::JsonSchema;
use serde::Serialize;

use super::ErrorEvent;
use crate::terminal::{grouped, plural};

/// Something that may make a run mean less than it seems to. With `--strict` it is an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct WarningEvent {
    /// What kind of thing.
    pub warning: WarningKind,
    /// What, in words.
    pub message: String,
    /// The rule that it is about, if it is about one.
    pub rule: Option<String>,
    /// The file of the policy that has that rule.
    pub file: Option<String>,
    /// Line of that rule in the file.
    pub line: Option<u64>,
    /// What to do about it.
    pub help: String,
}

/// Kinds of warnings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WarningKind {
    /// A rule whose every byte belongs to a stronger rule, or to an equally strong one before it.
    RuleOverruled,
    /// A rule whose bytes no write of the trace met, and no name of it covers.
    RuleUnmet,
    /// The trace holds writes of processes that were not put before the rules.
    OtherProcesses,
    /// A rule that waited for its moment until the end.
    NeverArmed,
    /// Locked instructions of several processors may lose updates of each other where pages trap.
    LockedUpdatesLost,
    /// A Linux kernel is to run on a KVM that emulates it.
    KernelEmulated,
    /// The guest's kernel may lie elsewhere than its symbols say.
    KernelMayMove,
}

/// Most warnings of one kind that people are shown.
const SHOWN_OF_A_KIND: usize = 20;

/// What people are shown of the warnings of a run: they may be as many as rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShownWarning<'a> {
    /// One of the first of its kind.
    Whole(&'a WarningEvent),
    /// So many more are of the same kind as the one before.
    More(usize),
}

impl ShownWarning<'_> {
    /// The words for warnings that are not shown.
    pub fn more(count: usize) -> String {
        let (grouped, rules) = (grouped(count as u64), plural(count as u64, "rule"));
        format!("… and {grouped} more {rules} of this kind; `subpage guard --json` has all")
    }
}

/// The first 20 warnings of each kind, in the order of the kinds, each kind with the number of the rest.
pub fn shown_warnings(warnings: &[WarningEvent]) -> Vec<ShownWarning<'_>> {
    let mut kinds: Vec<(WarningKind, Vec<&WarningEvent>, usize)> = Vec::new();
    for warning in warnings {
        let known = kinds.iter_mut().find(|(kind, ..)| *kind == warning.warning);
        match known {
            None => kinds.push((warning.warning, vec![warning], 0)),
            Some((_, shown, _)) if shown.len() < SHOWN_OF_A_KIND => shown.push(warning),
            Some((_, _, more)) => *more += 1,
        }
    }
    let of_kind = |(_, shown, more): (WarningKind, Vec<_>, usize)| {
        let more = (more > 0).then_some(ShownWarning::More(more));
        shown.into_iter().map(ShownWarning::Whole).chain(more)
    };
    kinds.into_iter().flat_map(of_kind).collect()
}

impl WarningEvent {
    /// The same as an error, for `--strict`.
    pub fn as_error(&self) -> ErrorEvent {
        ErrorEvent {
            file: self.file.clone(),
            line: self.line,
            help: Some(self.help.clone()),
            ..ErrorEvent::new(self.message.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twenty_of_each_kind_are_shown() {
        let of = |warning, count: usize| {
            let one = move |index: usize| WarningEvent {
                warning,
                message: index.to_string(),
                rule: None,
                file: None,
                line: None,
                help: String::new(),
            };
            (0..count).map(one).collect::<Vec<_>>()
        };
        let (overruled, unmet) = (WarningKind::RuleOverruled, WarningKind::RuleUnmet);
        let other = of(WarningKind::OtherProcesses, 1);
        let all = [of(overruled, 20), of(unmet, 15), other, of(unmet, 1006)].concat();
        let shown = shown_warnings(&all);
        let count = |kind| {
            let of_kind = |shown: &&ShownWarning<'_>| matches!(shown, ShownWarning::Whole(warning) if warning.warning == kind);
            shown.iter().filter(of_kind).count()
        };
        assert_eq!((count(overruled), count(unmet), shown.len()), (20, 20, 42));
        // Behind its kind, and for no kind of which all are shown.
        let more: Vec<_> =
            (0..42).filter(|at| matches!(shown[*at], ShownWarning::More(_))).collect();
        assert_eq!((&more[..], shown[40]), (&[40][..], ShownWarning::More(1001)));
        assert!(ShownWarning::more(1001).starts_with("… and 1,001 more rules of this kind"));
    }
}

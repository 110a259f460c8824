//! What may make a run mean less than it seems to.

use schemars::JsonSchema;
use serde::Serialize;

use super::ErrorEvent;

/// Something that may make a run mean less than it seems to. With `--strict` it is an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct WarningEvent {
    /// What kind of thing.
    pub warning: WarningKind,
    /// What, in words.
    pub message: String,
    /// The rule that it is about, if it is about one.
    pub rule: Option<String>,
    /// Line of that rule in the policy.
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
    /// The guest's kernel may lie elsewhere than its symbols say.
    KernelMayMove,
}

impl WarningEvent {
    /// The same as an error, for `--strict`.
    pub fn as_error(&self) -> ErrorEvent {
        ErrorEvent {
            line: self.line,
            help: Some(self.help.clone()),
            ..ErrorEvent::new(self.message.clone())
        }
    }
}

//! What can be reported of a run besides its writes.

use schemars::JsonSchema;
use serde::Serialize;
#[cfg(feature = "kvm")]
use subpage::rules::Action;
use subpage::rules::Moment;
#[cfg(feature = "kvm")]
use subpage_kvm::control::protocol::ShownRule;

use super::{RunHeader, WarningEvent};
use crate::policy::PolicyRule;
use crate::summary::Summary;
#[cfg(feature = "kvm")]
use subpage_trap::Digits;
use subpage_trap::{Address, Armed};

/// Something that happens to a run: one line of output.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum RunEvent<'a> {
    /// The run begins.
    Start(&'a StartEvent),
    /// The guest cannot continue, and is kept as it is.
    Failed(&'a FailedEvent),
    /// A rule has stopped the guest, which is held.
    Held(&'a HeldEvent),
    /// A debugger has come or gone.
    Debugger(&'a DebuggerEvent),
    /// Something is missing here.
    Dropped(&'a DroppedEvent),
    /// Something may make the run mean less than it seems to.
    Warning(&'a WarningEvent),
    /// Rules came into force while the guest ran.
    Armed(&'a Armed),
    /// Something about the rules is slow.
    Notice(&'a NoticeEvent),
    /// The run is over.
    Summary(&'a Summary),
    /// The run cannot continue or did not begin.
    Error(&'a ErrorEvent),
}

/// The run begins.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct StartEvent {
    /// Where, how and when.
    #[serde(flatten)]
    pub header: RunHeader,
    /// The guest as the user named it.
    pub guest: String,
    /// The policy file as the user named it.
    pub policy: String,
    /// What enforces the rules.
    pub backend: String,
    /// The rules with their resolved addresses, in the order of the policy.
    pub rules: Vec<RuleEvent>,
    /// What only a guest on KVM has.
    #[serde(flatten)]
    pub live: Option<LiveStart>,
}

/// What only a guest on KVM has.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct LiveStart {
    /// Virtual processors.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// How writes are trapped: `slots` or `mprotect`.
    pub trap: &'static str,
    /// Where `subpage ctl` reaches it.
    pub control: String,
    /// Where metrics are served, if they are.
    pub metrics: Option<String>,
    /// Where gdb is waited for, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gdb: Option<String>,
}

/// A rule as it is in force.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct RuleEvent {
    /// Its name, unique in the policy.
    pub name: String,
    /// What happens to a write.
    pub action: &'static str,
    /// First guarded byte.
    pub start: Address,
    /// Guarded bytes.
    pub length: u64,
    /// Whose it is; 0 is the host.
    pub owner: u32,
    /// Whether nothing can loosen it.
    pub locked: bool,
    /// From when on it holds: `start`, `entry`, `init`, `write` or `command`.
    pub arm: &'static str,
    /// File of the policy; none if the rule came from elsewhere.
    pub file: Option<String>,
    /// Line of that file; none if the rule came from elsewhere.
    pub line: Option<u64>,
}

impl From<&PolicyRule> for RuleEvent {
    fn from(rule: &PolicyRule) -> Self {
        let PolicyRule { rule, arm, file, line } = rule;
        Self {
            name: rule.name.as_str().to_owned(),
            action: rule.action.word(),
            start: Address(rule.range.first().as_u64()),
            length: rule.range.bytes(),
            owner: rule.owner.0,
            locked: rule.locked,
            arm: arm.unwrap_or(Moment::Start).word(),
            file: Some(file.to_string()),
            line: Some(*line as u64),
        }
    }
}

#[cfg(feature = "kvm")]
impl From<&ShownRule> for RuleEvent {
    fn from(shown: &ShownRule) -> Self {
        let rule = &shown.new;
        let waits_for = shown.waits_for.as_deref().and_then(Moment::from_word);
        Self {
            name: rule.name.clone(),
            action: Action::from_word(&rule.action).unwrap_or(Action::Deny).word(),
            start: Address(rule.start),
            length: rule.length,
            owner: rule.owner,
            locked: rule.locked,
            arm: waits_for.unwrap_or(Moment::Start).word(),
            file: None,
            line: None,
        }
    }
}

/// The guest cannot continue, and is kept as it is.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct FailedEvent {
    /// Why.
    pub message: String,
    /// Where `subpage ctl` reaches it.
    pub control: String,
}

/// A rule has stopped the guest, which is held.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct HeldEvent {
    /// Why.
    pub message: String,
    /// Where `subpage ctl` reaches it.
    pub control: String,
    /// Where gdb is waited for, if it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gdb: Option<String>,
}

/// A debugger has come or gone, or has written to memory.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct DebuggerEvent {
    /// What has happened.
    pub message: String,
    /// What it has written, if it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write: Option<DebuggerWrite>,
}

/// A debugger's write, which no rule was asked about.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct DebuggerWrite {
    /// First guest-physical byte.
    pub gpa: Address,
    /// How many bytes.
    pub length: u64,
    /// The first of them, at most 64: two digits a byte, in the order of their addresses.
    pub bytes: String,
    /// Names of the rules that guard some of them.
    pub rules: Vec<String>,
}

/// Something is missing here: whoever reads did not keep up with the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, JsonSchema)]
pub struct DroppedEvent {
    /// Events of writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<u64>,
    /// Bytes of the guest's console, which goes elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console_bytes: Option<u64>,
    /// Notices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notices: Option<u64>,
}

/// Something about the rules is slow.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct NoticeEvent {
    /// What, and what it costs.
    pub message: String,
    /// The rule; none if it is an access map or tracking.
    pub rule_name: Option<String>,
    /// Address of the page that holds a live page table.
    pub page: Address,
}

#[cfg(feature = "kvm")]
impl From<&subpage_kvm::vm::DebuggerNews> for DebuggerEvent {
    fn from(news: &subpage_kvm::vm::DebuggerNews) -> Self {
        let write = news.write.as_ref().map(|write| DebuggerWrite {
            gpa: Address(write.range.first().as_u64()),
            length: write.range.bytes(),
            bytes: Digits(&write.bytes).to_string(),
            rules: write.rules.clone(),
        });
        Self { message: news.message.clone(), write }
    }
}

#[cfg(feature = "kvm")]
impl From<&subpage_kvm::vm::Notice> for NoticeEvent {
    fn from(notice: &subpage_kvm::vm::Notice) -> Self {
        Self {
            message: notice.to_string(),
            rule_name: notice.rule.clone(),
            page: Address(notice.table.gpa().as_u64()),
        }
    }
}

/// The run cannot continue or did not begin.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ErrorEvent {
    /// What is wrong.
    pub message: String,
    /// The file that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Its line, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// The line's character, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u64>,
    /// What would be right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

impl ErrorEvent {
    /// An error that is not at a place in a file.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), file: None, line: None, column: None, help: None }
    }
}

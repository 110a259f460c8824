//! What a guarded run amounts to: filled by the run, shown by the table, the events and the report.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use crate::events::{RunHeader, WarningEvent};
use crate::heat::PageHeat;
use crate::policy::PolicyRule;
use subpage_trap::Address;
use subpage_trap::Record;

/// Most denials that a summary keeps whole.
pub const MAX_FIRST_DENIALS: usize = 20;

/// Most rules of which a run tells people what they cost.
pub const MAX_EXPENSIVE: usize = 10;

/// One run of one guest under one policy.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Summary {
    /// Where, how and when: in the `start` of the events.
    #[serde(skip)]
    pub header: RunHeader,
    /// The guest as the user named it.
    pub guest: String,
    /// The policy file as the user named it.
    pub policy: String,
    /// What enforced the rules: `model` for a trace, `kvm` for a guest on KVM.
    pub backend: String,
    /// Writes of the guest, denied ones included; on KVM, those that trapped.
    pub writes: u64,
    /// Bytes of those writes.
    pub bytes: u64,
    /// In the order of the policy, then those added while the guest ran.
    pub rules: Vec<RuleSummary>,
    /// Exits that the policy costs when a page is the smallest thing that can be protected; on KVM,
    /// those that it did cost.
    pub exits_page: u64,
    /// Exits that it costs with sub-pages.
    pub exits_sub_page: u64,
    /// Pages with at least one guarded sub-page.
    pub pages_protected: u64,
    /// Guarded sub-pages.
    pub sub_pages_protected: u64,
    /// Number of the write, from 1, at which a rule with the action `stop` ended the run.
    pub stopped_at: Option<u64>,
    /// What may make the run mean less than it seems to, in the order in which it was told.
    pub warnings: Vec<WarningEvent>,
    /// How long the run took; absent where it was not measured.
    #[serde(serialize_with = "seconds", rename = "elapsed_seconds")]
    #[schemars(with = "Option<f64>")]
    pub elapsed: Option<Duration>,
    /// What only a guest on KVM has; such a run knows of no write that did not trap.
    #[serde(flatten)]
    pub live: Option<LiveSummary>,
    /// The first denied writes in order, at most [`MAX_FIRST_DENIALS`].
    #[serde(skip)]
    pub first_denials: Vec<Record>,
    /// Written sub-pages around the rules, in ascending order of address.
    #[serde(skip)]
    pub heat: Vec<PageHeat>,
    /// Guarded pages that are left out of `heat` because there are too many.
    #[serde(skip)]
    pub heat_omitted: u64,
}

/// What only the run of a guest on KVM has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct LiveSummary {
    /// How it ended.
    #[serde(rename = "ending")]
    pub kind: EndingKind,
    /// The status that the guest ended itself with, if it did.
    pub exit_code: Option<u8>,
    /// The same for people, with the place of a failure.
    #[serde(rename = "ending_message")]
    pub message: String,
    /// The last lines of the console, if they tell of a panic of the guest's kernel.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub panic_console: Vec<String>,
    /// Whether the console stands between this program's lines.
    #[serde(skip)]
    pub console_shown: bool,
    /// Writes that an access map denied, and no rule.
    pub denied_by_maps: u64,
    /// Events that were not shown, because the guest made them faster than they could be.
    pub events_dropped: u64,
    /// Bytes of the guest's console that were not shown, for the same reason.
    pub console_dropped: u64,
    /// Pages with live page tables of the guest that no notice tells of: there were too many.
    pub notices_dropped: u64,
}

impl LiveSummary {
    /// Whether the run was cut short by what nobody asked for, or the guest says itself that it failed.
    pub fn is_failure(&self) -> bool {
        self.kind.is_failure() || self.exit_code.is_some_and(|code| code != 0)
    }
}

/// How a guest on KVM ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndingKind {
    /// It switched itself off.
    PoweredOff,
    /// It ended itself with a status.
    Exited,
    /// All its processors halted for good.
    Halted,
    /// It asked for a reset.
    Reset,
    /// It asked for a reset, and its console says that its kernel panicked.
    Panicked,
    /// A rule with the action `stop` was met.
    Stopped,
    /// Somebody asked for it over the control socket.
    Requested,
    /// This program was told to end.
    Interrupted,
    /// Its time was up.
    TimedOut,
    /// A triple fault.
    TripleFault,
    /// KVM, or this program, could not go on with it.
    Failed,
}

impl EndingKind {
    /// Whether the run was cut short by what nobody asked for.
    pub fn is_failure(self) -> bool {
        matches!(self, Self::TimedOut | Self::TripleFault | Self::Failed | Self::Panicked)
    }
}

/// What one rule did.
///
/// `checked` = `allowed` + `overruled` + `logged` + `denied`.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct RuleSummary {
    /// Its name, unique in the policy.
    pub name: String,
    /// `deny`, `log`, `allow-once` or `stop`.
    pub action: &'static str,
    /// First guarded byte.
    pub start: Address,
    /// Guarded bytes.
    pub length: u64,
    /// File of the policy; none if the rule came from elsewhere.
    pub file: Option<String>,
    /// Line of that file; none if the rule came from elsewhere.
    pub line: Option<u64>,
    /// Writes that touched a page of the rule while it was in force: the exits that it costs where a
    /// page is the smallest thing that can be protected. On KVM, those that it did cost.
    pub exits: u64,
    /// Of these, the writes that touched a page of no other rule: what would not exit without this rule.
    pub exits_alone: u64,
    /// `exits` by the seconds of the run; none where a guest's time is not known.
    pub exits_per_second: Option<f64>,
    /// The page of the rule that was written most; none if none was.
    pub hottest_page: Option<HotPage>,
    /// Writes that touched a sub-page of the rule.
    pub checked: u64,
    /// Of these, the writes that the rule had nothing against: they touched none of its bytes.
    pub allowed: u64,
    /// Of these, the writes to its bytes about which another rule decided, a stronger one or an equally
    /// strong one before it, or an access map.
    pub overruled: u64,
    /// Of these, the writes that took effect and were reported because of this rule.
    pub logged: u64,
    /// Of these, the writes that had no effect because of this rule.
    pub denied: u64,
    /// The first of the denied.
    pub first_denial: Option<Record>,
}

/// A guarded page, and its writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct HotPage {
    /// Its first byte.
    pub page: Address,
    /// Writes that touched it while a rule was in force there.
    pub writes: u64,
}

impl RuleSummary {
    /// Writes to bytes of the rule, whoever decided about them.
    pub const fn own(&self) -> u64 {
        self.overruled + self.logged + self.denied
    }

    /// A rule that has not met a write.
    pub fn new(rule: &PolicyRule) -> Self {
        Self {
            name: rule.rule.name.as_str().to_owned(),
            action: rule.rule.action.word(),
            start: Address(rule.rule.range.first().as_u64()),
            length: rule.rule.range.bytes(),
            file: Some(rule.file.to_string()),
            line: Some(rule.line as u64),
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
        }
    }
}

impl Summary {
    /// Writes that had no effect.
    pub fn denied(&self) -> u64 {
        let by_maps = self.live.as_ref().map_or(0, |live| live.denied_by_maps);
        self.rules.iter().map(|rule| rule.denied).sum::<u64>() + by_maps
    }

    /// The rules that cost most, at most [`MAX_EXPENSIVE`], the dearest first. None of a trace with one
    /// rule, of which the totals say it.
    pub fn most_expensive(&self) -> Vec<&RuleSummary> {
        if self.live.is_none() && self.rules.len() < 2 {
            return Vec::new();
        }
        let mut rules: Vec<_> = self.rules.iter().filter(|rule| rule.exits > 0).collect();
        rules.sort_by_key(|rule| std::cmp::Reverse((rule.exits, rule.exits_alone)));
        rules.truncate(MAX_EXPENSIVE);
        rules
    }

    /// Writes that took effect and were reported.
    pub fn logged(&self) -> u64 {
        self.rules.iter().map(|rule| rule.logged).sum()
    }
}

#[allow(clippy::ref_option, reason = "the signature that serde calls")]
fn seconds<S: serde::Serializer>(
    elapsed: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    elapsed.map(|elapsed| elapsed.as_secs_f64()).serialize(serializer)
}

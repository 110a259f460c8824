//! The moments from which rules hold, where the guest is a trace.

use subpage::rules::Moment;
use subpage_trace::{BootMoment, BootMoments, Write};

use crate::events::{WarningEvent, WarningKind};
use crate::failure::Failure;
use crate::policy::{Policy, PolicyRule};

/// Refuses rules that wait for a moment that a trace does not show. One of a machine shows when the kernel
/// is entered and when the first program starts, one of a program nothing.
pub(crate) fn check_moments(policy: &Policy, is_machine: bool) -> Result<(), Failure> {
    let is_refused = |rule: &&PolicyRule| match rule.arm {
        Some(Moment::Init) => !is_machine,
        _ => rule.waits(),
    };
    policy.rules.iter().find(is_refused).map_or(Ok(()), |rule| {
        let help = if is_machine {
            "wait for `entry` or `init`, or leave `arm` out"
        } else {
            "leave `arm` out"
        };
        Err(Failure::Input(format!(
            "the rule `{}` ({}) waits for a moment that this trace does not have: {help}",
            rule.rule.name,
            rule.place(),
        )))
    })
}

/// Gives each rule a moment that the trace has: of a machine the kernel's entry if the policy does not
/// say another one, of a program the start.
pub(super) fn settle(policy: &mut Policy, is_machine: bool) {
    for rule in &mut policy.rules {
        if is_machine {
            rule.arm.get_or_insert(Moment::Entry);
        } else {
            rule.arm = None;
        }
    }
}

/// The rules that wait, and for what.
pub(super) struct Waiting {
    boot: BootMoments,
    rules: Vec<(usize, Moment)>,
}

/// Rules that come into force at one moment.
pub(super) struct Coming {
    /// Place of the first write under them.
    pub(super) at: usize,
    pub(super) moment: Moment,
    /// Their indices in the policy, ascending; perhaps none.
    pub(super) rules: Vec<usize>,
}

impl Waiting {
    pub(super) fn of(policy: &Policy) -> Self {
        let rules = policy.rules.iter().enumerate();
        let rules = rules.filter(|(_, rule)| !rule.holds_from_start());
        let rules = rules.filter_map(|(index, rule)| Some((index, rule.arm?))).collect();
        Self { boot: BootMoments::default(), rules }
    }

    /// What comes next in these writes. Those from there on are to be given next.
    pub(super) fn next(&mut self, writes: &[Write]) -> Option<Coming> {
        if self.rules.is_empty() {
            return None;
        }
        let (at, moment) = self.boot.next(writes)?;
        let moment = match moment {
            BootMoment::Entry => Moment::Entry,
            BootMoment::FirstProgram => Moment::Init,
        };
        let rules = self.rules.extract_if(.., |(_, waits_for)| *waits_for == moment);
        let rules = rules.map(|(index, _)| index).collect();
        Some(Coming { at, moment, rules })
    }

    /// A warning for each rule that has never held.
    pub(super) fn never(&self, policy: &Policy) -> Vec<WarningEvent> {
        let warning = |&(index, moment): &(usize, Moment)| {
            let rule = &policy.rules[index];
            WarningEvent {
                warning: WarningKind::NeverArmed,
                message: format!(
                    "the rule `{}` ({}) never armed: it waited for `{}`",
                    rule.rule.name,
                    rule.place(),
                    moment.word()
                ),
                rule: Some(rule.rule.name.as_str().to_owned()),
                file: Some(rule.file.to_string()),
                line: Some(rule.line as u64),
                help: "the trace ends before that, or its kernel is not one of 64 bits; `arm = \"start\"` \
                       holds from the first write on"
                    .to_owned(),
            }
        };
        self.rules.iter().map(warning).collect()
    }
}

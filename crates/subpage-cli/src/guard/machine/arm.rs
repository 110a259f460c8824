//! The moments from which the rules of a policy hold.

use std::path::Path;

use subpage::rules::Moment;
use subpage_kvm::boot::{FirstProgram, Format, ImageKind, first_program};

use crate::events::{WarningEvent, WarningKind};
use crate::failure::Failure;
use crate::policy::{Policy, PolicyRule};

/// Gives rules of which the policy does not say it the moment that fits the guest.
pub(super) fn default(policy: &mut Policy, image: &ImageKind) {
    let is_kernel = image.kernel.is_some() || image.own_loader.is_some();
    let moment = if is_kernel { Moment::Entry } else { Moment::Start };
    for rule in &mut policy.rules {
        rule.arm.get_or_insert(moment);
    }
}

/// Refuses a moment that this guest does not come to; tells where it starts its first program, if a rule
/// waits for that.
pub(super) fn check(
    policy: &Policy,
    image: &ImageKind,
    path: &Path,
) -> Result<Option<FirstProgram>, Failure> {
    let refused = |rule: &PolicyRule, why: &str| {
        Err(Failure::Input(format!(
            "the rule `{}` ({}) cannot arm at `{}`: {why}",
            rule.rule.name,
            rule.place(),
            rule.arm.unwrap_or(Moment::Start).word(),
        )))
    };
    for rule in &policy.rules {
        match rule.arm {
            Some(Moment::Entry)
                if image.kernel.is_none() && image.format == Format::LinuxBzImage =>
            {
                let why = match &image.own_loader {
                    Some(reason) => format!(
                        "it is not known when the loader of {} enters the kernel, because {reason}",
                        path.display()
                    ),
                    None => {
                        format!("{} says of no kernel in it that it enters later", path.display())
                    }
                };
                return refused(rule, &why);
            }
            _ => {}
        }
    }
    let Some(rule) = policy.rules.iter().find(|rule| rule.arm == Some(Moment::Init)) else {
        return Ok(None);
    };
    let found = match &image.own_loader {
        Some(reason) => Err(reason.clone()),
        None => first_program(path).map_err(|error| error.to_string()),
    };
    found.map(Some).or_else(|reason| {
        let path = path.display();
        refused(rule, &format!("it is not known when {path} starts its first program: {reason}"))
    })
}

/// The warning about a rule that has never held.
pub(super) fn never(name: &str, moment: Moment) -> WarningEvent {
    let help = match moment {
        Moment::Write => "have the guest write a byte to port 0xf5 when the rule is to hold",
        Moment::Command => "run `subpage ctl SOCKET arm` when the rule is to hold",
        _ => "arm the rule at another moment",
    };
    WarningEvent {
        warning: WarningKind::NeverArmed,
        message: format!("the rule `{name}` never armed: it waited for `{}`", moment.word()),
        rule: Some(name.to_owned()),
        file: None,
        line: None,
        help: help.to_owned(),
    }
}

//! The moments from which the rules of a policy hold.

use std::path::Path;

use subpage::rules::Moment;
use subpage_kvm::boot::{Boot, Format, first_program};
use subpage_kvm::vm::Vm;

use crate::events::{WarningEvent, WarningKind};
use crate::failure::Failure;
use crate::policy::{Policy, PolicyRule};

/// Gives rules of which the policy does not say it the moment that fits the guest.
pub(super) fn default(policy: &mut Policy, boot: &Boot) {
    let is_kernel = boot.kernel.is_some() || boot.own_loader.is_some();
    let moment = if is_kernel { Moment::Entry } else { Moment::Start };
    for rule in &mut policy.rules {
        rule.arm.get_or_insert(moment);
    }
}

/// Refuses a moment that this guest does not come to.
pub(super) fn check(policy: &Policy, boot: &Boot, image: &Path) -> Result<(), Failure> {
    let refused = |rule: &PolicyRule, why: &str| {
        Err(Failure::Input(format!(
            "the rule `{}` ({}) cannot arm at `{}`: {why}",
            rule.rule.name,
            rule.place(),
            rule.arm.unwrap_or(Moment::Start).word(),
        )))
    };
    let image = image.display();
    for rule in &policy.rules {
        match rule.arm {
            Some(Moment::Entry) if boot.kernel.is_none() && boot.format == Format::LinuxBzImage => {
                let why = match &boot.own_loader {
                    Some(reason) => format!(
                        "it is not known when the loader of {image} enters the kernel, because {reason}"
                    ),
                    None => format!("{image} says of no kernel in it that it enters later"),
                };
                return refused(rule, &why);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Has the guest tell when its kernel starts its first program, if a rule waits for that.
pub(super) fn watch_first_program(
    vm: &Vm,
    policy: &Policy,
    boot: &Boot,
    image: &Path,
) -> Result<(), Failure> {
    let Some(rule) = policy.rules.iter().find(|rule| rule.arm == Some(Moment::Init)) else {
        return Ok(());
    };
    let found = match &boot.own_loader {
        Some(reason) => Err(reason.clone()),
        None => first_program(image).map_err(|error| error.to_string()),
    };
    let found = found.map_err(|reason| {
        Failure::Input(format!(
            "the rule `{}` ({}) cannot arm at `init`: it is not known when {} starts its first program: \
             {reason}",
            rule.rule.name,
            rule.place(),
            image.display(),
        ))
    })?;
    vm.watch_first_program(found).map_err(|error| Failure::bad(&error))
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

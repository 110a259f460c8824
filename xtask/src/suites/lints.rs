//! Formatting and lints: one check for the format, one each for the lints of the ordinary build, of the tool
//! without KVM and HTTP, of the wrong models, and of the bare-metal build.

use std::process::Command;

use anyhow::Result;

use super::Plan;
use crate::{bochs::images, count::Count, session::Session};

pub(super) fn fmt(session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
    if !plan.prerequisites.rustfmt {
        session.say("   skipped: rustfmt is not installed")?;
        return Ok(Count::SKIPPED);
    }
    check(session, plan, &["fmt", "--all", "--check"])
}

pub(super) fn clippy(session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
    if !plan.prerequisites.clippy {
        session.say("   skipped: clippy is not installed")?;
        return Ok(Count::SKIPPED);
    }
    let arguments = ["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    let mut count = check(session, plan, &arguments)?;
    for features in [&[][..], &["--features=kvm"]] {
        let tool = ["clippy", "--package=subpage-cli", "--no-default-features", "--all-targets"];
        let arguments = [&tool, features, &["--", "--deny", "warnings"]].concat();
        count += check(session, plan, &arguments)?;
    }
    let wrong =
        ["clippy", "--package=subpage-conformance", "--features=mutations", "--all-targets"];
    count += check(session, plan, &[&wrong[..], &["--", "--deny", "warnings"]].concat())?;
    // What is compiled only into the images.
    let arguments = [
        "clippy",
        // The same procedural macros as for the images themselves.
        "--profile=dist",
        "--package=subpage-vmx",
        "--package=subpage-guest",
        "--features=subpage-vmx/test-hooks",
        "--lib",
        "--bins",
    ];
    // What a hypervisor in C has without an operating system.
    let interface = ["clippy", "--package=subpage-c", "--no-default-features", "--lib"];
    for arguments in [&arguments[..], &interface] {
        let mut command = images::bare_metal(&plan.workspace, arguments);
        command.args(["--", "--deny", "warnings"]);
        count += run(session, command)?;
    }
    Ok(count)
}

fn check(session: &mut Session<'_>, plan: &Plan, arguments: &[&str]) -> Result<Count> {
    run(session, plan.cargo(arguments))
}

fn run(session: &mut Session<'_>, command: Command) -> Result<Count> {
    let finished = session.run(command, &mut |_| None)?;
    if !finished.ending.success() {
        session.show(&finished.output)?;
    }
    Ok(Count::check(finished.ending.success()))
}

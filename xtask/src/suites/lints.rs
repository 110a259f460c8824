//! Formatting and lints: one check each.

use anyhow::Result;

use super::Plan;
use crate::{count::Count, session::Session};

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
    check(session, plan, &arguments)
}

fn check(session: &mut Session<'_>, plan: &Plan, arguments: &[&str]) -> Result<Count> {
    let finished = session.run(plan.cargo(arguments), &mut |_| None)?;
    if !finished.ending.success() {
        session.show(&finished.output)?;
    }
    Ok(Count::check(finished.ending.success()))
}

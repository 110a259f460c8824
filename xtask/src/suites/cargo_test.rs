//! The suites that are libtest programs, run by cargo.

use std::{env, process::Command};

use anyhow::Result;

use super::Plan;
use crate::{cargo_log::CargoLog, count::Count, session::Session};

/// Part of the name of every test that cannot run without Valgrind.
const NEEDS_VALGRIND: &str = "needs_valgrind";

/// Random operations of the long property test.
const PROPERTY_OPERATIONS: &str = "1000000";

pub(super) fn unit(session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
    let mut count = Count::default();
    // cargo runs doc tests apart from all others.
    for targets in ["--all-targets", "--doc"] {
        let command = plan.cargo(&["test", "--workspace", targets, "--no-fail-fast"]);
        count += run(session, plan, command)?;
    }
    at_least_one(session, plan, count)
}

pub(super) fn concurrency(session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
    let mut command = plan.cargo(&["test", "--package", "subpage", "--test", "loom"]);
    let own = env::var("RUSTFLAGS").unwrap_or_default();
    command
        .env("RUSTFLAGS", format!("{own} --cfg loom").trim_start())
        // Cargo would prefer this one.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        // Other flags in the usual directory would build everything anew each time.
        .env("CARGO_TARGET_DIR", plan.workspace.separate_target("loom"));
    let count = run(session, plan, command)?;
    at_least_one(session, plan, count)
}

pub(super) fn property(session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
    // The test profile is optimised and has every check on.
    let mut command = plan.cargo(&["test", "--package", "subpage-model", "--test", "property"]);
    command.env("SUBPAGE_PROPERTY_OPERATIONS", PROPERTY_OPERATIONS);
    let count = run(session, plan, command)?;
    at_least_one(session, plan, count)
}

fn run(session: &mut Session<'_>, plan: &Plan, mut command: Command) -> Result<Count> {
    command.args(&plan.filter);
    if !plan.prerequisites.valgrind {
        command.args(["--", "--skip", NEEDS_VALGRIND]);
    }
    // With a filter, what is left out was not asked for.
    let left_out_is_skipped = !plan.prerequisites.valgrind && plan.filter.is_none();

    let mut log = CargoLog::default();
    let finished = session.run(command, &mut |line| log.line(line))?;
    if let Some(summary) = log.last_summary() {
        session.say(&format!("   {summary}"))?;
    }
    let count = log.count(finished.ending.success(), left_out_is_skipped);
    if count.failed > 0 {
        session.show(&log.failures())?;
    }
    Ok(count)
}

/// A suite that runs nothing must not look like one that passes.
fn at_least_one(session: &mut Session<'_>, plan: &Plan, mut count: Count) -> Result<Count> {
    if plan.filter.is_none() && !count.ran() {
        session.say("   failed: there was no test to run")?;
        count += Count::FAILED;
    }
    Ok(count)
}

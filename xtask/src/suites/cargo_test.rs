//! The suites that are libtest programs, run by cargo.

use std::{env, process::Command};

use anyhow::Result;

use super::{Plan, kvm};
use crate::{
    cargo_log::{CargoLog, listed},
    count::Count,
    session::Session,
};

/// Part of the name of every test that cannot run without Valgrind.
const NEEDS_VALGRIND: &str = "needs_valgrind";

/// The tool without the parts that are features, and the tests of that.
const WITHOUT_KVM: [&str; 5] =
    ["--package", "subpage-cli", "--no-default-features", "--test", "without_kvm"];

/// Random operations of the long property test.
const PROPERTY_OPERATIONS: &str = "1000000";

/// Which tests of the programs that cargo runs.
pub(super) enum Names<'a> {
    All,
    /// Those that do not have this in their name.
    Without(&'a str),
    /// Those that have this in their name.
    With(&'a str),
}

pub(super) fn unit(session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
    let mut arguments = vec!["--workspace", "--lib", "--bins", "--examples", "--benches"];
    let programs = plan.workspace.test_programs().iter().map(String::as_str);
    for program in programs.filter(|program| !kvm::runs(program)) {
        arguments.extend(["--test", program]);
    }
    let mut count = run(session, plan, &arguments, &Names::All)?;
    count += run(session, plan, &kvm::MIXED, &Names::Without(kvm::PART))?;
    count += run(session, plan, &WITHOUT_KVM, &Names::All)?;
    // What judges the judge is only built for that.
    let judge = ["--package=subpage-conformance", "--features=mutations", "--bins"];
    count += run(session, plan, &judge, &Names::All)?;
    // cargo runs doc tests apart from all others.
    count += run(session, plan, &["--workspace", "--doc"], &Names::All)?;
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
    command.args(&plan.filter);
    let count = counted(session, command)?;
    at_least_one(session, plan, count)
}

pub(super) fn property(session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
    // The test profile is optimised and has every check on.
    let mut command = plan.cargo(&["test", "--package", "subpage-model", "--test", "property"]);
    command.env("SUBPAGE_PROPERTY_OPERATIONS", PROPERTY_OPERATIONS).args(&plan.filter);
    let count = counted(session, command)?;
    at_least_one(session, plan, count)
}

/// Runs tests of what `targets` selects, those with the plan's filter in their name.
pub(super) fn run(
    session: &mut Session<'_>,
    plan: &Plan,
    targets: &[&str],
    names: &Names<'_>,
) -> Result<Count> {
    let mut command = cargo_test(plan, targets);
    let skipped_names = skips(plan, names);
    match (names, &plan.filter) {
        (Names::With(part), Some(filter)) => {
            // A test has to have both in its name; the program itself takes either.
            let Some(all) = list(session, plan, targets, part)? else {
                return Ok(Count::FAILED);
            };
            let wanted = |name: &&String| {
                name.contains(filter) && !skipped_names.iter().any(|skip| name.contains(skip))
            };
            let wanted: Vec<_> = all.iter().filter(wanted).collect();
            if wanted.is_empty() {
                return Ok(Count::default());
            }
            command.args(["--", "--exact"]).args(wanted);
        }
        (_, filter) => {
            if let Names::With(part) = names {
                command.arg(part);
            }
            command.args(filter);
            if !skipped_names.is_empty() {
                command.arg("--");
            }
            for name in &skipped_names {
                command.args(["--skip", name]);
            }
        }
    }
    let mut count = counted(session, command)?;
    // With a filter, what is left out was not asked for.
    if !plan.prerequisites.valgrind && plan.filter.is_none() {
        let all = list(session, plan, targets, NEEDS_VALGRIND)?.unwrap_or_default();
        let here = all.iter().filter(|name| names.has(name));
        count.skipped += here.count() as u64;
    }
    Ok(count)
}

impl Names<'_> {
    /// Whether a test is among them.
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Without(part) => !name.contains(part),
            Self::With(part) => name.contains(part),
        }
    }
}

/// Parts of the names of tests that are left out.
fn skips<'a>(plan: &Plan, names: &Names<'a>) -> Vec<&'a str> {
    let mut skips = Vec::new();
    if let Names::Without(part) = names {
        skips.push(*part);
    }
    if !plan.prerequisites.valgrind {
        skips.push(NEEDS_VALGRIND);
    }
    skips
}

fn cargo_test(plan: &Plan, targets: &[&str]) -> Command {
    let mut command = plan.cargo(&["test", "--no-fail-fast"]);
    command.args(targets);
    command
}

/// The names of the tests that have `part` in it; none if they could not be built.
fn list(
    session: &mut Session<'_>,
    plan: &Plan,
    targets: &[&str],
    part: &str,
) -> Result<Option<Vec<String>>> {
    let mut command = cargo_test(plan, targets);
    command.args([part, "--", "--list"]);
    let finished = session.run(command, &mut |_| None)?;
    if !finished.ending.success() {
        session.show(&finished.output)?;
        return Ok(None);
    }
    Ok(Some(listed(&finished.output).map(str::to_owned).collect()))
}

/// Runs a `cargo test` and counts what it tells.
fn counted(session: &mut Session<'_>, command: Command) -> Result<Count> {
    let mut log = CargoLog::default();
    let finished = session.run(command, &mut |line| log.line(line))?;
    if let Some(summary) = log.last_summary() {
        session.say(&format!("   {summary}"))?;
    }
    let count = log.count(finished.ending.success());
    if count.failed > 0 {
        session.show(&log.failures())?;
    }
    Ok(count)
}

/// A suite that runs nothing must not look like one that passes.
pub(super) fn at_least_one(
    session: &mut Session<'_>,
    plan: &Plan,
    mut count: Count,
) -> Result<Count> {
    if plan.filter.is_none() && !count.ran() {
        session.say("   failed: there was no test to run")?;
        count += Count::FAILED;
    }
    Ok(count)
}

//! Hosts with an ordinary KVM: the VMM's tests, `subpage check`, and the kernel example.

mod left_out;
mod linux;
mod log;
mod recorder;

use std::{
    collections::BTreeMap,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::Plan;
use crate::{
    cargo_log::listed,
    count::Count,
    lab::{
        self, Host, Rig,
        frames::Line,
        image::Contents,
        ingredients::{Ingredients, Kernel},
        job::{Job, Part, Tests, Work},
        programs::{self, Programs},
        run::{JobEnd, Patience},
    },
    session::Session,
};
use left_out::{ByName, LeftOut};
use log::Log;

/// How long a host may say nothing: longer than it lets one test run.
const SILENCE: Duration = Duration::from_secs(420);

/// How often the tests that run are named, while there is no other line.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// When a host kills a test, in seconds of its own clock. A guest that hangs is ended by its test
/// after 120 s.
const TEST_LIMIT: u64 = 300;

/// Of the random cases, one in so many runs: a host is tens of times slower than the machine.
const SHARE: u32 = 3;

/// How often a host is started that does not come to its end.
const STARTS: u32 = 4;

/// How much is shown of a part that failed.
const SHOWN_LINES: usize = 40;

/// The name by which the test of the recorder's plugin runs alone.
const RECORDER: &str = "recorder";

/// The status of `subpage guard` where something was denied.
const DENIED: u8 = 3;

/// The VMM's test programs that run on a host.
const PROGRAMS: [&str; 2] = ["example", "kvm"];

/// One part of a host's job, with what is expected of it.
#[derive(Debug)]
struct Expected {
    part: Part,
    status: u8,
    /// Lines of its output contain the texts of each list, in its order. What a guest prints and what
    /// the tool says of it come in any order.
    said: Vec<Vec<String>>,
}

/// The names of a program's tests.
type TestNames = BTreeMap<&'static str, Vec<String>>;

pub(super) fn check(session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
    // It needs no host.
    if plan.names == [RECORDER] {
        let Some(subpage) = programs::tool(session, &plan.workspace)? else {
            return Ok(Count::FAILED);
        };
        return recorder(session, &subpage);
    }
    let Some(programs) = programs::build(session, &plan.workspace, &[])? else {
        return Ok(Count::FAILED);
    };
    let Some(tests) = test_names(session, &programs)? else { return Ok(Count::FAILED) };
    let mut count = Count::default();
    let hosts = hosts(plan.named, &plan.names);
    // Its QEMU is that of the amd host.
    if hosts.contains(&Host::Amd) && filters(&plan.names).is_empty() {
        let subpage = programs.get("subpage").context("subpage was not built")?;
        count += recorder(session, subpage)?;
    }
    for host in hosts {
        count += on(session, plan, host, &programs, &tests)?;
    }
    Ok(count)
}

/// The recorder's plugin in QEMU.
fn recorder(session: &mut Session<'_>, subpage: &Path) -> Result<Count> {
    match Ingredients::prepare(session, Kernel::Stable)? {
        Ok(ingredients) => recorder::check(session, subpage, &ingredients.qemu()),
        Err(reason) => {
            session.say(&format!("   skipped, the recorder's plugin: {reason}"))?;
            Ok(Count::SKIPPED)
        }
    }
}

/// The hosts that run: those named; or both where this suite is named, and else the faster one.
fn hosts(named: bool, names: &[String]) -> Vec<Host> {
    let hosts = [Host::Amd, Host::Intel].into_iter();
    let chosen: Vec<_> =
        hosts.clone().filter(|host| names.iter().any(|name| name == host.name())).collect();
    if chosen.is_empty() {
        return hosts.filter(|host| named || *host == Host::Amd).collect();
    }
    chosen
}

/// Parts of the names of the tests that run; without one, everything does.
fn filters(names: &[String]) -> Vec<&str> {
    let host = |name: &str| [Host::Amd, Host::Intel].into_iter().any(|host| host.name() == name);
    names.iter().map(String::as_str).filter(|name| !host(name)).collect()
}

/// What the test programs call their tests, by asking them.
fn test_names(session: &mut Session<'_>, programs: &Programs) -> Result<Option<TestNames>> {
    let mut names = TestNames::new();
    for name in PROGRAMS {
        let program = programs.get(name).with_context(|| format!("{name} was not built"))?;
        let mut command = Command::new(program);
        command.args(["--list", "--format", "terse"]);
        let finished = session.run_unshown(command, &mut |_| None)?;
        if !finished.ending.success() {
            session.show(&finished.output)?;
            return Ok(None);
        }
        names.insert(name, listed(&finished.output).map(str::to_owned).collect());
    }
    Ok(Some(names))
}

/// All that runs on one host.
fn on(
    session: &mut Session<'_>,
    plan: &Plan,
    host: Host,
    programs: &Programs,
    tests: &TestNames,
) -> Result<Count> {
    let name = host.name();
    let rig = match Rig::prepare(session, host, Kernel::Stable, false)? {
        Ok(rig) => rig,
        Err(reason) => {
            session.say(&format!("   skipped, the {name} host: {reason}"))?;
            return Ok(Count::SKIPPED);
        }
    };
    let examples = plan.workspace.root().join("examples");
    let filters = filters(&plan.names);
    let parts = parts(host, &examples, tests, &filters);
    let mut count = Count::default();
    for (line, left) in unrun(host, tests, &filters) {
        session.say(&format!("   {line}"))?;
        count += left;
    }
    if parts.is_empty() {
        if count == Count::default() {
            session.say("   failed: no test of this host has such a name")?;
            return Ok(Count::FAILED);
        }
        return Ok(count);
    }
    let mirrored = lab::mirrored(&plan.workspace);
    let contents =
        Contents { host, programs, module_options: &[], files: &[], mirrored: &mirrored };
    let mut log = Log::default();
    count += starts(session, &rig, &contents, &parts, &mut log)?;
    for Expected { part, status, said } in &parts {
        let title = &part.title;
        let (result, reason) = log.judge(part, *status, said);
        session.say(&format!("   {result}: {title} on {name}"))?;
        if let Some(reason) = reason {
            session.say(&format!("   failed {title} on {name}: {reason}"))?;
            session.show(&log.end_of(title, SHOWN_LINES))?;
        }
        count += result;
    }
    Ok(count)
}

/// Starts the host until its job is done. If it ends before, what ran then has failed, and another one
/// does the rest, a few times.
fn starts(
    session: &mut Session<'_>,
    rig: &Rig,
    contents: &Contents<'_>,
    parts: &[Expected],
    log: &mut Log,
) -> Result<Count> {
    let host = contents.host;
    let name = host.name();
    let interrupt = session.interrupt().clone();
    let begun = Instant::now();
    let mut count = Count::default();
    for _ in 0..STARTS {
        let left: Vec<_> =
            parts.iter().filter_map(|expected| log.remaining(&expected.part)).collect();
        if left.is_empty() {
            return Ok(count);
        }
        session.say(&format!("   the {name} host starts"))?;
        let whole = session.deadline().saturating_duration_since(Instant::now());
        let patience = Patience { whole, silence: SILENCE, heartbeat: HEARTBEAT };
        let mut said = Ok(());
        let job = Job::Parts(left);
        let finished = rig.run(contents, &job, host.size(), patience, &interrupt, &mut |line| {
            if said.is_err() {
                return;
            }
            if let Line::Begins(title) = line {
                said = session.say(&format!("   {title} on {name}"));
            }
            if let Some(told) = log.line(line, begun.elapsed())
                && said.is_ok()
            {
                said = session.say(&format!("      {told}"));
            }
        })?;
        said.context("cannot write the output")?;
        let JobEnd::Failed(reason) = finished.outcome else { return Ok(count) };
        session.say(&format!("   failed, the {name} host: {reason}"))?;
        if let Some(running) = log.under_way(begun.elapsed()) {
            session.say(&format!("   it was running: {running}"))?;
        }
        session.show(&finished.console.join("\n"))?;
        count += Count::FAILED;
        if !log.cut_off(&reason) || Instant::now() >= session.deadline() {
            // Not by what it ran, so another one would end alike.
            break;
        }
    }
    Ok(count)
}

/// What is not run, a line each: tests left out, and without filters those that run by name alone. An
/// entry for which there is no test has failed.
fn unrun(host: Host, tests: &TestNames, filters: &[&str]) -> Vec<(String, Count)> {
    let name = host.name();
    let of = |program: &str| tests.get(program).into_iter().flatten();
    let wanted = |test: &str| filters.is_empty() || filters.iter().any(|part| test.contains(part));
    let mut lines = Vec::new();
    for left in left_out::on(host).filter(|left| wanted(left.test)) {
        let LeftOut { program, test, reason, .. } = left;
        lines.push(if of(program).any(|name| name == test) {
            (format!("left out on {name}: {test}: {reason}"), Count::SKIPPED)
        } else {
            (format!("failed: {program} has no test {test} to leave out"), Count::FAILED)
        });
    }
    if !filters.is_empty() {
        return lines;
    }
    for slow in left_out::by_name(host) {
        let ByName { tests, reason, .. } = slow;
        let skipped = of(left_out::PROGRAM).filter(|name| slow.has(name)).count() as u64;
        let plural = if skipped == 1 { "test" } else { "tests" };
        lines.push(if skipped == 0 {
            (format!("failed: there is no test that begins with {tests}"), Count::FAILED)
        } else {
            (
                format!("by name alone on {name}: {tests} ({skipped} {plural}): {reason}"),
                Count { skipped, ..Count::default() },
            )
        });
    }
    if let Some(reason) = linux::by_name_alone(host) {
        let guests = linux::parts(host, Path::new("")).len() as u64;
        let plural = if guests == 1 { "guest" } else { "guests" };
        lines.push((
            format!("by name alone on {name}: {} ({guests} {plural}): {reason}", linux::NAME),
            Count { skipped: guests, ..Count::default() },
        ));
    }
    lines
}

/// The job of a host.
fn parts(host: Host, examples: &Path, tests: &TestNames, filters: &[&str]) -> Vec<Expected> {
    let mut parts = vec![command("subpage check".into(), &["subpage", "check"], 0, &[])];
    parts.extend(kernel_example(&examples.join("kernel")));
    parts.push(linux::names(&examples.join("linux")));
    if !filters.is_empty() || linux::by_name_alone(host).is_none() {
        parts.extend(linux::parts(host, &examples.join("linux")));
    }
    parts.retain(|expected| {
        filters.is_empty() || filters.iter().any(|part| expected.part.title.contains(part))
    });
    for (program, names) in tests {
        let wanted = |name: &&String| {
            !left_out::on(host).any(|left| left.program == *program && left.test == **name)
                && match filters {
                    [] => left_out::unasked(host, program, name),
                    filters => filters.iter().any(|part| name.contains(part)),
                }
        };
        let names: Vec<_> = names.iter().filter(wanted).cloned().collect();
        if names.is_empty() && !filters.is_empty() {
            continue;
        }
        let tests = Tests {
            program: (*program).to_owned(),
            names,
            at_once: host.size().processors(),
            limit: TEST_LIMIT,
            share: SHARE,
        };
        let part = Part { title: format!("test program {program}"), work: Work::Tests(tests) };
        parts.push(Expected { part, status: 0, said: Vec::new() });
    }
    parts
}

/// The small kernel, in each way to trap.
fn kernel_example(example: &Path) -> Vec<Expected> {
    let example = example.to_string_lossy();
    let (policy, guest) = (format!("{example}/policy.toml"), format!("{example}/guest.elf"));
    let mut parts = Vec::new();
    for trap in ["slots", "mprotect"] {
        for processors in ["1", "2"] {
            parts.push(command(
                format!("kernel example by {trap}, {processors} CPU"),
                &[
                    "subpage", "guard", "--trap", trap, "--cpus", processors, "--policy", &policy,
                    &guest,
                ],
                DENIED,
                &[],
            ));
        }
    }
    parts
}

/// A command that has to end with a status and to print lines that contain these texts.
fn command(title: String, words: &[&str], status: u8, said: &[&[&str]]) -> Expected {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    let said = said.iter().map(|texts| owned(texts)).collect();
    Expected { part: Part { title, work: Work::Command(owned(words)) }, status, said }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> TestNames {
        let mut names = TestNames::new();
        for left in left_out::on(Host::Amd) {
            names.entry(left.program).or_default().push(left.test.to_owned());
        }
        names.entry("kvm").or_default().push("rules::hold".to_owned());
        names
    }

    #[test]
    fn the_slow_host_runs_by_name() {
        let names =
            |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(hosts(false, &[]), [Host::Amd]);
        assert_eq!(hosts(true, &[]), [Host::Amd, Host::Intel]);
        assert_eq!(hosts(true, &names(&["intel"])), [Host::Intel]);
        assert_eq!(hosts(true, &names(&["walks::", "amd"])), [Host::Amd]);
        assert_eq!(filters(&names(&["walks::", "amd"])), ["walks::"]);
    }

    #[test]
    fn what_is_left_out_is_not_run() {
        let parts = parts(Host::Amd, Path::new("/e"), &names(), &[]);
        let kvm = parts.last().expect("the tests");
        let Work::Tests(tests) = &kvm.part.work else { panic!("{kvm:?}") };
        assert_eq!(tests.names, ["rules::hold"]);
        assert_eq!(tests.at_once, 2);
    }

    /// Every test of the VMM's programs runs, or is said with its reason and counted.
    #[test]
    fn what_is_not_run_is_said() {
        let mut tests = TestNames::new();
        for left in left_out::on(Host::Intel) {
            tests.entry(left.program).or_default().push(left.test.to_owned());
        }
        for slow in left_out::by_name(Host::Intel) {
            let names = tests.entry(left_out::PROGRAM).or_default();
            names.extend(["a", "b"].map(|end| format!("{}{end}", slow.tests)));
        }
        tests.entry("kvm").or_default().push("basics::new".to_owned());
        let all = tests.values().map(Vec::len).sum::<usize>() as u64;
        let said = unrun(Host::Intel, &tests, &[]);
        let (skipped, failed) = said.iter().fold((0, 0), |(skipped, failed), (_, count)| {
            (skipped + count.skipped, failed + count.failed)
        });
        let guests = linux::parts(Host::Intel, Path::new("/e")).len() as u64;
        assert_eq!((skipped, failed), (all - 1 + guests, 0), "{said:?}");
        let titled = parts(Host::Intel, Path::new("/e"), &tests, &[linux::NAME]);
        assert_eq!(titled.len() as u64, guests, "named, they run");
        let run = |filters: &[&str]| -> Vec<String> {
            parts(Host::Intel, Path::new("/e"), &tests, filters)
                .into_iter()
                .filter_map(|expected| match expected.part.work {
                    Work::Tests(tests) => Some(tests.names),
                    Work::Command(_) => None,
                })
                .flatten()
                .collect()
        };
        assert_eq!(run(&[]), ["basics::new"]);
        let slow = left_out::by_name(Host::Intel).next().expect("a slow host");
        let (line, count) = &said[left_out::on(Host::Intel).count()];
        assert_eq!(count.skipped, 2);
        assert_eq!(
            *line,
            format!("by name alone on intel: {} (2 tests): {}", slow.tests, slow.reason)
        );
        // Named, it runs, and nothing is said of it.
        assert_eq!(run(&[slow.tests]).len(), 2);
        assert!(unrun(Host::Intel, &tests, &[slow.tests]).is_empty());
        // A beginning that no test has any more has failed.
        let failures = unrun(Host::Intel, &TestNames::new(), &[]);
        let failed = left_out::by_name(Host::Intel).count() as u64;
        assert_eq!(
            failures.iter().filter(|(line, _)| line.contains("begins with")).count() as u64,
            failed
        );
    }

    #[test]
    fn part_of_a_name_selects_tests_alone() {
        let parts = parts(Host::Amd, Path::new("/e"), &names(), &["rules::"]);
        let [one] = parts.as_slice() else { panic!("{parts:?}") };
        let Work::Tests(tests) = &one.part.work else { panic!("{one:?}") };
        assert_eq!((tests.program.as_str(), tests.names.len()), ("kvm", 1));
    }

    #[test]
    fn the_example_runs_in_each_way() {
        let parts = parts(Host::Amd, Path::new("/e"), &names(), &[]);
        let titles: Vec<_> = parts.iter().map(|expected| &expected.part.title).collect();
        for title in ["kernel example by slots, 2 CPU", "kernel example by mprotect, 1 CPU"] {
            assert!(titles.iter().any(|found| *found == title), "{title}");
        }
    }
}

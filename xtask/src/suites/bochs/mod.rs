//! The tests that run in Bochs: those of the guest image, each in a start of its own and on a
//! processor with SPP and on one without, and those of a start that the hypervisor has to refuse.

mod protocol;
mod refusals;

use std::{
    cmp::Reverse,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::Plan;
use crate::{
    bochs::{
        self,
        configuration::{Logging, Run},
        emulator::Emulator,
        images::{Images, Purpose},
        last_words,
        machine::{BochsMachine, Contents, MEMORY_MIB},
        probe,
    },
    count::Count,
    session::{self, Interrupt, Session},
    workspace::Workspace,
};
use protocol::{Hardware, Listed};
use refusals::Refusal;

/// How many runs of Bochs there are at the same time.
const AT_ONCE: usize = 2;

/// For all of the suite; the tests that have not run by then are counted as failed.
const SUITE_LIMIT: Duration = Duration::from_secs(15 * 60);

/// To list the tests, the guest does next to nothing.
const LIST_LIMIT: Duration = Duration::from_secs(30);

/// How much of its output is shown of a test that failed.
const SHOWN_LINES: usize = 25;

/// Memory of the guest, in MiB.
const GUEST_MEMORY_MIB: u64 = 32;

/// One test on one processor.
#[derive(Debug)]
struct Job {
    /// `NAME on MODEL`.
    title: String,
    machine: BochsMachine,
    limit: Duration,
    expected: Expected,
}

#[derive(Clone, Debug)]
enum Expected {
    Pass(Listed),
    Refusal(&'static Refusal),
}

impl Job {
    fn verdict(&self, run: &Run) -> Result<(), String> {
        match &self.expected {
            Expected::Pass(test) => protocol::verdict(test, run),
            Expected::Refusal(refusal) => last_words::ended(run, refusal.reason),
        }
    }
}

pub(super) fn check(session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
    let emulator = match &plan.prerequisites.emulator {
        Ok(emulator) => emulator,
        Err(reason) => {
            session.say(&format!("   skipped, all tests of this suite: {reason}"))?;
            return Ok(Count::SKIPPED);
        }
    };
    let start = Instant::now();
    let Some(images) = Images::build(session, &plan.workspace, Purpose::Test)? else {
        return Ok(Count::FAILED);
    };
    let Some(tests) = list(session, emulator, &images)? else {
        return Ok(Count::FAILED);
    };
    let selected = |name: &str| plan.selects(name);
    let mut jobs = jobs(&images, &tests, &selected);
    if selected(refusals::POLICY.name) {
        let Some(module) = policy_module(session, plan)? else { return Ok(Count::FAILED) };
        for model in [probe::WITH_SPP, probe::WITHOUT_SPP] {
            let mut machine = guest(&images, model, 1, "list");
            machine.modules.push(("policy".to_owned(), Contents::File(module.clone())));
            jobs.push(Job {
                title: format!("{} on {model}", refusals::POLICY.name),
                machine,
                limit: refusals::LIMIT,
                expected: Expected::Refusal(&refusals::POLICY),
            });
        }
    }
    if jobs.is_empty() {
        if plan.selects_by_name() {
            session.say("   no test has such a name")?;
            // Somebody else may have one, unless only this suite was asked.
            return Ok(if plan.names.is_empty() { Count::default() } else { Count::FAILED });
        }
        session.say("   failed: there was no test to run")?;
        return Ok(Count::FAILED);
    }
    let deadline = session.deadline().min(start + SUITE_LIMIT);
    run_all(session, emulator, &jobs, deadline)
}

/// Makes a policy module with the tool; none if that fails, which has been said.
fn policy_module(session: &mut Session<'_>, plan: &Plan) -> Result<Option<PathBuf>> {
    let module = plan.workspace.separate_target("bare-metal").join("policy.subpage");
    let mut command = plan.cargo(&["run", "--quiet", "--release", "--package", "subpage-cli"]);
    command.args(["--", "compile", "--policy", refusals::POLICY_SOURCE, "-o"]).arg(&module);
    let finished = session.run(command, &mut |_| None)?;
    if finished.ending.success() {
        return Ok(Some(module));
    }
    session.show(&finished.output)?;
    Ok(None)
}

/// `cargo xtask test bochs --list`: the names of the tests on standard output, one a line with what
/// they need; all else on standard error.
pub(crate) fn list_tests(
    workspace: &Workspace,
    interrupt: Interrupt,
    limit: Duration,
) -> Result<ExitCode> {
    let mut errors = io::stderr();
    let mut session = Session::new(&mut errors, interrupt, limit);
    let listed = match bochs::ready(&mut session, false)? {
        Some(emulator) => print_list(&mut session, workspace, &emulator)?,
        None => false,
    };
    Ok(if listed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_list(
    session: &mut Session<'_>,
    workspace: &Workspace,
    emulator: &Emulator,
) -> Result<bool> {
    let Some(images) = Images::build(session, workspace, Purpose::Test)? else { return Ok(false) };
    let Some(tests) = list(session, emulator, &images)? else { return Ok(false) };
    let mut out = io::stdout().lock();
    for test in &tests {
        let processors = match test.hardware {
            Hardware::Any => "with and without SPP",
            Hardware::WithSpp => "with SPP",
            Hardware::WithoutSpp => "without SPP",
        };
        writeln!(out, "{} ({processors}, {} CPU)", test.name, test.processors)?;
    }
    for refusal in refusals::ALL.iter().chain([&refusals::POLICY]) {
        writeln!(out, "{} (a start that is refused)", refusal.name)?;
    }
    Ok(true)
}

/// Asks the guest which tests it has; none if it gives no answer, which has been said.
fn list(
    session: &mut Session<'_>,
    emulator: &Emulator,
    images: &Images,
) -> Result<Option<Vec<Listed>>> {
    let machine = guest(images, probe::WITH_SPP, 1, "list");
    let run = machine.start(emulator, LIST_LIMIT, &session.interrupt().clone(), &mut |_| {})?;
    match protocol::list(&run) {
        Ok(tests) => Ok(Some(tests)),
        Err(reason) => {
            session.say(&format!("   failed: no list of the guest's tests: {reason}"))?;
            show(session, &run)?;
            Ok(None)
        }
    }
}

/// A start of the guest with the tests.
pub(crate) fn guest(images: &Images, model: &str, processors: u32, words: &str) -> BochsMachine {
    BochsMachine {
        model: model.to_owned(),
        processors,
        memory_mib: MEMORY_MIB,
        rom: images.rom(),
        image: images.hypervisor(),
        command_line: format!("subpage memory={GUEST_MEMORY_MIB} cpus={processors} -- {words}"),
        modules: vec![("guest".to_owned(), Contents::File(images.guest()))],
        damage: None,
        logging: Logging::Errors,
    }
}

fn jobs(images: &Images, tests: &[Listed], selected: &dyn Fn(&str) -> bool) -> Vec<Job> {
    let mut jobs = Vec::new();
    for refusal in refusals::ALL.iter().filter(|refusal| selected(refusal.name)) {
        let machine = refusal.machine(images);
        jobs.push(Job {
            title: format!("{} on {}", refusal.name, machine.model),
            machine,
            limit: refusals::LIMIT,
            expected: Expected::Refusal(refusal),
        });
    }
    for test in tests.iter().filter(|test| selected(&test.name)) {
        for (model, without) in
            [(probe::WITH_SPP, Hardware::WithoutSpp), (probe::WITHOUT_SPP, Hardware::WithSpp)]
        {
            if test.hardware != without {
                jobs.push(Job {
                    title: format!("{} on {model}", test.name),
                    machine: guest(images, model, test.processors, &format!("run={}", test.name)),
                    limit: test.limit,
                    expected: Expected::Pass(test.clone()),
                });
            }
        }
    }
    // The long ones first, so that none of them is left over for one of the runners alone.
    jobs.sort_by_key(|job| Reverse(job.limit));
    jobs
}

/// How a job came to its end.
enum Done {
    Ran(Result<Run>, Duration),
    /// The suite's time was over.
    NotStarted,
}

fn run_all(
    session: &mut Session<'_>,
    emulator: &Emulator,
    jobs: &[Job],
    deadline: Instant,
) -> Result<Count> {
    let interrupt = session.interrupt().clone();
    let next = AtomicUsize::new(0);
    let (sender, results) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(jobs.len()) {
            let (sender, next, interrupt) = (sender.clone(), &next, &interrupt);
            scope.spawn(move || {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let done = perform(job, emulator, deadline, interrupt);
                    if interrupt.raised() || sender.send((job, done)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut count = Count::default();
        let mut failed = Vec::new();
        for (job, done) in results {
            let result = report(session, job, done)?;
            if result.failed > 0 {
                failed.push(job.title.as_str());
            }
            count += result;
        }
        if !failed.is_empty() {
            session.say(&format!("   failed here: {}", failed.join(", ")))?;
        }
        Ok(count)
    })
}

fn perform(job: &Job, emulator: &Emulator, deadline: Instant, interrupt: &Interrupt) -> Done {
    let start = Instant::now();
    let left = deadline.saturating_duration_since(start);
    if left.is_zero() {
        return Done::NotStarted;
    }
    let run = job.machine.start(emulator, job.limit.min(left), interrupt, &mut |_| {});
    Done::Ran(run, start.elapsed())
}

fn report(session: &mut Session<'_>, job: &Job, done: Done) -> Result<Count> {
    let title = &job.title;
    let (run, took) = match done {
        Done::Ran(run, took) => (run.with_context(|| title.clone())?, took),
        Done::NotStarted => {
            session.say(&format!("   failed {title}: not started, the suite's time was over"))?;
            return Ok(Count::FAILED);
        }
    };
    let took = session::duration(took);
    match job.verdict(&run) {
        Ok(()) => {
            session.say(&format!("   passed {title} in {took}"))?;
            Ok(Count::PASSED)
        }
        Err(reason) => {
            session.say(&format!("   failed {title} after {took}: {reason}"))?;
            show(session, &run)?;
            Ok(Count::FAILED)
        }
    }
}

/// The output's end, and what Bochs has to say.
pub(crate) fn show(session: &mut Session<'_>, run: &Run) -> Result<()> {
    let last = &run.lines[run.lines.len().saturating_sub(SHOWN_LINES)..];
    session.show(&last.join("\n"))?;
    let log: Vec<_> = run.log.iter().map(|line| format!("Bochs: {line}")).collect();
    session.show(&log.join("\n"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn listed(name: &str, hardware: Hardware) -> Listed {
        Listed {
            name: name.into(),
            hardware,
            processors: 2,
            limit: Duration::from_secs(20),
            stop: None,
            event: None,
        }
    }

    #[test]
    fn a_test_runs_where_it_makes_sense() {
        let images = Images::at(PathBuf::from("/images"));
        let tests = [
            listed("everywhere", Hardware::Any),
            listed("with", Hardware::WithSpp),
            listed("without", Hardware::WithoutSpp),
        ];
        let names: Vec<_> = tests.iter().map(|test| test.name.clone()).collect();
        let jobs = jobs(&images, &tests, &|name| names.iter().any(|known| known == name));
        let titles: Vec<_> = jobs.iter().map(|job| job.title.as_str()).collect();
        assert_eq!(
            titles,
            [
                "everywhere on tigerlake",
                "everywhere on corei7_skylake_x",
                "with on tigerlake",
                "without on corei7_skylake_x",
            ]
        );
        assert_eq!(jobs[0].machine.command_line, "subpage memory=32 cpus=2 -- run=everywhere");
        assert_eq!(jobs[0].machine.processors, 2);
    }

    #[test]
    fn long_tests_begin_first() {
        let mut long = listed("long", Hardware::WithSpp);
        long.limit = Duration::from_secs(60);
        let tests = [listed("short", Hardware::WithSpp), long];
        let images = Images::at(PathBuf::from("/images"));
        let jobs = jobs(&images, &tests, &|name| ["long", "short"].contains(&name));
        let titles: Vec<_> = jobs.iter().map(|job| job.title.as_str()).collect();
        assert_eq!(titles, ["long on tigerlake", "short on tigerlake"]);
    }

    #[test]
    fn names_are_used_once() {
        let mut names: Vec<_> = refusals::ALL.iter().map(|refusal| refusal.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), refusals::ALL.len());
    }
}

//! Hosts with an ordinary KVM: the VMM's tests, `subpage check`, and the kernel example.

mod left_out;
mod log;

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Plan;
use crate::{
    count::Count,
    lab::{
        self, Host, Rig,
        frames::Line,
        image::{Contents, Job, Part},
        programs::{self, Programs},
        run::{Outcome, Patience},
    },
    session::Session,
};
use log::Log;

/// How long a host may say nothing: more than one test takes on a busy machine.
const SILENCE: Duration = Duration::from_secs(360);

/// How much is shown of a part that failed.
const SHOWN_LINES: usize = 40;

/// The status of `subpage guard` where something was denied.
const DENIED: u8 = 3;

/// One part of a host's job, with what is expected of it.
#[derive(Debug)]
struct Expected {
    part: Part,
    status: u8,
    /// A program of libtest, whose tests are counted instead of the part.
    tests: bool,
}

pub(super) fn check(session: &mut Session<'_>, plan: &Plan) -> Result<Count> {
    let Some(programs) = programs::build(session, &plan.workspace, &[])? else {
        return Ok(Count::FAILED);
    };
    let mut count = Count::default();
    let hosts = [Host::Amd, Host::Intel];
    let chosen = |host: &Host| plan.names.is_empty() || plan.names.iter().any(|n| n == host.name());
    let hosts: Vec<_> = hosts.into_iter().filter(chosen).collect();
    if hosts.is_empty() {
        session.say("   failed: there are the hosts amd and intel")?;
        return Ok(Count::FAILED);
    }
    for host in hosts {
        count += on(session, plan, host, &programs)?;
    }
    Ok(count)
}

/// All that runs on one host.
fn on(session: &mut Session<'_>, plan: &Plan, host: Host, programs: &Programs) -> Result<Count> {
    let name = host.name();
    let rig = match Rig::prepare(session, host, false)? {
        Ok(rig) => rig,
        Err(reason) => {
            session.say(&format!("   skipped, the {name} host: {reason}"))?;
            return Ok(Count::SKIPPED);
        }
    };
    let parts = parts(host, &plan.workspace.root().join("examples/kernel").to_string_lossy());
    for left in left_out::on(host) {
        session.say(&format!("   left out on {name}: {}: {}", left.test, left.reason))?;
    }
    let mirrored = lab::mirrored(&plan.workspace);
    let contents =
        Contents { host, programs, module_options: &[], files: &[], mirrored: &mirrored };
    let job = Job::Parts(parts.iter().map(|expected| expected.part.clone()).collect());
    let left = session.deadline().saturating_duration_since(std::time::Instant::now());
    let patience = Patience { whole: left, silence: SILENCE };
    let interrupt = session.interrupt().clone();
    session.say(&format!("   the {name} host starts"))?;
    let mut log = Log::default();
    let mut said = Ok(());
    let finished = rig.run(&contents, &job, host.size(), patience, &interrupt, &mut |line| {
        if let Line::Begins(title) = line
            && said.is_ok()
        {
            said = session.say(&format!("   {title} on {name}"));
        }
        if let Some(result) = log.line(line)
            && said.is_ok()
        {
            said = session.say(&format!("      {result}"));
        }
    })?;
    said.context("cannot write the output")?;
    let mut count = Count::default();
    for expected in &parts {
        let title = &expected.part.title;
        let (result, reason) = log.judge(title, expected.status, expected.tests);
        session.say(&format!("   {result}: {title} on {name}"))?;
        if let Some(reason) = reason {
            session.say(&format!("   failed {title} on {name}: {reason}"))?;
            session.show(&log.end_of(title, SHOWN_LINES))?;
        }
        count += result;
    }
    if let Outcome::Failed(reason) = &finished.outcome {
        session.say(&format!("   failed, the {name} host: {reason}"))?;
        session.show(&finished.console.join("\n"))?;
        count += Count::FAILED;
    }
    count.skipped += left_out::on(host).count() as u64;
    Ok(count)
}

/// The job of a host.
fn parts(host: Host, example: &str) -> Vec<Expected> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let mut parts = vec![Expected {
        part: Part { title: "subpage check".into(), words: words(&["subpage", "check"]) },
        status: 0,
        tests: false,
    }];
    for trap in ["slots", "view"] {
        for processors in ["1", "2"] {
            let policy = format!("{example}/policy.toml");
            let guest = format!("{example}/guest.elf");
            parts.push(Expected {
                part: Part {
                    title: format!("kernel example by {trap}, {processors} CPU"),
                    words: words(&[
                        "subpage", "guard", "--trap", trap, "--cpus", processors, "--policy",
                        &policy, &guest,
                    ]),
                },
                status: DENIED,
                tests: false,
            });
        }
    }
    for program in ["example", "kvm"] {
        let mut line = words(&[program, host.test_threads()]);
        if host == Host::Intel && program == "kvm" {
            line.extend(INTEL_MODULES.map(str::to_owned));
        }
        for left in left_out::on(host).filter(|left| left.program == program) {
            line.extend(words(&["--skip", left.test]));
        }
        parts.push(Expected {
            part: Part { title: format!("test program {program}"), words: line },
            status: 0,
            tests: true,
        });
    }
    parts
}

/// The modules of the test program `kvm` that the intel host runs: Bochs is slow.
const INTEL_MODULES: [&str; 4] = ["basics::", "endings::", "halves::", "rules::"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_skipped() {
        let parts = parts(Host::Amd, "/e");
        let kvm = parts.last().expect("the tests");
        assert_eq!(kvm.part.words[..2], ["kvm", "--test-threads=2"]);
        for left in left_out::on(Host::Amd).filter(|left| left.program == "kvm") {
            let skipped = ["--skip", left.test];
            assert!(kvm.part.words.windows(2).any(|pair| pair == skipped), "{}", left.test);
        }
    }

    #[test]
    fn each_way_to_trap_runs_with_one_and_two_processors() {
        let titles: Vec<_> = parts(Host::Amd, "/e").into_iter().map(|e| e.part.title).collect();
        for title in ["kernel example by slots, 2 CPU", "kernel example by view, 1 CPU"] {
            assert!(titles.iter().any(|found| found == title), "{title}");
        }
    }
}

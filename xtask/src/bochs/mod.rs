//! Bochs, the processor with sub-page write permissions that everybody has: found or built, and
//! the bare-metal images that run in it. `cargo xtask bochs` and its subcommands.

mod acpi;
mod build_emulator;
pub(crate) mod configuration;
pub(crate) mod emulator;
mod image;
pub(crate) mod images;
mod information;
pub(crate) mod last_words;
pub(crate) mod linux;
pub(crate) mod machine;
pub(crate) mod medium;
pub(crate) mod probe;

use std::{env, ffi::OsString, fs, io, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};

use crate::{
    execute::Ending,
    session::{Interrupt, Session},
    workspace::Workspace,
};
use configuration::{Logging, Run};
use emulator::Emulator;
use images::{Images, Purpose};
use machine::{BochsMachine, Contents};

/// What `cargo xtask bochs` can do besides getting Bochs.
#[derive(Subcommand)]
pub(crate) enum Task {
    /// Build the bare-metal images and say where they are
    Build {
        /// The hypervisor gets the calls that break things for the guest tests
        #[arg(long)]
        test_hooks: bool,
    },
    /// Run the hypervisor and a guest in Bochs, and show what they print
    Run(RunArguments),
    /// Run conformance cases; only what the image prints goes to standard output
    #[command(hide = true)]
    RunCases {
        #[arg(long)]
        model: String,
        #[arg(long, value_name = "FILE")]
        cases: PathBuf,
        #[arg(long, value_name = "N", default_value_t = 1,
              value_parser = clap::value_parser!(u32).range(1..=16))]
        cpus: u32,
        #[arg(long, value_name = "SECONDS", default_value_t = 120,
              value_parser = clap::value_parser!(u64).range(1..=86400))]
        limit: u64,
    },
}

#[derive(Args)]
pub(crate) struct RunArguments {
    /// CPU model of Bochs; corei7_skylake_x has no SPP
    #[arg(long, default_value = probe::WITH_SPP)]
    model: String,
    /// Processors
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=16))]
    cpus: u32,
    /// Usable memory ends here
    #[arg(long, value_name = "MIB", default_value_t = machine::MEMORY_MIB,
          value_parser = clap::value_parser!(u64).range(2..=512))]
    memory: u64,
    /// Kill Bochs after this time
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=86400))]
    limit: u64,
    /// An ELF file instead of the guest with the tests
    #[arg(long, value_name = "FILE")]
    guest: Option<PathBuf>,
    /// Exported rules
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The hypervisor's command line: its own options, then `--` and the guest's
    #[arg(value_name = "WORD", trailing_var_arg = true, allow_hyphen_values = true)]
    command_line: Vec<OsString>,
}

/// `cargo xtask bochs`, where its subcommand may install what a build of Bochs needs.
pub(crate) fn run(workspace: &Workspace, task: Option<Task>) -> Result<ExitCode> {
    let interrupt = Interrupt::install().context("cannot listen for signals")?;
    let hour = Duration::from_secs(3600);
    let mut out = io::stdout();
    let mut errors = io::stderr();
    let quiet = matches!(task, Some(Task::RunCases { .. }));
    let out: &mut dyn io::Write = if quiet { &mut errors } else { &mut out };
    let mut session = Session::new(out, interrupt, hour);
    let success = match task {
        None => ready(&mut session, true)?.is_some(),
        Some(Task::Build { test_hooks }) => {
            let purpose = if test_hooks { Purpose::Test } else { Purpose::Guard };
            Images::build(&mut session, workspace, purpose)?.is_some()
        }
        Some(Task::Run(arguments)) => run_guest(&mut session, workspace, arguments)?,
        Some(Task::RunCases { model, cases, cpus, limit }) => {
            run_cases(&mut session, workspace, &model, cases, cpus, Duration::from_secs(limit))?
        }
    };
    Ok(if success { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Bochs, or none; then the reason has been said.
pub(crate) fn ready(session: &mut Session<'_>, install: bool) -> Result<Option<Emulator>> {
    match emulator::prepare(session, install)? {
        Ok(emulator) => Ok(Some(emulator)),
        Err(reason) => {
            session.say(&format!("   no Bochs: {reason}"))?;
            Ok(None)
        }
    }
}

fn run_guest(
    session: &mut Session<'_>,
    workspace: &Workspace,
    arguments: RunArguments,
) -> Result<bool> {
    let Some(emulator) = ready(session, false)? else { return Ok(false) };
    let Some(images) = Images::build(session, workspace, Purpose::Test)? else { return Ok(false) };
    let guest = arguments.guest.unwrap_or_else(|| images.guest());
    let mut modules = vec![("guest".to_owned(), Contents::File(guest))];
    if let Some(policy) = arguments.policy {
        let bytes =
            fs::read(&policy).with_context(|| format!("cannot read {}", policy.display()))?;
        modules.push(("policy".to_owned(), Contents::Bytes(bytes)));
    }
    let words: Option<Vec<_>> = arguments.command_line.iter().map(|word| word.to_str()).collect();
    let machine = BochsMachine {
        model: arguments.model,
        processors: arguments.cpus,
        memory_mib: arguments.memory,
        rom: images.rom(),
        image: images.hypervisor(),
        command_line: words.context("the command line is not UTF-8")?.join(" "),
        modules,
        damage: None,
        logging: Logging::Errors,
    };
    let limit = Duration::from_secs(arguments.limit);
    let interrupt = session.interrupt().clone();
    let mut printed = Ok(());
    let run = machine.start(&emulator, limit, &interrupt, &mut |line| {
        if printed.is_ok() {
            printed = session.say(line);
        }
    })?;
    printed?;
    Ok(report(session, &run)? && judge(session, &run)?)
}

/// Says what Bochs has to say, and whether it came to its end by itself.
fn report(session: &mut Session<'_>, run: &Run) -> Result<bool> {
    for line in &run.log {
        session.say(&format!("   Bochs: {line}"))?;
    }
    let ended = matches!(run.ending, Ending::Exited(_));
    if !ended {
        session.say(&format!("   killed: {}", run.complaint()))?;
    }
    Ok(ended)
}

/// Whether the guest has ended itself and was content, and no test of it has failed; says why not.
fn judge(session: &mut Session<'_>, run: &Run) -> Result<bool> {
    match last_words::succeeded(run) {
        Ok(()) => Ok(true),
        Err(reason) => {
            session.say(&format!("   failed: {reason}"))?;
            Ok(false)
        }
    }
}

fn run_cases(
    session: &mut Session<'_>,
    workspace: &Workspace,
    model: &str,
    cases: PathBuf,
    processors: u32,
    limit: Duration,
) -> Result<bool> {
    // The suite has looked at the emulator and has built the images, and says where they are: one
    // run here is one of many.
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let prepared = variable(emulator::PROGRAM_VARIABLE).zip(variable(images::DIRECTORY_VARIABLE));
    let (emulator, images) = if let Some((program, directory)) = prepared {
        (Emulator { program }, Images::at(directory))
    } else {
        let Some(emulator) = ready(session, false)? else { return Ok(false) };
        let Some(images) = Images::build(session, workspace, Purpose::Conformance)? else {
            return Ok(false);
        };
        (emulator, images)
    };
    let machine = BochsMachine {
        model: model.to_owned(),
        processors,
        memory_mib: machine::MEMORY_MIB,
        rom: images.rom(),
        image: images.conformance(),
        command_line: "subpage-conformance".into(),
        modules: vec![("cases".to_owned(), Contents::File(cases))],
        damage: None,
        logging: Logging::Fatal,
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut printed = Ok(());
    let run = machine.start(&emulator, limit, &session.interrupt().clone(), &mut |line| {
        if printed.is_ok() {
            printed = io::Write::write_fmt(&mut out, format_args!("{line}\n"));
        }
    })?;
    printed.and_then(|()| io::Write::flush(&mut out)).context("cannot write the output")?;
    report(session, &run)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus};

    use super::*;

    /// What is said about a run that Bochs ended in this way after these lines, and its verdict.
    fn told(ending: Ending, lines: &[&str]) -> (bool, String) {
        let run = Run {
            banner: String::new(),
            lines: lines.iter().map(|&line| line.to_owned()).collect(),
            ending,
            log: Vec::new(),
        };
        let mut out = Vec::new();
        let mut session = Session::new(&mut out, Interrupt::default(), Duration::from_secs(60));
        let good = report(&mut session, &run).expect("a vector can be written")
            && judge(&mut session, &run).expect("a vector can be written");
        (good, String::from_utf8(out).expect("our text is UTF-8"))
    }

    #[test]
    fn a_run_is_good_if_its_guest_was_content() {
        let end = "hypervisor: stopped: guest ended with status 0";
        // Bochs's own status is always 1.
        let exited = Ending::Exited(ExitStatus::from_raw(1 << 8));
        assert_eq!(told(exited, &["guest| PASS a", end]), (true, String::new()));
        for (lines, why) in [
            (
                &["guest| FAIL a: two and two", "hypervisor: stopped: guest ended with status 1"][..],
                "FAIL a: two and two",
            ),
            (&["guest| FAIL a: two and two", end], "FAIL a: two and two"),
            (&["hypervisor: stopped: triple fault of processor 0"], "triple fault"),
            (&["hypervisor: stopped: guest ended with status 7"], "status 7"),
            (&["guest| PASS a"], "without a last word"),
            (&[], "without a last word"),
        ] {
            let (good, text) = told(exited, lines);
            assert!(!good && text.contains("failed: ") && text.contains(why), "{lines:?}: {text}");
        }
        let (good, text) = told(Ending::TimeLimit, &["guest| PASS a"]);
        assert!(!good && text.contains("killed: its time limit was reached"), "{text}");
    }
}

//! `cargo xtask linux`: a distribution's kernel under the hypervisor, in Bochs.

mod boot;
pub(crate) mod counts;
pub(crate) mod modules;
pub(crate) mod scenario;
mod storm;

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    bochs::{
        self,
        configuration::Logging,
        images::{Images, Purpose},
        last_words,
        linux::{self, LinuxMachine, LinuxRun, MEMORY_MIB},
        probe,
    },
    lab::ingredients::{Ingredients, Kernel},
    session::{Interrupt, Session},
    workspace::Workspace,
};
use modules::Built;
use scenario::Scenario;

/// The initrd of the example: a shell that needs no library.
pub(crate) const INITRD: &str = "examples/linux/initrd.cpio";

/// What every kernel is told in Bochs: one that uses fast short REP MOV hangs in it.
const COMMAND_LINE: &str = "console=ttyS0 earlyprintk=serial,ttyS0 nokaslr mitigations=off panic=-1 \
                            nowatchdog clearcpuid=580";

/// The policy of the example: a rule on `modprobe_path`.
pub(crate) const POLICY: &str = "examples/linux/policy.toml";

/// The kernel's command line for so many processors, with what its first program does. The tables of ACPI
/// tell of several; for one there are none.
pub(crate) fn command_line(processors: u32, commands: &[&str]) -> String {
    let acpi = if processors == 1 { " acpi=off" } else { "" };
    let commands: Vec<_> = commands.iter().map(|command| format!("\"{command}\"")).collect();
    format!("{COMMAND_LINE}{acpi} quiet -- {}", commands.join(" "))
}

/// Makes a policy module with the tool; none if that fails, which has been said.
pub(crate) fn compile(
    session: &mut Session<'_>,
    workspace: &Workspace,
    policy: &Path,
    symbols: Option<&Path>,
) -> Result<Option<Vec<u8>>> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let module = directory.path().join("policy");
    let made = compile_into(session, workspace, policy, symbols, &module, None)?;
    made.then(|| linux::read(&module)).transpose()
}

/// A policy module, and the names of the kernel as another; none if that fails, which has been said.
pub(crate) fn compile_named(
    session: &mut Session<'_>,
    workspace: &Workspace,
    policy: &Path,
    kernel: &Path,
) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let [module, names] = ["policy", "names"].map(|name| directory.path().join(name));
    if !compile_into(session, workspace, policy, Some(kernel), &module, Some(&names))? {
        return Ok(None);
    }
    Ok(Some((linux::read(&module)?, linux::read(&names)?)))
}

/// Makes a policy module, and one with the names of the kernel; `false` if that fails, which has been said.
pub(crate) fn compile_into(
    session: &mut Session<'_>,
    workspace: &Workspace,
    policy: &Path,
    symbols: Option<&Path>,
    module: &Path,
    names: Option<&Path>,
) -> Result<bool> {
    let mut command = workspace.cargo(&["run", "--quiet", "--release", "--package", "subpage-cli"]);
    command.args(["--", "compile", "--policy"]).arg(policy).arg("-o").arg(module);
    if let Some(symbols) = symbols {
        command.arg("--symbols").arg(symbols);
    }
    if let Some(names) = names {
        command.arg("--names").arg(names);
    }
    let finished = session.run(command, &mut |_| None)?;
    if !finished.ending.success() {
        session.show(&finished.output)?;
    }
    Ok(finished.ending.success())
}

/// What there is besides one start.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Task {
    /// Record a boot in QEMU, without the hypervisor, and show what the default pack costs it, by pages
    /// and by sub-pages; a minute
    Boot,
    /// Count what rules cost: the same work under several policies, as a table in Markdown; some minutes
    Storm,
}

/// What `cargo xtask linux` takes.
#[derive(Args)]
pub(crate) struct Arguments {
    /// What to do instead of one start
    #[arg(value_enum, value_name = "WHAT")]
    task: Option<Task>,
    /// CPU model of Bochs; corei7_skylake_x has no SPP
    #[arg(long, default_value = probe::WITH_SPP)]
    model: String,
    /// Processors
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=8))]
    cpus: u32,
    /// Memory of the machine
    #[arg(long, value_name = "MIB", default_value_t = MEMORY_MIB,
          value_parser = clap::value_parser!(u64).range(384..=3072))]
    memory: u64,
    /// More memory, from 4 GiB on
    #[arg(long, value_name = "MIB", default_value_t = 0,
          value_parser = clap::value_parser!(u64).range(0..=2048))]
    high_memory: u64,
    /// Kill Bochs after this time
    #[arg(long, value_name = "SECONDS", default_value_t = 600,
          value_parser = clap::value_parser!(u64).range(1..=86400))]
    limit: u64,
    /// A bzImage instead of that of Debian's cloud kernel
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// An initrd instead of that of examples/linux
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Also with commands of your own: build the modules of examples/linux-module and add them to the
    /// initrd, /attack.ko and /locked.ko. The whole scenario needs them anyway
    #[arg(long, conflicts_with_all = ["kernel", "no_modules"])]
    modules: bool,
    /// The short scenario, one rule and no module: it needs no compiler. The only one with --kernel
    #[arg(long)]
    no_modules: bool,
    /// A policy instead of that of the example: nothing is then judged but how it ends
    #[arg(long, value_name = "FILE", conflicts_with = "no_policy")]
    policy: Option<PathBuf>,
    /// No policy
    #[arg(long)]
    no_policy: bool,
    /// Options of the hypervisor
    #[arg(long, value_name = "WORDS", default_value = "events=serial")]
    options: String,
    /// What the initrd's shell does instead of the scenario, one command each: cat FILE, echo TEXT > FILE,
    /// work ROUNDS, insmod FILE, id, poweroff, reboot, panic. Nothing is then judged but how it ends
    #[arg(value_name = "COMMAND", last = true)]
    commands: Vec<String>,
}

/// Runs it.
pub(crate) fn run(workspace: &Workspace, arguments: Arguments) -> Result<ExitCode> {
    let interrupt = Interrupt::install().context("cannot listen for signals")?;
    let mut out = io::stdout();
    let mut session = Session::new(&mut out, interrupt.clone(), Duration::from_secs(3600));
    if arguments.task == Some(Task::Boot) {
        return boot(&mut session, workspace, arguments);
    }
    let storm = arguments.task == Some(Task::Storm);
    let own = !arguments.commands.is_empty();
    let short = arguments.no_modules || arguments.kernel.is_some();
    let with_modules = arguments.modules || !(own || short || storm);
    let Some(emulator) = bochs::ready(&mut session, true)? else { return Ok(ExitCode::FAILURE) };
    let path = arguments.initrd.clone().unwrap_or_else(|| workspace.root().join(INITRD));
    let (kernel, initrd) = match &arguments.kernel {
        Some(kernel) => (kernel.clone(), linux::read(&path)?),
        None => match Ingredients::prepare(&mut session, Kernel::Stable)? {
            Ok(ingredients) if with_modules => {
                let initrd = add_modules(&mut session, workspace, &ingredients, &path)?;
                let Some(initrd) = initrd else { return Ok(ExitCode::FAILURE) };
                (ingredients.kernel(), initrd)
            }
            Ok(ingredients) => (ingredients.kernel(), linux::read(&path)?),
            Err(reason) => {
                session.say(&format!("   no kernel: {reason}"))?;
                return Ok(ExitCode::FAILURE);
            }
        },
    };
    let Some(images) = Images::build(&mut session, workspace, Purpose::Linux)? else {
        return Ok(ExitCode::FAILURE);
    };
    if storm {
        let kernel_and_initrd = (kernel.as_path(), initrd);
        return storm::run(&mut session, workspace, &emulator, &images, kernel_and_initrd);
    }
    let guarded = !arguments.no_policy;
    let example = if with_modules { modules::POLICY } else { POLICY };
    let scenario = if with_modules { Scenario::whole() } else { Scenario::short() };
    let policy = arguments.policy.clone().unwrap_or_else(|| workspace.root().join(example));
    let compiled = if guarded {
        let compiled = compile_named(&mut session, workspace, &policy, &kernel)?;
        if compiled.is_none() {
            return Ok(ExitCode::FAILURE);
        }
        compiled
    } else {
        None
    };
    let commands = if own {
        arguments.commands.iter().map(String::as_str).collect()
    } else {
        scenario.commands()
    };
    let (policy, names) = compiled.unzip();
    let machine = LinuxMachine {
        model: arguments.model,
        processors: arguments.cpus,
        memory_mib: arguments.memory,
        told_memory_mib: None,
        high_memory_mib: arguments.high_memory,
        rom: images.rom(),
        image: images.hypervisor(),
        options: format!("cpus={} {}", arguments.cpus, arguments.options),
        kernel: linux::read(&kernel)?,
        initrd: Some(initrd),
        policy,
        names,
        command_line: command_line(arguments.cpus, &commands),
        logging: Logging::Fatal,
    };
    let limit = Duration::from_secs(arguments.limit);
    let mut printed = Ok(());
    let done = machine.start(&emulator, limit, &interrupt, &mut |line| {
        if printed.is_ok() {
            printed = session.say(line);
        }
    })?;
    printed?;
    for line in &done.run.log {
        session.say(&format!("   Bochs: {line}"))?;
    }
    // Other commands, rules or first programs bring what they bring.
    let judged = !own && arguments.policy.is_none() && arguments.initrd.is_none();
    if judged { report(&mut session, &scenario, &done, guarded) } else { end(&mut session, &done) }
}

/// Prints how the steps went, and of a run that failed what the kernel printed last.
fn report(
    session: &mut Session<'_>,
    scenario: &Scenario,
    done: &LinuxRun,
    guarded: bool,
) -> Result<ExitCode> {
    let steps = scenario.judge(done, guarded);
    session.say("")?;
    for (number, step) in steps.iter().enumerate() {
        session.say(&step.line(number + 1))?;
    }
    let failed = steps.iter().filter(|step| step.failed()).count();
    if failed == 0 {
        session.say(&format!("   all {} steps went as expected", steps.len()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let (what, last) = match scenario::panic(&done.console) {
        Some(lines) => ("the kernel panicked", lines),
        None => ("what the kernel printed last", scenario::last_lines(&done.console)),
    };
    session.say(&format!("   {what}:"))?;
    say_console(session, last)?;
    session.say(&format!("   failed: {failed} of {} steps", steps.len()))?;
    Ok(ExitCode::FAILURE)
}

/// Prints what the kernel has printed, and whether it came to its end by itself.
fn end(session: &mut Session<'_>, done: &LinuxRun) -> Result<ExitCode> {
    say_console(session, &done.console)?;
    if scenario::panic(&done.console).is_some() {
        session.say("   failed: the kernel panicked, as its lines above tell")?;
        return Ok(ExitCode::FAILURE);
    }
    // Switched off or reset.
    let ended = [scenario::HALTED, "the guest resets the machine"]
        .map(|words| last_words::ended(&done.run, words));
    match ended {
        [Err(reason), Err(_)] => {
            session.say(&format!("   failed: {reason}"))?;
            Ok(ExitCode::FAILURE)
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn say_console(session: &mut Session<'_>, lines: &[String]) -> Result<()> {
    for line in lines {
        session.say(&format!("linux| {line}"))?;
    }
    Ok(())
}

/// Records a boot with what the arguments say of it.
fn boot(
    session: &mut Session<'_>,
    workspace: &Workspace,
    arguments: Arguments,
) -> Result<ExitCode> {
    let ingredients = match Ingredients::prepare(session, Kernel::Stable)? {
        Ok(ingredients) => ingredients,
        Err(reason) => {
            session.say(&format!("   no kernel and no QEMU: {reason}"))?;
            return Ok(ExitCode::FAILURE);
        }
    };
    let boot = boot::Boot {
        qemu: ingredients.qemu(),
        kernel: arguments.kernel.unwrap_or_else(|| ingredients.kernel()),
        initrd: arguments.initrd.unwrap_or_else(|| workspace.root().join(INITRD)),
        policy: arguments.policy,
        commands: arguments.commands,
    };
    boot::run(session, workspace, &boot)
}

/// An initrd with modules in it; none if that fails, which has been said.
fn add_modules(
    session: &mut Session<'_>,
    workspace: &Workspace,
    ingredients: &Ingredients,
    initrd: &Path,
) -> Result<Option<Vec<u8>>> {
    if modules::tools(session, true)? {
        match modules::initrd(session, workspace, ingredients, initrd)? {
            Built::Initrd(initrd) => return Ok(Some(initrd)),
            Built::NoHeaders(reason) => session.say(&format!("   no modules: {reason}"))?,
            Built::Broken => {}
        }
    }
    session.say("   without modules there is the short scenario: --no-modules")?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_words_of_the_command_line() {
        let line = command_line(1, &["id", "work 5"]);
        assert!(line.ends_with(" quiet -- \"id\" \"work 5\""), "{line}");
        assert!(line.contains(" nokaslr "));
    }
}

//! The lab: a stock Linux with KVM as host, inside an emulator that emulates hardware
//! virtualization. `cargo xtask lab`.

mod frames;
mod image;
pub(crate) mod ingredients;
mod initramfs;
mod programs;
mod qemu;
mod run;

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    execute,
    session::{Interrupt, Session},
    workspace::Workspace,
};
use frames::{Line, Mark};
use image::{Contents, Job, ModuleOption};
use ingredients::Ingredients;
use run::{Outcome, Patience};

/// What `cargo xtask lab` takes.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The processor that is emulated
    host: Host,
    /// Its processors [default: 2 with amd, 1 with intel]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8))]
    cpus: Option<u32>,
    /// Its memory
    #[arg(long, value_name = "MIB", default_value_t = 2048,
          value_parser = clap::value_parser!(u64).range(512..=16384))]
    memory: u64,
    /// End the host after this time
    #[arg(long, value_name = "MINUTES", default_value_t = 30,
          value_parser = clap::value_parser!(u64).range(1..=1440))]
    limit: u64,
    /// A setting for a module, like kvm_intel.eptad=0 or kvm_amd.npt=0
    #[arg(long = "module-option", value_name = "MODULE.NAME=VALUE")]
    module_options: Vec<ModuleOption>,
    /// Put a file into the directory in which the command runs
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Build this program of the workspace, too, optimised
    #[arg(long = "bin", value_name = "NAME")]
    programs: Vec<String>,
    /// A command and its arguments; none: a shell. There are subpage, the test programs kvm,
    /// example and control, and the tools of busybox
    #[arg(value_name = "COMMAND", last = true)]
    command: Vec<String>,
}

/// A processor that emulators emulate with its virtualization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Host {
    /// AMD-V with nested paging, by QEMU
    Amd,
    /// VT-x with EPT, by Bochs
    Intel,
}

/// Runs one command in a host, or a shell, and hands on its exit status.
pub(crate) fn run(workspace: &Workspace, arguments: Arguments) -> Result<ExitCode> {
    let interrupt = Interrupt::install().context("cannot listen for signals")?;
    let limit = Duration::from_secs(arguments.limit * 60);
    // Standard output is the command's.
    let mut errors = io::stderr();
    let mut session = Session::new(&mut errors, interrupt, limit);
    let ingredients = match Ingredients::prepare(&mut session)? {
        Ok(ingredients) => ingredients,
        Err(reason) => bail!("no lab: {reason}"),
    };
    let Some(programs) = programs::build(&mut session, workspace, &arguments.programs)? else {
        bail!("the programs for the host cannot be built");
    };
    let mirrored = mirrored(workspace);
    let contents = Contents {
        host: arguments.host,
        programs: &programs,
        module_options: &arguments.module_options,
        files: &arguments.files,
        mirrored: &mirrored,
    };
    let directory = tempfile::Builder::new()
        .prefix("subpage-lab-")
        .tempdir()
        .context("cannot make a temporary directory")?;
    let path = directory.path();
    let mark = Mark::random()?;
    let shell = arguments.command.is_empty();
    let job = if shell { Job::Shell } else { Job::Command(arguments.command) };
    let initrd = path.join("initrd");
    fs::write(&initrd, contents.image(&ingredients, &job, &mark, path)?)
        .context("cannot write the host's files")?;
    let kernel = ingredients.kernel();
    let command = match arguments.host {
        Host::Amd => ingredients.qemu().start(&qemu::Start {
            kernel: &kernel,
            initrd: &initrd,
            command_line: COMMAND_LINE,
            processors: arguments.cpus.unwrap_or(2),
            memory_mib: arguments.memory,
            directory: path,
        }),
        Host::Intel => bail!("the intel host is not there yet"),
    };
    if shell {
        return self::shell(command);
    }
    let patience = Patience { whole: limit, silence: limit };
    let command = execute::limited(&command, limit);
    let interrupt = session.interrupt().clone();
    let mut out = io::stdout().lock();
    let mut printed = Ok(());
    let finished = run::run(command, path, &mark, patience, &interrupt, &mut |line| {
        if let Line::Output(text) = line
            && printed.is_ok()
        {
            printed = writeln!(out, "{text}").and_then(|()| out.flush());
        }
    })?;
    printed.context("cannot write the output")?;
    match finished.outcome {
        Outcome::Over(status) => Ok(ExitCode::from(status)),
        Outcome::Interrupted => Ok(ExitCode::from(INTERRUPTED)),
        Outcome::Failed(reason) => {
            session.show(&finished.console.join("\n"))?;
            bail!("{reason}")
        }
    }
}

/// The status of a program that the user has stopped.
const INTERRUPTED: u8 = 130;

/// The command line of a host's kernel, whose first serial line is its console.
const COMMAND_LINE: &str = "console=ttyS0 nokaslr mitigations=off panic=-1";

/// Directories that test programs look for where they were built.
fn mirrored(workspace: &Workspace) -> Vec<PathBuf> {
    ["examples/kernel", "crates/subpage-kvm"].map(|path| workspace.root().join(path)).to_vec()
}

/// Hands the terminal over.
fn shell(mut command: Command) -> Result<ExitCode> {
    let status = command.status().context("cannot start the emulator")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

//! The lab: a stock Linux with KVM as host, inside an emulator that emulates hardware
//! virtualization. `cargo xtask lab`.

mod bochs;
pub(crate) mod frames;
pub(crate) mod headers;
pub(crate) mod image;
pub(crate) mod ingredients;
pub(crate) mod initramfs;
pub(crate) mod job;
pub(crate) mod linux;
pub(crate) mod programs;
pub(crate) mod qemu;
pub(crate) mod run;

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};

use tempfile::TempDir;

use crate::{
    bochs::emulator,
    execute,
    session::{self, Interrupt, Session},
    workspace::Workspace,
};
use frames::{Line, Mark};
use image::{Contents, ModuleOption};
use ingredients::{Ingredients, Kernel};
use job::Job;
use run::{Finished, JobEnd, Patience};

/// What `cargo xtask lab` takes.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The processor that is emulated
    host: Host,
    /// Its kernel
    #[arg(long, value_name = "WHICH", value_enum, default_value_t)]
    kernel: Kernel,
    /// Its processors [default: 2 with amd; intel has one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8))]
    cpus: Option<u32>,
    /// Its memory [default: 2048 with amd, 1024 with intel]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(512..=3072))]
    memory: Option<u64>,
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
    /// A command and its arguments; none: a shell, with amd only. There are subpage, the test programs kvm,
    /// example and control, the tools of busybox, and the host's own kernel, /lab/vmlinuz
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

/// An emulator with what a host is made of.
#[derive(Debug)]
pub(crate) struct Rig {
    ingredients: Ingredients,
    emulator: Emulator,
}

#[derive(Debug)]
enum Emulator {
    Qemu(qemu::Qemu),
    Bochs(crate::bochs::emulator::Emulator),
}

/// How large a host is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    processors: u32,
    memory_mib: u64,
}

impl Size {
    pub(crate) fn processors(self) -> u32 {
        self.processors
    }
}

impl Host {
    /// As the command line has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Amd => "amd",
            Self::Intel => "intel",
        }
    }

    /// What a host has if nothing else is said.
    pub(crate) fn size(self) -> Size {
        match self {
            Self::Amd => Size { processors: 2, memory_mib: 2048 },
            Self::Intel => Size { processors: 1, memory_mib: 1024 },
        }
    }

    /// What the kernel is told. Its first serial line is its console. It is no judge of how long
    /// anything may take: a busy machine may not run one of the emulated processors for long.
    fn command_line(self) -> &'static str {
        match self {
            Self::Amd => "console=ttyS0 nokaslr mitigations=off panic=-1 nowatchdog",
            // Bochs has no tables of ACPI here, and a kernel that uses FSRM hangs in it.
            Self::Intel => {
                "console=ttyS0 nokaslr mitigations=off panic=-1 nowatchdog acpi=off clearcpuid=580"
            }
        }
    }
}

impl Rig {
    /// Finds or fetches what a host needs, and says what it does; or says why there is none.
    /// `install` allows a build of Bochs to install what it needs.
    pub(crate) fn prepare(
        session: &mut Session<'_>,
        host: Host,
        kernel: Kernel,
        install: bool,
    ) -> Result<Result<Self, String>> {
        let ingredients = match Ingredients::prepare(session, kernel)? {
            Ok(ingredients) => ingredients,
            Err(reason) => return Ok(Err(reason)),
        };
        let emulator = match host {
            Host::Amd => Emulator::Qemu(ingredients.qemu()),
            Host::Intel => match emulator::prepare(session, install)? {
                Ok(bochs) => Emulator::Bochs(bochs),
                Err(reason) => return Ok(Err(reason)),
            },
        };
        Ok(Ok(Self { ingredients, emulator }))
    }

    /// The command that starts a host which does this job, with its files in `directory`.
    fn command(
        &self,
        contents: &Contents<'_>,
        job: &Job,
        size: Size,
        mark: &Mark,
        directory: &Path,
    ) -> Result<Command> {
        let initrd = directory.join("initrd");
        fs::write(&initrd, contents.image(&self.ingredients, job, mark, directory)?)
            .context("cannot write the host's files")?;
        let kernel = &self.ingredients.kernel();
        let initrd = &initrd;
        let command_line = contents.host.command_line();
        let Size { processors, memory_mib } = size;
        match &self.emulator {
            Emulator::Qemu(qemu) => Ok(qemu.start(&qemu::Start {
                kernel,
                initrd,
                command_line,
                processors,
                memory_mib,
                directory,
            })),
            Emulator::Bochs(emulator) => {
                ensure!(processors == 1, "the intel host has one processor");
                let start = bochs::Start { kernel, initrd, command_line, memory_mib, directory };
                bochs::start(emulator, &start)
            }
        }
    }

    /// Starts a host, has it do its job, and ends it. `on_line` sees what the job prints.
    pub(crate) fn run(
        &self,
        contents: &Contents<'_>,
        job: &Job,
        size: Size,
        patience: Patience,
        interrupt: &Interrupt,
        on_line: &mut dyn FnMut(Line<'_>),
    ) -> Result<Finished> {
        let directory = directory()?;
        let mark = Mark::random()?;
        let command = self.command(contents, job, size, &mark, directory.path())?;
        let command = execute::limited(&command, patience.whole);
        run::run(command, directory.path(), &mark, patience, interrupt, on_line)
    }
}

fn directory() -> Result<TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("subpage-lab-").tempdir().context("cannot make a temporary directory")
}

/// Runs one command in a host, or a shell, and hands on its exit status.
pub(crate) fn run(workspace: &Workspace, arguments: Arguments) -> Result<ExitCode> {
    let interrupt = Interrupt::install().context("cannot listen for signals")?;
    let limit = Duration::from_secs(arguments.limit * 60);
    // Standard output is the command's.
    let mut errors = io::stderr();
    let mut session = Session::new(&mut errors, interrupt, limit);
    let host = arguments.host;
    let shell = arguments.command.is_empty();
    ensure!(!shell || host == Host::Amd, "the intel host has no shell: give a command behind --");
    let rig = match Rig::prepare(&mut session, host, arguments.kernel, false)? {
        Ok(rig) => rig,
        Err(reason) => bail!("no lab: {reason}"),
    };
    let Some(programs) = programs::build(&mut session, workspace, &arguments.programs)? else {
        bail!("the programs for the host cannot be built");
    };
    let mirrored = mirrored(workspace);
    let contents = Contents {
        host,
        programs: &programs,
        module_options: &arguments.module_options,
        files: &arguments.files,
        mirrored: &mirrored,
    };
    let usual = host.size();
    let size = Size {
        processors: arguments.cpus.unwrap_or(usual.processors),
        memory_mib: arguments.memory.unwrap_or(usual.memory_mib),
    };
    if shell {
        let directory = directory()?;
        let mark = Mark::random()?;
        let mut command = rig.command(&contents, &Job::Shell, size, &mark, directory.path())?;
        let status = command.status().context("cannot start the emulator")?;
        return Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let patience = Patience { whole: limit, silence: limit, heartbeat: limit };
    let interrupt = session.interrupt().clone();
    let mut out = io::stdout().lock();
    let mut printed = Ok(());
    let job = Job::Command(arguments.command);
    let finished = rig.run(&contents, &job, size, patience, &interrupt, &mut |line| {
        if let Line::Output(text) = line
            && printed.is_ok()
        {
            printed = writeln!(out, "{text}").and_then(|()| out.flush());
        }
    })?;
    printed.context("cannot write the output")?;
    match finished.outcome {
        JobEnd::Over(status) => Ok(ExitCode::from(status)),
        JobEnd::Interrupted => Ok(ExitCode::from(session::INTERRUPTED)),
        JobEnd::Failed(reason) => {
            session.show(&finished.console.join("\n"))?;
            bail!("{reason}")
        }
    }
}

/// Directories that test programs look for where they were built.
pub(crate) fn mirrored(workspace: &Workspace) -> Vec<PathBuf> {
    ["examples/kernel", "examples/linux", "crates/subpage-kvm"]
        .map(|path| workspace.root().join(path))
        .to_vec()
}

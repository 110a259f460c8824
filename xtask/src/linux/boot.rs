//! `cargo xtask linux boot`: what the default pack costs a kernel that boots and works, counted on a
//! recording of QEMU. It needs neither KVM nor Bochs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{lab::qemu::Qemu, session::Session, workspace::Workspace};

/// The status of `subpage guard` if a rule has denied a write.
const DENIED: i32 = 3;

/// As in the table of `storm`.
const WORK: [&str; 2] = ["work 1000", "poweroff"];

/// What is recorded.
pub(super) struct Boot {
    pub(super) qemu: Qemu,
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    /// A policy in place of the default pack.
    pub(super) policy: Option<PathBuf>,
    /// What the initrd's shell does in place of the usual work.
    pub(super) commands: Vec<String>,
}

/// Records the boot, and guards the recording.
pub(super) fn run(
    session: &mut Session<'_>,
    workspace: &Workspace,
    boot: &Boot,
) -> Result<ExitCode> {
    let mut build = workspace.cargo(&["build", "--quiet", "--package", "subpage-cli"]);
    done("cargo", &mut build)?;
    let subpage = workspace.target().join("debug/subpage");
    let folder = workspace.separate_target("linux-boot");
    fs::create_dir_all(&folder).context("cannot make a folder")?;
    let trace = folder.join("boot.sptrace");
    let policy = if let Some(policy) = &boot.policy {
        policy.clone()
    } else {
        let policy = folder.join("default.toml");
        let file = fs::File::create(&policy).context("cannot write the policy")?;
        let mut pack = Command::new(&subpage);
        pack.args(["policy", "linux", "--kernel"]).arg(&boot.kernel).stdout(file);
        done("subpage policy linux", &mut pack)?;
        policy
    };
    session.say("   recording a boot of the kernel in QEMU")?;
    done("subpage record", &mut record(&subpage, &trace, boot))?;
    if session.interrupted() {
        return Ok(ExitCode::FAILURE);
    }
    let mut guard = Command::new(&subpage);
    guard.args(["guard", "--policy"]).arg(&policy).arg(&trace);
    // What it denies is a finding, and no failure.
    let status = guard.status().context("cannot start subpage")?;
    Ok(if matches!(status.code(), Some(0 | DENIED)) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn record(subpage: &Path, trace: &Path, boot: &Boot) -> Command {
    let commands: Vec<_> = if boot.commands.is_empty() {
        WORK.map(str::to_owned).to_vec()
    } else {
        boot.commands.clone()
    };
    let commands: Vec<_> = commands.iter().map(|command| format!("\"{command}\"")).collect();
    let command_line = format!(
        "console=ttyS0 nokaslr mitigations=off panic=-1 nowatchdog quiet -- {}",
        commands.join(" ")
    );
    let machine = boot.qemu.start_recorded(&boot.kernel, &boot.initrd, &command_line);
    let mut command = Command::new(subpage);
    command.args(["record", "--system", "--symbols"]).arg(&boot.kernel).arg("-o").arg(trace);
    command.arg("--").arg(machine.get_program()).args(machine.get_args());
    command.env_remove("LD_LIBRARY_PATH").env_remove("LD_PRELOAD").stdin(Stdio::null());
    command
}

fn done(what: &str, command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {what}"))?;
    ensure!(status.success(), "{what} failed ({status})");
    Ok(())
}

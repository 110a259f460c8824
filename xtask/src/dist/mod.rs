//! `cargo xtask dist`: the tool as people get it: a static program, manual pages, completions and
//! licences, as an archive and as a Debian package.

pub(crate) mod archive;
pub(crate) mod contents;
pub(crate) mod debian;
mod licences;
mod paths;
mod runtime;
pub(crate) mod target;

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use sha2::{Digest as _, Sha256};

use crate::{cache::hexadecimal, workspace::Workspace};
use contents::Contents;
use target::Target;

/// What `cargo xtask dist` takes.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Link against this machine's glibc, also where musl is there or can be installed
    #[arg(long)]
    glibc: bool,
}

/// Makes the packages in `target/packages` and says how large they are.
pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    let target = Target::choose(workspace, arguments.glibc)?;
    let program = target.build(workspace)?;
    target::check_static(&program)?;
    paths::check(workspace, &program)?;
    let contents = Contents::of(workspace, &program, target)?;
    let directory = workspace.separate_target("packages");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let mut made = vec![archive::write(&contents, &directory)?];
    match debian::write(&contents, &directory)? {
        Some(package) => made.push(package),
        None => eprintln!("no Debian package: dpkg-deb is missing"),
    }
    let mut out = io::stdout().lock();
    for path in made {
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let sum = hexadecimal(&Sha256::digest(&bytes));
        writeln!(out, "{sum}  {}  {} KiB", path.display(), bytes.len().div_ceil(1 << 10))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What a program prints that reads `input`.
fn output_of(command: &mut Command, input: &[u8]) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let mut stdin = child.stdin.take().expect("it is piped");
    let output = std::thread::scope(|scope| {
        let writer = scope.spawn(move || stdin.write_all(input));
        let output = child.wait_with_output();
        writer.join().expect("it does not panic").and(output)
    });
    let output = output.with_context(|| format!("cannot use {name}"))?;
    ensure!(output.status.success(), "{name} failed: {}", output.status);
    Ok(output.stdout)
}

/// The same bytes for the same commit: the time of all files, in seconds since 1970, as
/// <https://reproducible-builds.org/specs/source-date-epoch/> has it.
fn epoch(root: &Path) -> String {
    if let Ok(epoch) = std::env::var("SOURCE_DATE_EPOCH") {
        return epoch;
    }
    let mut git = Command::new("git");
    git.current_dir(root).args(["log", "-1", "--format=%ct"]).stderr(Stdio::null());
    let told = git.output().ok().filter(|output| output.status.success());
    // Sources without history, as from an archive.
    told.map_or_else(|| "0".into(), |output| String::from_utf8_lossy(&output.stdout).trim().into())
}

//! The benchmarks: those of the engine, which are a program of their own, and those of the
//! hypervisor, which run in Bochs.

pub(crate) mod vmx;

use std::{ffi::OsString, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::workspace::Workspace;

/// Runs the program `subpage-bench` on this terminal and hands on its exit status.
///
/// Standard output is the program's alone, so that `--json` can be piped.
pub(crate) fn run(workspace: &Workspace, arguments: &[OsString]) -> Result<ExitCode> {
    let status = workspace
        .cargo(&["run", "--release", "--package", "subpage-bench", "--"])
        .args(arguments)
        .status()
        .context("cannot start cargo")?;
    // A signal leaves no code; 1 is what cargo itself answers then.
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

//! The benchmarks: those of the engine and those on KVM, which are two programs of one crate, those of
//! the hypervisor, which run in Bochs, those of whole Linux guests, which run in the lab, and those of
//! recording.

pub(crate) mod lab;
pub(crate) mod record;
pub(crate) mod vmx;

use std::{ffi::OsString, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::workspace::Workspace;

/// What measures the engine.
pub(crate) const ENGINE: &str = "subpage-bench";

/// What measures guests on KVM.
pub(crate) const KVM: &str = "subpage-bench-kvm";

/// Runs one of the programs on this terminal and hands on its exit status.
///
/// Standard output is the program's alone, so that `--json` can be piped.
pub(crate) fn run(
    workspace: &Workspace,
    program: &str,
    arguments: &[OsString],
) -> Result<ExitCode> {
    let status = workspace
        .cargo(&["run", "--profile=dist", "--package", "subpage-bench", "--bin", program, "--"])
        .args(arguments)
        .status()
        .context("cannot start cargo")?;
    // A signal leaves no code; 1 is what cargo itself answers then.
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

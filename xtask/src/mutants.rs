//! Mutants: small changes of the engine and of the trap protocol, each of which some test has to
//! find. `cargo mutants` makes them; `.cargo/mutants.toml` says how.

use std::{ffi::OsString, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::{packages, workspace::Workspace};

/// The program behind `cargo mutants`.
const PROGRAM: &str = "cargo-mutants";

/// Crates whose mutants are made, unless the arguments name packages or files.
const CRATES: [&str; 2] = ["subpage", "subpage-trap"];

/// Runs `cargo mutants` on this terminal and hands on its exit status: 0 if every mutant was found,
/// 2 if one survived, 3 if one was found by its time limit alone.
pub(crate) fn run(workspace: &Workspace, arguments: &[OsString]) -> Result<ExitCode> {
    if packages::found(PROGRAM).is_none() {
        eprintln!(
            "error: {PROGRAM} is not in PATH; `cargo install --locked cargo-mutants` builds it, in \
             some minutes"
        );
        return Ok(ExitCode::FAILURE);
    }
    let mut command = workspace.cargo(&["mutants"]);
    if !chooses(arguments) {
        command.args(CRATES.iter().flat_map(|name| ["--package", *name]));
    }
    // Whatever the caller's builds do: a mutant changes a line.
    command.env("CARGO_INCREMENTAL", "1");
    // That a random case fails is enough; nobody reads the smallest one.
    command.env("PROPTEST_MAX_SHRINK_ITERS", "0");
    let status = command.args(arguments).status().context("cannot start cargo")?;
    // A signal leaves no code.
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

/// Whether arguments say whose mutants to make.
fn chooses(arguments: &[OsString]) -> bool {
    arguments.iter().filter_map(|argument| argument.to_str()).any(|argument| {
        ["-p", "--package", "-f", "--file", "--workspace", "--in-diff"]
            .iter()
            .any(|option| argument == *option || argument.starts_with(&format!("{option}=")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_chosen_once() {
        let chosen = |text: &str| {
            let arguments: Vec<_> = text.split_whitespace().map(OsString::from).collect();
            chooses(&arguments)
        };
        assert!(chosen("--file crates/subpage/src/address.rs"));
        assert!(chosen("--shard 1/8 --package=subpage"));
        assert!(!chosen("") && !chosen("--shard 1/8 --list") && !chosen("--files-are-no-option"));
    }
}

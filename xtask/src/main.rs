//! Drives the project's tests and benchmarks: `cargo xtask test`, `cargo xtask bench`.
//!
//! It depends on no other crate of the workspace, so that it runs when they do not build.
#![forbid(unsafe_code)]

mod bench;
mod cargo_log;
mod count;
mod execute;
mod markdown;
mod prerequisites;
mod session;
mod suites;
mod workspace;

use std::{ffi::OsString, io, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

use crate::{
    prerequisites::Prerequisites,
    session::{Interrupt, Session},
    suites::Suite,
    workspace::Workspace,
};

/// Drives the project's tests and benchmarks.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run the tests; without a SUITE, install what they need and run all of them
    Test {
        /// Suites to run, each once, in the order of the list below
        #[arg(value_enum, value_name = "SUITE")]
        suites: Vec<Suite>,
        /// Run only tests whose name contains STR (unit, concurrency, property)
        #[arg(long, value_name = "STR", value_parser = test_name)]
        filter: Option<String>,
        /// End a suite that takes longer, and count it as hung
        #[arg(long, value_name = "MINUTES", default_value_t = 30,
              value_parser = clap::value_parser!(u64).range(1..=1440))]
        limit: u64,
    },
    /// Run the benchmarks; all arguments go to subpage-bench
    #[command(disable_help_flag = true)]
    Bench {
        /// For example --json, or the names of the benchmarks to run
        #[arg(value_name = "ARGUMENT", trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// libtest would take a name with a leading dash for an option, and an empty one selects all.
fn test_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.starts_with('-') {
        return Err("give a part of a test's name: not empty, no dash in front".into());
    }
    Ok(text.into())
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    let workspace = Workspace::locate()?;
    match task {
        Task::Bench { arguments } => bench::run(&workspace, &arguments),
        Task::Test { suites, filter, limit } => {
            let selected = suites::select(&suites, filter.as_deref())?;
            let interrupt = Interrupt::install().context("cannot listen for signals")?;
            let mut out = io::stdout().lock();
            let limit = Duration::from_secs(limit * 60);
            let mut session = Session::new(&mut out, interrupt, limit);
            // Only the plain command may change the machine: who names a suite gets that suite.
            let install = suites.is_empty() && filter.is_none();
            let prerequisites = Prerequisites::prepare(&mut session, install)?;
            let plan = suites::Plan { workspace, prerequisites, filter };
            suites::run(&mut session, &plan, &selected)
        }
    }
}

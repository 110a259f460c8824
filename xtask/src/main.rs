//! Drives the project's tests and benchmarks: `cargo xtask test`, `cargo xtask bench`; and Bochs, in
//! which the bare-metal images run: `cargo xtask bochs`; and hosts with an ordinary KVM: `cargo xtask
//! lab`.
//!
//! It depends on no other crate of the workspace, so that it runs when they do not build.
#![forbid(unsafe_code)]

mod bench;
mod bochs;
mod book;
mod cache;
mod cargo_log;
mod count;
mod dist;
mod execute;
mod image;
mod lab;
mod linux;
mod markdown;
mod mutants;
mod packages;
mod prerequisites;
mod session;
mod suites;
mod workspace;

use std::{ffi::OsString, io, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};

use crate::{
    prerequisites::Prerequisites,
    session::{Interrupt, Session},
    suites::{Suite, Word, WordParser},
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
        /// Suites to run, each once, in the order of the list below; behind bochs and linux,
        /// parts of the names of their tests; behind lab, hosts and parts of the names of tests
        #[arg(value_parser = WordParser, value_name = "SUITE")]
        words: Vec<Word>,
        /// Run only tests whose name contains STR (unit, concurrency, property, kvm,
        /// bochs)
        #[arg(long, value_name = "STR", value_parser = test_name)]
        filter: Option<String>,
        /// End a suite that takes longer, and count it as failed
        #[arg(long, value_name = "MINUTES", default_value_t = 30,
              value_parser = clap::value_parser!(u64).range(1..=1440))]
        limit: u64,
        /// Only print the names of the tests (bochs)
        #[arg(long)]
        list: bool,
    },
    /// Find Bochs or build it, and install what that needs; or one of the COMMANDs
    Bochs {
        #[command(subcommand)]
        task: Option<bochs::Task>,
    },
    /// Run a command, or a shell, on a stock Linux with an ordinary KVM, inside an emulator
    Lab {
        #[command(flatten)]
        arguments: lab::Arguments,
    },
    /// Start a distribution's kernel under the hypervisor, in Bochs
    Linux {
        #[command(flatten)]
        arguments: linux::Arguments,
    },
    /// Make an image with the hypervisor and a guest, from which a machine starts: for a disc or a USB
    /// stick, by BIOS or UEFI
    Image {
        #[command(flatten)]
        arguments: image::Arguments,
    },
    /// Build the documentation as a site, in target/book/html
    Docs {
        #[command(flatten)]
        arguments: book::Arguments,
    },
    /// Make the tool's packages in target/packages: a static program with manual pages, completions and
    /// licences, as an archive and as a Debian package
    Dist {
        #[command(flatten)]
        arguments: dist::Arguments,
    },
    /// Change the engine and the trap protocol in small ways, one at a time, and see that a test finds
    /// each; all arguments go to `cargo mutants`, for example --file PATH or --shard 0/8
    #[command(disable_help_flag = true)]
    Mutants {
        #[arg(value_name = "ARGUMENT", trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run the benchmarks; all arguments go to subpage-bench, except `kvm [--json]`: what guests on
    /// this machine's KVM cost, `vmx [--json]`: what the hypervisor costs, in Bochs, `lab [--json]`:
    /// what rules cost a Linux guest, in the lab, and `record [--json]`: what recording costs
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
        Task::Bench { arguments } => match arguments.as_slice() {
            [first, rest @ ..] if first == "vmx" => {
                let json = rest == ["--json"];
                ensure!(json || rest.is_empty(), "bench vmx takes --json and nothing else");
                bench::vmx::run(&workspace, json)
            }
            [first, rest @ ..] if first == "lab" => {
                let json = rest == ["--json"];
                ensure!(json || rest.is_empty(), "bench lab takes --json and nothing else");
                bench::lab::run(&workspace, json)
            }
            [first, rest @ ..] if first == "record" => {
                let json = rest == ["--json"];
                ensure!(json || rest.is_empty(), "bench record takes --json and nothing else");
                bench::record::run(&workspace, json)
            }
            [first, rest @ ..] if first == "kvm" => bench::run(&workspace, bench::KVM, rest),
            _ => bench::run(&workspace, bench::ENGINE, &arguments),
        },
        Task::Lab { arguments } => lab::run(&workspace, arguments),
        Task::Linux { arguments } => linux::run(&workspace, arguments),
        Task::Image { arguments } => image::run(&workspace, &arguments),
        Task::Docs { arguments } => book::run(&workspace, &arguments),
        Task::Dist { arguments } => dist::run(&workspace, &arguments),
        Task::Bochs { task } => bochs::run(&workspace, task),
        Task::Mutants { arguments } => mutants::run(&workspace, &arguments),
        Task::Test { words, filter, limit, list } => {
            let (suites, names) = suites::divide(words)?;
            let selected = suites::select(&suites, filter.as_deref())?;
            let interrupt = Interrupt::install().context("cannot listen for signals")?;
            let limit = Duration::from_secs(limit * 60);
            if list {
                ensure!(
                    selected == [Suite::Bochs] && names.is_empty() && filter.is_none(),
                    "--list is for the suite bochs alone"
                );
                return suites::bochs::list_tests(&workspace, interrupt, limit);
            }
            let mut out = io::stdout().lock();
            let mut session = Session::new(&mut out, interrupt, limit);
            // Only the plain command may change the machine: who names a suite gets that suite.
            let install = suites.is_empty() && filter.is_none();
            let emulator = selected.iter().any(|suite| suite.needs_emulator());
            let prerequisites = Prerequisites::prepare(&mut session, install, emulator)?;
            let named = !suites.is_empty();
            let plan = suites::Plan { workspace, prerequisites, filter, named, names };
            suites::run(&mut session, &plan, &selected)
        }
    }
}

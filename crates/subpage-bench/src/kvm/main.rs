//! `subpage-bench-kvm`: what guarding a guest on this machine's KVM costs.
//!
//! Each ratio is that of two guests which take turns in one process. Nothing is asserted about time:
//! a record has the target next to the ratio, for the reader to judge.
#![forbid(unsafe_code)]
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod bare;
mod change_while_tracking;
mod debugger;
mod guarded;
mod guest;
mod instructions;
mod pairs;
mod rows;
mod set_latency;
mod trap_overhead;
mod unprotected_pages;
mod watchpoints;

use std::fs::File;
use std::io;
use std::process::ExitCode;

use clap::Parser;
use clap::builder::PossibleValuesParser;
use instructions::Case;
use rows::Out;
use subpage_bench::report::{Form, Report};

/// A benchmark: its name, and what measures it and prints each record as it comes.
type Benchmark = (&'static str, fn(&mut Out) -> io::Result<()>);

const BENCHMARKS: [Benchmark; 5] = [
    (trap_overhead::NAME, trap_overhead::run),
    (unprotected_pages::NAME, unprotected_pages::run),
    (watchpoints::NAME, watchpoints::run),
    (set_latency::NAME, set_latency::run),
    (change_while_tracking::NAME, change_while_tracking::run),
];

/// Measures what guarding a guest on KVM costs.
///
/// A ratio is the time with the guard over that without: less is better.
#[derive(Parser)]
#[command(name = "subpage-bench-kvm", version)]
struct Arguments {
    /// One JSON object a line instead of a table
    #[arg(long)]
    json: bool,
    /// Print the functions whose instructions are counted, too (instructions)
    #[arg(long)]
    by_function: bool,
    /// Only run the guest of a case, for the process that counts its instructions
    #[arg(long, hide = true, value_name = "CASE", conflicts_with_all = ["json", "by_function", "names"],
          value_parser = |key: &str| Case::of_key(key).ok_or("no case"))]
    serve: Option<Case>,
    /// Benchmarks to run, all by default
    #[arg(value_name = "NAME", value_parser = PossibleValuesParser::new(
        BENCHMARKS.iter().map(|(name, _)| *name).chain([instructions::NAME])
    ))]
    names: Vec<String>,
}

impl Arguments {
    fn wants(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|n| n == name)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.serve {
        Some(case) => instructions::serve(case),
        None => measure(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("subpage-bench-kvm: cannot write the results: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments) -> io::Result<()> {
    let form = if arguments.json { Form::Json } else { Form::Table };
    let mut report: Out = Report::new(io::stdout().lock(), form);
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        return report.skip(&format!("/dev/kvm cannot be opened: {error}"));
    }
    for (_, run) in BENCHMARKS.iter().filter(|(name, _)| arguments.wants(name)) {
        run(&mut report)?;
    }
    if arguments.wants(instructions::NAME) {
        match instructions::run(arguments.by_function, &mut report) {
            Ok(printed) => printed?,
            Err(reason) => report.skip(&reason)?,
        }
    }
    Ok(())
}

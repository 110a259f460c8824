//! `subpage-bench`: what the engine costs, compared with the algorithm of the KVM series.
//!
//! Every benchmark first checks that both sides give the same answers, then times them in turns in
//! one process. It asserts nothing about time: the figures are for the reader to judge.
#![forbid(unsafe_code)]

mod benchmark;
mod dense;
mod guest;

use std::alloc::System;
use std::io;
use std::process::ExitCode;

use clap::Parser;
use clap::builder::PossibleValuesParser;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use subpage_bench::report::{Form, Report};

use benchmark::BENCHMARKS;

/// Counts the bytes in use, for the benchmark of memory.
#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Measures the engine against the algorithm of the KVM series.
///
/// A ratio above 1 means better than the baseline.
#[derive(Parser)]
#[command(name = "subpage-bench", version)]
struct Arguments {
    /// One JSON object a line instead of a table
    #[arg(long)]
    json: bool,
    /// Benchmarks to run, all by default
    #[arg(value_name = "NAME", value_parser = PossibleValuesParser::new(
        BENCHMARKS.iter().map(|benchmark| benchmark.name)
    ))]
    names: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let form = if arguments.json { Form::Json } else { Form::Table };
    let mut report = Report::new(io::stdout().lock(), form);
    let wanted =
        |name: &str| arguments.names.is_empty() || arguments.names.iter().any(|n| n == name);
    for benchmark in BENCHMARKS.iter().filter(|benchmark| wanted(benchmark.name)) {
        for record in (benchmark.run)() {
            match report.print(&record) {
                Ok(()) => {}
                // The reader has seen enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return ExitCode::SUCCESS;
                }
                Err(error) => {
                    eprintln!("subpage-bench: cannot write the results: {error}");
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    ExitCode::SUCCESS
}

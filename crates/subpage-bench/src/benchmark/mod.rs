//! The benchmarks, one module for each call or quantity.

mod check_write;
mod enable;
mod get_access;
mod memory;
mod replay;
mod set_access;

use subpage_bench::report::Record;

/// A benchmark and its name on the command line.
pub(crate) struct Benchmark {
    /// Also the name of its first record.
    pub(crate) name: &'static str,
    /// Checks both sides against each other, then measures.
    ///
    /// # Panics
    /// If they disagree: a figure would mean nothing.
    pub(crate) run: fn() -> Vec<Record>,
}

/// All benchmarks in the order in which they run.
pub(crate) const BENCHMARKS: &[Benchmark] = &[
    Benchmark { name: get_access::NAME, run: get_access::run },
    Benchmark { name: set_access::CALL_NAME, run: set_access::run_call },
    Benchmark { name: set_access::ONE_NAME, run: set_access::run_one },
    Benchmark { name: check_write::NAME, run: check_write::run },
    Benchmark { name: enable::NAME, run: enable::run },
    Benchmark { name: memory::NAME, run: memory::run },
    Benchmark { name: replay::NAME, run: replay::run },
];

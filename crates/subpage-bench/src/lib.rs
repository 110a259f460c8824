//! What the benchmarks share: timing several sides in turns, and printing what came of it.
#![forbid(unsafe_code)]

pub mod report;
pub mod rounds;

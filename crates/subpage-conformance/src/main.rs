//! Compares the processor model with a processor: random tables, random accesses.
#![forbid(unsafe_code)]
fn main() {}

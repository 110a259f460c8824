//! A virtual processor: its state, its thread, its exits.

pub mod cpuid;
mod exchange;
mod kick;
mod processor;
pub mod registers;
mod run;
pub mod trampoline;

pub use kick::Kick;
pub use processor::{Activity, Interrupted, Processor, ProcessorError};
pub(crate) use run::run;

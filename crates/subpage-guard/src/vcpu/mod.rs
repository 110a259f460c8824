//! A virtual processor: its state, and what is asked of it.

pub mod clock;
pub mod cpuid;
mod exchange;
pub mod features;
mod kick;
mod processor;
pub mod registers;
pub mod trampoline;

pub use features::{FeatureChoice, FeatureError};
pub use kick::Kick;
pub use processor::{Activity, Interrupted, Processor, ProcessorError, Stuck};

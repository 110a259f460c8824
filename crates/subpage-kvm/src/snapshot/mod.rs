//! A guest at rest: its memory, processors, devices, rules, vectors and tracking, in a file.

mod chips;
mod clock;
mod error;
mod features;
mod file;
mod processor_state;

pub use chips::Chips;
pub use error::SnapshotError;
pub use features::Features;
pub use file::{Header, Reader, Writer};
pub use processor_state::ProcessorState;

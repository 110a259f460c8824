//! A guest at rest: its memory, processors, devices, rules, vectors and tracking, in a file.

mod chips;
mod error;
mod processor_state;

pub use chips::Chips;
pub use error::SnapshotError;
pub use processor_state::ProcessorState;

use std::path::Path;

use crate::vm::Machine;

impl Machine {
    pub(crate) fn save(&self, path: &Path) -> Result<u64, SnapshotError> {
        let _ = path;
        Err(SnapshotError::Content("not yet".into()))
    }
}

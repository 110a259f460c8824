//! Extended page tables: entries, leaves, and the walk.

mod entry;
mod leaf;

pub use entry::{EptEntry, Meaning};
pub use leaf::{LeafRights, WriteGate, leaf_rights};

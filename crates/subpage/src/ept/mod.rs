//! Extended page tables: entries, the leaf function, the walk, and splitting and merging.

mod entry;
mod leaf;
mod table;

pub use entry::{EptEntry, Meaning, MemoryType};
pub use leaf::{LeafRights, WriteGate, leaf_rights};
pub use table::{Ept, Place};
pub(crate) use table::{merged, set_rights, split, update};

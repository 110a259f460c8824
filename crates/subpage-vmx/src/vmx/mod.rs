//! Virtual-machine extensions: what the processor can do, the control structure, the instructions.

pub mod bitmaps;
pub mod capability;
pub mod controls;
pub mod field;
pub mod instructions;
pub mod structure;
pub mod table_roots;

pub use bitmaps::Bitmaps;
pub use capability::{Capabilities, Missing};
pub use structure::CurrentVmcs;
pub use table_roots::TableRoots;

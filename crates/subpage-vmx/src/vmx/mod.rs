//! Virtual-machine extensions: what the processor can do, the control structure, the instructions.

pub mod capability;
pub mod controls;
pub mod field;
pub mod instructions;
pub mod structure;

pub use capability::{Capabilities, Missing};
pub use structure::CurrentVmcs;

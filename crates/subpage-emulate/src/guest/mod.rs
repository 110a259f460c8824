//! A guest as the hypervisor sees it: its memory and the state of a virtual processor.

mod memory;
mod state;

pub use memory::{NotMemory, PhysicalMemory};
pub use state::{GeneralRegisters, Register, Segment, Segments, State, Vendor};

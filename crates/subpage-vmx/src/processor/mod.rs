//! The processor below VMX: one thin function for each privileged instruction, and the tables it
//! needs.

pub mod console;
pub mod control;
pub mod cpuid;
pub mod interrupts;
pub mod local_apic;
pub mod memory_types;
pub mod msr;
pub mod port;
pub mod segments;

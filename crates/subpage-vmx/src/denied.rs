//! What becomes of an instruction whose write is denied.

/// What becomes of an instruction whose write is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// It completes without the write, as if the memory were a ROM.
    Skip,
    /// It gets #GP.
    Fault,
}

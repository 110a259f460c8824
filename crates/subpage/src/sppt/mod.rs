//! The sub-page permission table.

mod entry;

pub use entry::SpptEntry;

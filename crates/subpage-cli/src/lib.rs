//! The `subpage` command.
#![forbid(unsafe_code)]

pub mod check;
pub mod closing_table;
pub mod events;
pub mod heat;
pub mod plan;
pub mod policy;
pub mod report;
pub mod summary;
pub mod terminal;

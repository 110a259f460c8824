//! The sub-page permission table: the only record of which bytes may be written.

mod edit;
mod entry;
mod table;

pub(crate) use edit::{Region, SpptPlan, regions};
pub use entry::SpptEntry;
pub use table::Sppt;
pub(crate) use table::stored_vector;

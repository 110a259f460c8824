//! The sub-page permission table: the only record of which bytes may be written.

mod edit;
mod entry;
mod runs;
mod table;

pub(crate) use edit::{Region, SpptPlan, regions, uniform_vector};
pub use entry::SpptEntry;
pub(crate) use runs::{Known, behind};
pub use table::Sppt;
pub(crate) use table::stored_vector;

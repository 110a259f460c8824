//! Which task a processor runs.

mod places;

pub(crate) use places::Current;
pub use places::{RunningTask, TaskName, TaskPlaces};
#[cfg(feature = "std")]
pub use tasks::{Task, Tasks};

#[cfg(feature = "std")]
mod tasks;

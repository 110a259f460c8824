//! What protection would cost, from the writes of a trace.

mod counts;
mod mixed;
mod range_cost;
mod show;
mod suggest;

pub use counts::{MAX_PAGES, PageCounts, TooManyPages, WriteCounts};
pub use mixed::{MixedPage, mixed_pages};
pub use range_cost::{RangeCost, RangeCosts};
pub(crate) use show::line_schema;
pub use show::{
    Plan, write_json, write_names_json, write_names_text, write_processes_json,
    write_processes_text, write_text,
};
pub use suggest::write_policy;

//! Which sub-pages were written: access tracking at 128 bytes.
//!
//! A tracked sub-page is *armed*: its SPPT bit is 0 although it may be written. The first write
//! traps, is noted, and opens the sub-page; later writes run at full speed until the next harvest
//! arms it again. Armed is never mistaken for denied, because every armed sub-page is recorded here
//! and is one that may be written: permission = SPPT bit OR armed.

mod ranges;
mod records;

pub(crate) use ranges::{Arming, Tracking};
pub use ranges::{TrackId, WrittenPage};

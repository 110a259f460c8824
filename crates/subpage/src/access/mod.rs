//! Permission of a page at 128-byte granularity, as people write it and as the processor reads it.
//!
//! [`AccessMap`] is the 32-bit form of the interface (bit i = 1: sub-page i is writable);
//! [`SppVector`] is the 64-bit form of an SPPT leaf (bit 2i). Both hold the same 32 facts, and the
//! conversions between them are total in one direction and checked in the other.

mod map;
mod sub_page;
mod vector;

pub use map::AccessMap;
pub use sub_page::{SUB_PAGE_BYTES, SUB_PAGES, SubPage};
pub use vector::{ReservedBitsSet, SppVector, compress_into, expand_into};

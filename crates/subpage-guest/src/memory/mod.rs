//! The guest's own memory: frames to test with, and its page tables.

// Loads and stores of memory that no Rust object lies in, one instruction each.
#[allow(unsafe_code)]
mod bytes;
pub mod frames;
pub mod paging;

pub use bytes::{Bytes, Word};

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// Bytes of a sub-page.
pub const SUB_PAGE: u64 = 128;

/// Bytes of a large page.
pub const LARGE_PAGE: u64 = 2 << 20;

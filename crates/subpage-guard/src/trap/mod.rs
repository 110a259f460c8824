//! Which pages trap.

mod pages;

pub use pages::PageSet;

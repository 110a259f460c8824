//! Several processors: their start, and messages between the virtual ones.

pub mod mailbox;
pub mod nmis;
#[cfg(bare_metal)]
#[allow(unsafe_code)]
mod start;

#[cfg(bare_metal)]
pub use start::start_others;

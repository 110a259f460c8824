//! Several processors: their start, and messages between the virtual ones.

pub mod mailbox;
#[cfg(bare_metal)]
#[allow(unsafe_code)]
mod start;

#[cfg(bare_metal)]
pub use start::start_others;

//! Writes of the VMM itself: its devices.
//!
//! - [`fault`]: an instruction of the VMM stores to a page that is closed, which arrives as SIGSEGV;
//! - [`buffer`]: the kernel is to write a buffer that lies in such a page.

pub(crate) mod buffer;
mod context;
pub(crate) mod fault;
mod host_memory;
mod signals;

pub(crate) use signals::{
    block as block_signals, change as change_signal, unblock as unblock_signals,
};

//! A server for gdb: processors are its threads, and its watchpoints are the guard's traps.
//!
//! One debugger at a time holds the guest, which waits for it wherever it is told to stop. What gdb sets
//! comes into force when it lets the guest go on, all at once: it takes all its points out at each stop
//! and puts them in again before it goes on, of which mostly nothing is left to be done.

mod address;
mod connection;
mod greeting;
mod peer;
mod points;
mod registers;
mod server;
mod session;
mod target;

pub use address::{DebuggerAddress, DebuggerAddressError};
pub use server::DebuggerError;

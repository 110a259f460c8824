//! What this library tells people: lines on standard error, and only about machines that it guards.
//!
//! Unsafe because to end at once is a call of the C library.
#![allow(unsafe_code)]

use std::io::Write as _;

/// Prints one line.
pub(crate) fn say(line: &str) {
    // Who has closed standard error does not want to know.
    let _ = writeln!(std::io::stderr().lock(), "subpage: {line}");
}

/// Prints one line and ends the process: what was asked for cannot be kept.
///
/// Nothing is done in order at this end: the caller may hold the lock for which others wait, among them
/// clients of the socket and whatever the VMM does when it exits.
pub(crate) fn give_up(line: &str) -> ! {
    say(line);
    // SAFETY: ends the process, and runs nothing of it.
    unsafe { libc::_exit(1) }
}

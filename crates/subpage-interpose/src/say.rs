//! What this library tells people: lines on standard error, and only about machines that it guards.

use std::io::Write as _;

/// Prints one line.
pub(crate) fn say(line: &str) {
    // Who has closed standard error does not want to know.
    let _ = writeln!(std::io::stderr().lock(), "subpage: {line}");
}

/// Prints one line and ends the process: what was asked for cannot be kept.
pub(crate) fn give_up(line: &str) -> ! {
    say(line);
    std::process::exit(1)
}

//! The colours, by meaning. All are from the terminal's own sixteen, so that its theme decides.

use anstyle::{AnsiColor, Style};

/// A write that had no effect, and errors.
pub const DENIED: Style = AnsiColor::Red.on_default().bold();
/// A write that took effect although a rule covers it.
pub const LOGGED: Style = AnsiColor::Yellow.on_default().bold();
/// Something that works or was permitted.
pub const GOOD: Style = AnsiColor::Green.on_default().bold();
/// Names that people chose.
pub const NAME: Style = AnsiColor::Cyan.on_default();
/// Headings.
pub const HEADING: Style = Style::new().bold();
/// Units and side remarks.
pub const QUIET: Style = Style::new().dimmed();
/// Everything else.
pub const PLAIN: Style = Style::new();

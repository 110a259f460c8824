//! What goes to a terminal: colours, column widths, hostile text, closed pipes.

mod columns;
mod console_text;
mod glyphs;
mod numbers;
mod output;
mod printable;
mod queue;
mod screen;
pub mod style;

pub use columns::{Align, Columns};
pub use glyphs::Glyphs;
pub use numbers::{bytes, grouped, plural, ratio};
pub use output::{ColorWhen, Output, has_color, tell};
pub use printable::printable;
pub use screen::{Console, ConsolePlace, Lines, MARK, Screen};

//! What goes to a terminal: colours, column widths, hostile text, closed pipes.

mod columns;
mod numbers;
mod output;
mod printable;
mod screen;
pub mod style;

pub use columns::{Align, Columns};
pub use numbers::{bytes, grouped, plural, ratio};
pub use output::{ColorWhen, Output};
pub use printable::printable;
pub use screen::{Console, Lines, Screen};

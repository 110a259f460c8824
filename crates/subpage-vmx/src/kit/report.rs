//! Where the lines of a report go: the console, and the screen if there is one.

use alloc::format;
use core::fmt;

use spin::mutex::TicketMutex;

use super::MARK;
use super::screen::Screen;
use crate::processor::console;

static SCREEN: TicketMutex<Option<Screen>> = TicketMutex::new(None);

/// Shows lines on that screen as well from now on.
pub fn use_screen(screen: Screen) {
    *SCREEN.lock() = Some(screen);
}

/// Tells a line of the report.
pub fn line(text: fmt::Arguments<'_>) {
    console::print_line(format_args!("{MARK}{text}"));
    if let Some(screen) = &mut *SCREEN.lock() {
        screen.add(&format!("{text}"));
    }
}

/// The last line of a report that ends early.
pub fn stopped(reason: fmt::Arguments<'_>) -> ! {
    line(format_args!("stopped: {reason}"));
    console::end_machine()
}

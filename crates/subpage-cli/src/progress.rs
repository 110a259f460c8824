//! A bar for work that takes long, where a person watches.

use std::io;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::terminal::{ColorWhen, Output, grouped};

/// How far the work is, on standard error if that is a terminal, else nowhere.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Work of `bytes` bytes; 0 where that is not known.
    pub fn new(color: ColorWhen, what: &'static str, bytes: u64) -> Self {
        let bar = if Output::stderr(color).is_terminal() {
            ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr())
        } else {
            ProgressBar::hidden()
        };
        let template = if bytes == 0 {
            "{prefix} {spinner} {msg} writes, {elapsed}"
        } else {
            "{prefix} {bar:30} {percent:>3} %  {msg} writes, {eta} left"
        };
        let style = ProgressStyle::with_template(template).expect("the templates are right");
        bar.set_style(style);
        bar.set_prefix(what);
        if bytes == 0 {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self { bar }
    }

    /// The work is at byte `position` and has seen `writes`.
    pub fn at(&self, position: u64, writes: u64) {
        if !self.bar.is_hidden() {
            self.bar.set_position(position);
            self.bar.set_message(grouped(writes));
        }
    }

    /// Prints something else meanwhile, so that bar and text do not mix.
    pub fn aside(&self, print: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.bar.suspend(print)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

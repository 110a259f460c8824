//! A bar for work that takes long, where a person watches.

use std::cell::Cell;
use std::io;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::terminal::{ColorWhen, Output, grouped};

/// Work that is done sooner shows no bar.
const DELAY: Duration = Duration::from_millis(300);

/// How far the work is, on standard error if that is a terminal, else nowhere.
pub struct Progress {
    bar: ProgressBar,
    began: Instant,
    /// Whether the bar is still to be shown.
    waiting: Cell<bool>,
}

impl Progress {
    /// Work of `bytes` bytes; 0 where that is not known.
    pub fn new(color: ColorWhen, what: &'static str, bytes: u64) -> Self {
        let template = if bytes == 0 {
            "{prefix} {spinner} {msg}, {elapsed}"
        } else {
            "{prefix} {bar:30} {percent:>3} % of {total_bytes}  {msg}, {eta} left"
        };
        let style = ProgressStyle::with_template(template).expect("the templates are right");
        let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::hidden());
        let bar = bar.with_style(style).with_prefix(what);
        let waiting = Cell::new(Output::stderr(color).is_terminal());
        Self { bar, began: Instant::now(), waiting }
    }

    /// The work is at byte `position` and has seen `writes`.
    pub fn at(&self, position: u64, writes: u64) {
        if self.waiting.get() && self.began.elapsed() >= DELAY {
            self.waiting.set(false);
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        if !self.bar.is_hidden() {
            self.bar.set_position(position);
            self.bar.set_message(self.rate(writes));
        }
    }

    /// The writes so far, and how many a second.
    fn rate(&self, writes: u64) -> String {
        let milliseconds = self.began.elapsed().as_millis().max(1);
        let rate = u64::try_from(u128::from(writes) * 1000 / milliseconds).unwrap_or(u64::MAX);
        format!("{} writes, {} a second", grouped(writes), grouped(rate))
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

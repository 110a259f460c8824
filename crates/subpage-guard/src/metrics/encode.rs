//! The counts as text for Prometheus: format 0.0.4,
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::fmt::{self, Display, Write as _};
use std::sync::atomic::Ordering;

use super::{ExitKind, Metrics};

/// The format's media type.
pub(super) const MEDIA_TYPE: &str = "text/plain; version=0.0.4";

impl Metrics {
    /// Everything, in Prometheus' text format 0.0.4.
    pub fn encode(&self) -> String {
        let mut text = Text::default();
        text.family("subpage_exits_total", "Exits of virtual processors to the VMM.", "counter");
        for kind in ExitKind::ALL {
            text.labelled("subpage_exits_total", ("kind", kind.label()), self.exits(kind));
        }
        text.counter(
            "subpage_checks_total",
            "Decisions about writes.",
            self.checks.load(Ordering::Relaxed),
        );
        text.counter(
            "subpage_writes_trapped_total",
            "Writes to pages with a restricted sub-page.",
            self.trapped.count(),
        );
        self.trapped.write(
            &mut text,
            "subpage_trap_seconds",
            "Time that a trapped write took to handle.",
        );
        self.denials.write(&mut text, "subpage_denials_total", "Writes that were denied.");
        self.logged.write(&mut text, "subpage_logged_total", "Writes that took effect, reported.");
        text.counter(
            "subpage_instructions_refused_total",
            "Instructions of programs that got #UD because nobody here carries out their store.",
            self.refused.load(Ordering::Relaxed),
        );
        text.counter(
            "subpage_events_dropped_total",
            "Events that subscribers lost because they did not keep up.",
            self.events.dropped_total(),
        );
        text.counter(
            "subpage_console_dropped_bytes_total",
            "Bytes of the guest's console that were lost because they were not read in time.",
            self.console_dropped.load(Ordering::Relaxed),
        );
        text.family("subpage_subscribers", "Subscribers of events now.", "gauge");
        text.sample("subpage_subscribers", self.events.subscribers());
        text.0
    }
}

/// Text in the format. Names, helps and the names of labels are ours, and need no escape.
#[derive(Debug, Default)]
pub(super) struct Text(String);

impl Text {
    /// The lines before the samples of one name.
    pub(super) fn family(&mut self, name: &str, help: &str, kind: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    pub(super) fn sample(&mut self, name: &str, value: impl Display) {
        self.line(format_args!("{name} {value}"));
    }

    /// A sample with one label, whose value may be any text.
    pub(super) fn labelled(&mut self, name: &str, label: (&str, &str), sample: impl Display) {
        let (label, value) = (label.0, Escaped(label.1));
        self.line(format_args!("{name}{{{label}=\"{value}\"}} {sample}"));
    }

    fn counter(&mut self, name: &str, help: &str, count: u64) {
        self.family(name, help, "counter");
        self.sample(name, count);
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("writing to a string cannot fail");
    }

    #[cfg(test)]
    pub(super) fn lines(&self) -> Vec<String> {
        self.0.lines().map(str::to_owned).collect()
    }
}

/// The value of a label: it ends neither its quotes nor its line.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '\\' => formatter.write_str("\\\\")?,
                '"' => formatter.write_str("\\\"")?,
                '\n' => formatter.write_str("\\n")?,
                other => formatter.write_char(other)?,
            }
        }
        Ok(())
    }
}

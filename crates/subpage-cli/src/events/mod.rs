//! Events of a run: the same for the terminal and, as JSON Lines, for programs.
//!
//! `docs/events.md` describes the JSON form; a change that breaks a reader raises [`VERSION`].

mod header;
mod json;
mod kinds;
mod text;
mod warning;

pub use header::RunHeader;
pub(crate) use json::line_schema;
pub use json::write_json;
pub use kinds::{
    DebuggerEvent, DroppedEvent, ErrorEvent, FailedEvent, HeldEvent, LiveStart, NoticeEvent,
    RuleEvent, RunEvent, StartEvent,
};
pub use text::{Detail, SHOWN_PER_RULE, TextEvents, write_armed, write_line};
pub use warning::{ShownWarning, WarningEvent, WarningKind, shown_warnings};

use std::io::{self, Write};

use crate::policy::{Mistakes, PlacedMistake};
use crate::summary::Summary;
use subpage_trap::{Armed, Record};

pub use subpage_trap::VERSION;

/// Where the events of a run go.
pub enum EventWriter<W: Write> {
    /// One JSON object a line, every event.
    Json(W),
    /// Lines for people, rate-limited.
    Text(TextEvents<W>),
}

impl<W: Write> EventWriter<W> {
    /// A writer in the form that the user asked for.
    pub fn new(out: W, json: bool, detail: Detail) -> Self {
        if json { Self::Json(out) } else { Self::Text(TextEvents::new(out, detail)) }
    }

    /// The run begins.
    pub fn start(&mut self, start: &StartEvent) -> io::Result<()> {
        match self {
            Self::Json(out) => write_json(out, &RunEvent::Start(start)),
            Self::Text(text) => text.start(start),
        }
    }

    /// A rule, or an access map, met a write.
    pub fn write(&mut self, write: &Record) -> io::Result<()> {
        match self {
            // The same form as over the control socket.
            Self::Json(out) => {
                serde_json::to_writer(&mut *out, &write.line())?;
                out.write_all(b"\n")
            }
            Self::Text(text) => text.write(write),
        }
    }

    /// Something is missing here. For people the closing table says so.
    pub fn dropped(&mut self, dropped: &DroppedEvent) -> io::Result<()> {
        match self {
            Self::Json(out) if *dropped != DroppedEvent::default() => {
                write_json(out, &RunEvent::Dropped(dropped))
            }
            _ => Ok(()),
        }
    }

    /// Whether every event makes a line; if not, most of them are only counted.
    pub fn shows_all(&self) -> bool {
        match self {
            Self::Json(_) => true,
            Self::Text(text) => text.shows_all(),
        }
    }

    /// The guest cannot continue, and is kept as it is.
    pub fn failed(&mut self, failed: &FailedEvent) -> io::Result<()> {
        match self {
            Self::Json(out) => write_json(out, &RunEvent::Failed(failed))?,
            Self::Text(text) => text.failed(failed)?,
        }
        self.flush()
    }

    /// A rule has stopped the guest, which is held.
    pub fn held(&mut self, held: &HeldEvent) -> io::Result<()> {
        match self {
            Self::Json(out) => write_json(out, &RunEvent::Held(held))?,
            Self::Text(text) => text.held(held)?,
        }
        self.flush()
    }

    /// A debugger has come or gone.
    pub fn debugger(&mut self, debugger: &DebuggerEvent) -> io::Result<()> {
        match self {
            Self::Json(out) => write_json(out, &RunEvent::Debugger(debugger))?,
            Self::Text(text) => text.debugger(debugger)?,
        }
        self.flush()
    }

    /// Things that may make the run mean less than it seems to; for people the first of each kind.
    pub fn warnings(&mut self, warnings: &[WarningEvent]) -> io::Result<()> {
        match self {
            Self::Json(out) => warnings
                .iter()
                .try_for_each(|warning| write_json(out, &RunEvent::Warning(warning)))?,
            Self::Text(text) => text.warnings(warnings)?,
        }
        self.flush()
    }

    /// Rules came into force.
    pub fn armed(&mut self, armed: &Armed) -> io::Result<()> {
        match self {
            Self::Json(out) => write_json(out, &RunEvent::Armed(armed))?,
            Self::Text(text) => text.armed(armed)?,
        }
        self.flush()
    }

    /// Something about the rules is slow.
    pub fn notice(&mut self, notice: &NoticeEvent) -> io::Result<()> {
        match self {
            Self::Json(out) => write_json(out, &RunEvent::Notice(notice))?,
            Self::Text(text) => text.notice(notice)?,
        }
        self.flush()
    }

    /// Whether this write will make a line; if not, [`EventWriter::write`] only counts it.
    pub fn shows(&self, write: &Record) -> bool {
        match self {
            Self::Json(_) => true,
            Self::Text(text) => text.shows(write),
        }
    }

    /// The run is over.
    pub fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        match self {
            Self::Json(out) => write_json(out, &RunEvent::Summary(summary))?,
            Self::Text(text) => text.summary(summary)?,
        }
        self.flush()
    }

    /// The run cannot continue or did not begin. Text errors belong on standard error, not here.
    pub fn error(&mut self, error: &ErrorEvent) -> io::Result<()> {
        if let Self::Json(out) = self {
            write_json(out, &RunEvent::Error(error))?;
        }
        self.flush()
    }

    /// Every mistake of a policy, one event each. Text mistakes belong on standard error.
    pub fn mistakes(&mut self, mistakes: &Mistakes) -> io::Result<()> {
        for PlacedMistake { source, line, column, mistake } in mistakes.iter() {
            self.error(&ErrorEvent {
                message: mistake.message.clone(),
                file: Some(source.path().to_string_lossy().into_owned()),
                line: Some(line as u64),
                column: Some(column as u64),
                help: Some(mistake.help.clone()),
            })?;
        }
        Ok(())
    }

    /// Passes on what is buffered.
    pub fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Json(out) => out.flush(),
            Self::Text(text) => text.flush(),
        }
    }
}

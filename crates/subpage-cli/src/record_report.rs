//! What `subpage record` says at its end, for people and for programs.

use std::error::Error;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use subpage_trace::{Recorded, Tool};

use crate::events::VERSION;
use crate::terminal::style::{DENIED, LOGGED, QUIET};
use crate::terminal::{bytes, grouped, plural, printable};

/// Says something that is no failure.
pub fn note(err: &mut dyn Write, text: &str) -> io::Result<()> {
    writeln!(err, "{LOGGED}note:{LOGGED:#} {}", printable(text))?;
    err.flush()
}

/// An error with what caused it, in one line.
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Says what was recorded, and what was not. Of a machine, also what no recording of one holds.
pub fn write_text(
    path: &Path,
    recorded: &Recorded,
    is_machine: bool,
    err: &mut dyn Write,
) -> io::Result<()> {
    let names = recorded.names as u64;
    let by = match recorded.tool {
        Some(Tool::Own { .. }) => ", by our own tool",
        Some(Tool::Lackey { .. }) => ", by lackey",
        _ => "",
    };
    writeln!(
        err,
        "{}  {} {} in {}  {QUIET}{} {}{by}{QUIET:#}",
        printable(&path.to_string_lossy()),
        grouped(recorded.writes),
        plural(recorded.writes, "write"),
        bytes(recorded.file_bytes),
        grouped(names),
        plural(names, "name"),
    )?;
    write_end(recorded, err)?;
    if recorded.processes > 1 {
        let count = recorded.processes as u64;
        let (count, processes) = (grouped(count), plural(count, "process"));
        note(
            err,
            &format!(
                "the trace holds {count} {processes}, each by itself: `subpage plan {} --processes` \
                 lists them",
                path.display()
            ),
        )?;
    }
    if recorded.unfinished > 0 {
        let count = recorded.unfinished as u64;
        let (count, processes) = (grouped(count), plural(count, "process"));
        note(
            err,
            &format!(
                "{count} {processes} besides the program were killed, or still ran at its end: their \
                 last writes, some thousands at most, are not in the trace"
            ),
        )?;
    }
    if recorded.processes_left_out > 0 {
        let count = recorded.processes_left_out as u64;
        let (count, processes) = (grouped(count), plural(count, "process"));
        note(
            err,
            &format!(
                "the writes of {count} {processes} that the program started are not in the trace: \
                 `--children` records them"
            ),
        )?;
    }
    if is_machine {
        note(
            err,
            "stores that are no instruction's are not in it: frames of exceptions and interrupts, \
             accessed and dirty bits, writes of devices",
        )?;
    }
    if let Some(reason) = &recorded.nameless {
        note(err, &format!("the trace has no names of the program's data: {reason}"))?;
    }
    if recorded.names_left_out > 0 {
        let count = grouped(recorded.names_left_out as u64);
        note(err, &format!("{count} names are left out: too long, or too many"))?;
    }
    if recorded.text.malformed > 0 {
        let count = grouped(recorded.text.malformed);
        let what = match recorded.tool {
            Some(Tool::Lackey { .. }) => "lines of lackey's text look like accesses and are not",
            Some(_) => "records of the recorder's tool break its rules",
            None if is_machine => "records of QEMU's plugin break its rules",
            None => "lines of the text look like accesses and are not",
        };
        note(err, &format!("{count} {what}"))?;
    }
    err.flush()
}

/// Says how the recording ended, if not as it should.
fn write_end(recorded: &Recorded, err: &mut dyn Write) -> io::Result<()> {
    if recorded.stops_early() {
        writeln!(
            err,
            "{DENIED}error:{DENIED:#} Valgrind could not go on, for the reason above: the trace ends \
             there, before the end of the program"
        )?;
    } else if recorded.is_full {
        writeln!(
            err,
            "{DENIED}error:{DENIED:#} there is no room for more on the disk or in the file: the trace \
             ends early, and what was recorded was ended"
        )?;
    } else if recorded.is_limited {
        note(err, "the machine was ended at the limit; the trace goes up to there")?;
    } else if recorded.missing > 0 {
        let count = grouped(recorded.missing);
        let stores = plural(recorded.missing, "store");
        let why = match recorded.tool {
            None => "QEMU told no physical address of them",
            Some(_) => "what the recorder's tool sent did not come",
        };
        writeln!(
            err,
            "{DENIED}error:{DENIED:#} the recording is not complete: {count} {stores} are not in the \
             trace, since {why}"
        )?;
    } else if recorded.is_whole == Some(false) {
        let status = recorded.status.map(|status| format!(" with {status}")).unwrap_or_default();
        writeln!(
            err,
            "{DENIED}error:{DENIED:#} the recording is not complete: the program ended{status}, and its \
             last writes before that, some thousands at most, are not in the trace"
        )?;
    } else if let Some(status) = recorded.status.filter(|status| !status.success()) {
        note(err, &format!("the program ended with {status}; the trace goes up to its end"))?;
    }
    Ok(())
}

/// Which tool recorded.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum ToolName {
    /// Our own Valgrind tool.
    Own,
    /// Valgrind's lackey.
    Lackey,
}

/// What `record --json` prints at the end.
#[derive(Serialize, JsonSchema)]
#[allow(clippy::struct_excessive_bools, reason = "each is a field of the line")]
struct Line {
    v: u32,
    r#type: LineType,
    /// The file.
    trace: String,
    /// Writes in it.
    writes: u64,
    /// Its length.
    bytes: u64,
    /// Names in it.
    names: u64,
    /// Processes in it.
    processes: u64,
    /// Processes that the program started, and that are not in it.
    processes_left_out: u64,
    /// The tool of Valgrind that recorded; none for a text of lackey.
    tool: Option<ToolName>,
    /// The folder that our own tool was run from.
    tool_folder: Option<String>,
    /// Why it was lackey, where our own tool was wanted.
    tool_reason: Option<String>,
    /// Whether what the kernel wrote for the program is in it.
    kernel_writes: bool,
    /// Whether all writes up to the end of the program are in it; null where that is not told.
    whole: Option<bool>,
    /// Stores that the tool told of and that are not in it: packets that did not come; of a machine, those of
    /// which QEMU tells no physical address.
    missing: u64,
    /// Processes besides the program that were killed, or still ran at its end; their last writes are missing.
    unfinished: u64,
    /// Whether it ends early because there was no room for more.
    full: bool,
    /// Whether the recording of a machine ended at its limit.
    limited: bool,
    /// Whether Valgrind could not go on.
    stops_early: bool,
    /// The status that the program ended with.
    exit_code: Option<i32>,
    /// The signal that the program was ended by.
    exit_signal: Option<i32>,
    /// Lines or records that were none.
    malformed: u64,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum LineType {
    Recorded,
}

/// The schema of the line of `record --json`.
pub(crate) fn line_schema(generator: &mut SchemaGenerator) -> Schema {
    Line::json_schema(generator)
}

/// Writes one line of JSON, as `docs/events.md` describes it.
pub fn write_json(
    path: &Path,
    recorded: &Recorded,
    kernel_writes: bool,
    err: &mut dyn Write,
) -> io::Result<()> {
    let (tool, tool_folder, tool_reason) = match &recorded.tool {
        Some(Tool::Own { folder }) => {
            (Some(ToolName::Own), Some(folder.to_string_lossy().into_owned()), None)
        }
        Some(Tool::Lackey { reason }) => {
            (Some(ToolName::Lackey), None, reason.as_deref().map(|reason| causes(reason)))
        }
        _ => (None, None, None),
    };
    let line = Line {
        v: VERSION,
        r#type: LineType::Recorded,
        trace: path.to_string_lossy().into_owned(),
        writes: recorded.writes,
        bytes: recorded.file_bytes,
        names: recorded.names as u64,
        processes: recorded.processes as u64,
        processes_left_out: recorded.processes_left_out as u64,
        tool,
        tool_folder,
        tool_reason,
        kernel_writes,
        whole: recorded.is_whole,
        missing: recorded.missing,
        unfinished: recorded.unfinished as u64,
        full: recorded.is_full,
        limited: recorded.is_limited,
        stops_early: recorded.stops_early(),
        exit_code: recorded.status.and_then(|status| status.code()),
        exit_signal: recorded.status.and_then(|status| status.signal()),
        malformed: recorded.text.malformed,
    };
    serde_json::to_writer(&mut *err, &line)?;
    err.write_all(b"\n")?;
    err.flush()
}

//! `subpage plan`.

use subpage::address::{ByteRange, Gpa};

use crate::command_line::PlanArguments;
use crate::failure::{Failure, Status};
use crate::plan::{
    MAX_PAGES, Plan, RangeCosts, WriteCounts, mixed_pages, write_json, write_names_json,
    write_names_text, write_processes_json, write_processes_text, write_text,
};
use crate::policy::{LookupError, Names, parse_address_range};
use crate::progress::Progress;
use crate::terminal::{ColorWhen, Output};
use crate::trace_file::{TraceFile, bytes_of};

/// Runs the command.
pub fn run(
    arguments: &PlanArguments,
    color: ColorWhen,
    out: &mut Output,
) -> Result<Status, Failure> {
    let mut trace = TraceFile::open(&arguments.trace, arguments.process)?;
    if arguments.processes {
        let (processes, main) = (trace.processes(), trace.process());
        if arguments.json {
            write_processes_json(out, processes, main)?;
        } else {
            write_processes_text(out, processes, main)?;
        }
        return Ok(Status::Clean);
    }
    let names = trace.names();
    if arguments.names {
        if arguments.json {
            write_names_json(out, &names)?;
        } else {
            write_names_text(out, &names)?;
        }
        return Ok(Status::Clean);
    }
    let mut costs = RangeCosts::default();
    for text in &arguments.range {
        costs.add(text, range_of(text, &names)?);
    }
    let mut counts = WriteCounts::new(MAX_PAGES);
    let (mut writes, mut bytes) = (0, 0);
    let progress = Progress::new(color, "counting", trace.bytes);
    let mut block = Vec::new();
    while trace.next_block(&mut block)? {
        for write in &block {
            let range = bytes_of(write);
            // Without pages to show, nothing has to be held for each page.
            if arguments.top > 0 {
                counts.count(range).map_err(|error| Failure::bad(&error))?;
            }
            costs.count(range);
            bytes += range.bytes();
        }
        writes += block.len() as u64;
        progress.at(trace.reader.bytes_read(), writes);
    }
    drop(progress);
    let (pages, pages_mixed) = mixed_pages(counts.pages(), &names, arguments.top);
    let plan = Plan {
        guest: trace.name,
        writes,
        bytes,
        pages_written: (arguments.top > 0).then_some(counts.pages().len() as u64),
        pages_mixed: pages_mixed as u64,
        pages,
        ranges: costs.into_costs(),
    };
    if arguments.json {
        write_json(out, &plan)?;
    } else {
        write_text(out, &plan)?;
    }
    Ok(Status::Clean)
}

/// A range as addresses, or by a name of the trace.
fn range_of(text: &str, names: &Names) -> Result<ByteRange, Failure> {
    let wrong = |reason: String| Failure::Input(format!("`--range {text}`: {reason}"));
    let (start, length) = match parse_address_range(text) {
        Ok(range) => (range.start, range.end.saturating_sub(range.start)),
        // A name may contain `..`, so addresses come first and names second.
        Err(reason) => match names.find(text) {
            Ok(named) => (named.start, named.length),
            Err(LookupError::Missing { near }) if near.is_empty() && text.contains("..") => {
                return Err(wrong(format!("{reason}; write for example 0x1000..0x1080")));
            }
            Err(LookupError::Missing { near }) => {
                let list: Vec<_> = near.iter().map(|name| format!("`{name}`")).collect();
                let near = match &list[..] {
                    [] => "`subpage plan TRACE --names` lists the names".to_owned(),
                    [one] => format!("the nearest is {one}"),
                    many => format!("the nearest are {}", many.join(", ")),
                };
                return Err(wrong(format!("the trace has no such name; {near}")));
            }
            Err(LookupError::Unplaced { reason }) => return Err(wrong(reason.to_owned())),
            Err(LookupError::Ambiguous { candidates, count }) => {
                let list: Vec<_> =
                    candidates.iter().map(|named| format!("{:#x}", named.start)).collect();
                return Err(wrong(format!(
                    "{count} things have this name, at {}; give addresses instead",
                    list.join(", ")
                )));
            }
        },
    };
    Gpa::try_new(start)
        .and_then(|first| ByteRange::new(first, length))
        .map_err(|error| wrong(error.to_string()))
}

//! `subpage plan`.

use subpage::address::ByteRange;

use crate::command_line::PlanArguments;
use crate::failure::{Failure, Status};
use crate::plan::{
    MAX_PAGES, Plan, RangeCosts, WriteCounts, mixed_pages, write_json, write_names_json,
    write_names_text, write_policy, write_processes_json, write_processes_text, write_text,
};
use crate::policy::{Names, place_of};
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
    let names = trace.names(arguments.symbols.as_deref())?;
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
        costs.add(text, range_of(text, &names, &trace.names_command())?);
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
    if arguments.suggest {
        write_policy(out, &trace.name, &pages, counts.pages(), &names)?;
        return Ok(Status::Clean);
    }
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

/// A place of the trace.
fn range_of(text: &str, names: &Names, list: &str) -> Result<ByteRange, Failure> {
    let otherwise = format!("`{list}` lists the names");
    place_of(text, names, &otherwise)
        .map_err(|wrong| Failure::Input(format!("`--range {text}`: {wrong}")))
}

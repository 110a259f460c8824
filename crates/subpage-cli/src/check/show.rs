//! The findings for people and for programs.

use std::io::{self, Write};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;

use super::{Findings, Support};
use crate::events::VERSION;
use crate::terminal::style::{DENIED, GOOD, HEADING, LOGGED, PLAIN};
use crate::terminal::{Align, Columns, printable};

fn cell(verdict: Support) -> (String, anstyle::Style) {
    match verdict {
        Support::Yes => ("yes".to_owned(), GOOD),
        Support::No => ("no".to_owned(), DENIED),
        Support::Unknown => ("unknown".to_owned(), LOGGED),
    }
}

/// Writes two tables, with ANSI colours.
pub fn write_text(out: &mut dyn Write, findings: &Findings) -> io::Result<()> {
    writeln!(out, "{HEADING}machine{HEADING:#}  {}", printable(&findings.processor))?;
    let mut table = Columns::new(&[Align::Left, Align::Left, Align::Left]);
    for finding in &findings.machine {
        table.row([
            (finding.name.to_owned(), PLAIN),
            cell(finding.verdict),
            (printable(&finding.reason).into_owned(), PLAIN),
        ]);
    }
    table.write(out, 2)?;
    writeln!(out, "\n{HEADING}commands{HEADING:#}")?;
    let mut table = Columns::new(&[Align::Left, Align::Left, Align::Left]);
    for finding in &findings.commands {
        table.row([
            (finding.command.to_owned(), PLAIN),
            cell(finding.verdict),
            (printable(&finding.reason).into_owned(), PLAIN),
        ]);
    }
    table.write(out, 2)
}

#[derive(Serialize, JsonSchema)]
struct Line<'a> {
    v: u32,
    r#type: &'static str,
    #[serde(flatten)]
    findings: &'a Findings,
}

/// The schema of the line of `check --json`.
pub(crate) fn line_schema(generator: &mut SchemaGenerator) -> Schema {
    Line::json_schema(generator)
}

/// Writes one line of JSON, as `docs/events.md` describes it.
pub fn write_json(out: &mut impl Write, findings: &Findings) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &Line { v: VERSION, r#type: "check", findings })?;
    out.write_all(b"\n")
}

//! A report beside that of Bochs, deviation by deviation.

use std::collections::HashSet;
use std::io::{self, Write};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;

use super::report::Report;
use crate::events::VERSION;

/// The deviations of two whole reports of one kit.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Comparison {
    /// How many both have.
    pub(super) common: usize,
    /// Those that only this machine has.
    pub(super) here: Vec<String>,
    /// Those that only Bochs has.
    pub(super) there: Vec<String>,
}

impl Comparison {
    /// Compares, or says why that would mean nothing.
    pub(super) fn of(report: &Report, bochs: &Report) -> Result<Self, &'static str> {
        if !report.is_whole() {
            return Err("this report is not whole");
        }
        if !report.is_of_the_kit_of(bochs) {
            return Err("it is of another kit");
        }
        let only = |these: &Report, those: &Report| -> Vec<String> {
            let others: HashSet<_> = those.deviations.iter().collect();
            these.deviations.iter().filter(|line| !others.contains(line)).cloned().collect()
        };
        let (here, there) = (only(report, bochs), only(bochs, report));
        Ok(Self { common: report.deviations.len() - here.len(), here, there })
    }
}

/// What `kit show --json` prints.
#[derive(Serialize, JsonSchema)]
struct Line<'a> {
    v: u32,
    r#type: LineType,
    /// Whether the report goes up to its end.
    whole: bool,
    /// What the report says besides deviations, in its order.
    fields: Vec<Field<'a>>,
    /// Deviations that it tells.
    deviations: usize,
    /// Beside those of Bochs; null if that would mean nothing.
    compared: Option<Comparison>,
    /// Why they are not compared, else null.
    not_compared: Option<&'static str>,
}

#[derive(Serialize, JsonSchema)]
struct Field<'a> {
    name: &'a str,
    value: &'a str,
    /// What Bochs says; null if nothing.
    bochs: Option<&'a str>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum LineType {
    Kit,
}

/// The schema of the line of `kit show --json`.
pub(crate) fn line_schema(generator: &mut SchemaGenerator) -> Schema {
    Line::json_schema(generator)
}

/// Writes one line of JSON, as `docs/events.md` describes it.
pub(super) fn write_json(report: &Report, bochs: &Report, out: &mut impl Write) -> io::Result<()> {
    let (compared, not_compared) = match Comparison::of(report, bochs) {
        Ok(comparison) => (Some(comparison), None),
        Err(reason) => (None, Some(reason)),
    };
    let fields = report.fields();
    let line = Line {
        v: VERSION,
        r#type: LineType::Kit,
        whole: report.is_whole(),
        fields: fields
            .map(|(name, value)| Field { name, value, bochs: bochs.field(name) })
            .collect(),
        deviations: report.deviations.len(),
        compared,
        not_compared,
    };
    serde_json::to_writer(&mut *out, &line)?;
    out.write_all(b"\n")
}

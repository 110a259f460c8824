//! Events as JSON Lines.

use std::io::{self, Write};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;

use super::{RunEvent, VERSION};

#[derive(Serialize, JsonSchema)]
struct Line<'a> {
    v: u32,
    #[serde(flatten)]
    event: &'a RunEvent<'a>,
}

/// The schema of what [`write_json`] writes.
pub(crate) fn line_schema(generator: &mut SchemaGenerator) -> Schema {
    Line::json_schema(generator)
}

/// Writes one event as one line.
pub fn write_json(out: &mut impl Write, event: &RunEvent<'_>) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &Line { v: VERSION, event })?;
    out.write_all(b"\n")
}

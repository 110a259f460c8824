//! Events as JSON Lines.

use std::io::{self, Write};

use serde::Serialize;

use super::{RunEvent, VERSION};

#[derive(Serialize)]
struct Line<'a> {
    v: u32,
    #[serde(flatten)]
    event: &'a RunEvent<'a>,
}

/// Writes one event as one line.
pub fn write_json(out: &mut impl Write, event: &RunEvent<'_>) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &Line { v: VERSION, event })?;
    out.write_all(b"\n")
}

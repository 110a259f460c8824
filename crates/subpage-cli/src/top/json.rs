//! What there is to see, for programs.

use std::io::{self, Write};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use subpage_trap::{Address, VERSION};

use super::model::{Count, Model, PageRow, RuleRow};
use crate::heat::CELLS;

/// A line: `docs/events.md`.
#[derive(Serialize, JsonSchema)]
struct Line<'a> {
    v: u32,
    r#type: LineType,
    /// Path of the control socket.
    socket: &'a str,
    /// `running`, `held`, `failed` or `ended`.
    state: &'a str,
    /// Why it is held, or has failed.
    reason: Option<&'a str>,
    /// Since this program began.
    seconds: f64,
    /// The time over which rates are taken.
    interval_seconds: Option<f64>,
    cpus: u32,
    memory: u64,
    trapped_pages: u64,
    writes: u64,
    writes_per_second: Option<f64>,
    /// Events since this program began.
    events: u64,
    events_per_second: Option<f64>,
    /// Of these, those that were not read in time.
    events_dropped: u64,
    /// Ascending by address.
    rules: Vec<Rule<'a>>,
    /// The most written a second first; none if the guest's process has no counts by page.
    pages: Option<Vec<Page>>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum LineType {
    Top,
}

#[derive(Serialize, JsonSchema)]
#[allow(clippy::struct_field_names, reason = "the names of the other lines")]
struct Rule<'a> {
    rule: u64,
    name: &'a str,
    action: &'a str,
    start: Address,
    length: u64,
    waits_for: Option<&'a str>,
    exits: u64,
    exits_per_second: Option<f64>,
    logged: u64,
    logged_per_second: Option<f64>,
    denied: u64,
    denied_per_second: Option<f64>,
}

#[derive(Serialize, JsonSchema)]
#[allow(clippy::struct_field_names, reason = "the names of the other lines")]
struct Page {
    page: Address,
    writes: u64,
    writes_per_second: Option<f64>,
    /// Bit i: sub-page i may not be written, or asks a rule first.
    guarded: u32,
    /// Writes since the start, by sub-page.
    sub_pages: [u64; CELLS],
    /// Of these, those that had no effect.
    denied: [u64; CELLS],
}

/// To the thousandth.
fn rounded(rate: Option<f64>) -> Option<f64> {
    rate.map(|rate| (rate * 1e3).round() / 1e3)
}

/// Writes a line.
pub(super) fn write(out: &mut impl Write, model: &Model) -> io::Result<()> {
    let Some(state) = &model.state else { return Ok(()) };
    let mut rules: Vec<_> = model.rules.iter().collect();
    rules.sort_by_key(|rule| (rule.start, rule.id));
    let line = Line {
        v: VERSION,
        r#type: LineType::Top,
        socket: &model.socket,
        state: if model.ended { "ended" } else { &state.word },
        reason: state.reason.as_deref(),
        seconds: (state.at.as_secs_f64() * 1e3).round() / 1e3,
        interval_seconds: rounded(state.seconds),
        cpus: state.cpus,
        memory: state.memory,
        trapped_pages: state.trapped_pages,
        writes: state.writes.total,
        writes_per_second: rounded(state.writes.rate),
        events: model.events.seen(),
        events_per_second: rounded(model.events.rate),
        events_dropped: model.events.lost(),
        rules: rules.into_iter().map(rule).collect(),
        pages: model.heat.map(|_| model.pages.iter().map(page).collect()),
    };
    serde_json::to_writer(&mut *out, &line)?;
    out.write_all(b"\n")
}

fn rule(row: &RuleRow) -> Rule<'_> {
    Rule {
        rule: row.id,
        name: &row.name,
        action: &row.action,
        start: Address(row.start),
        length: row.length,
        waits_for: row.waits_for.as_deref(),
        exits: row.exits.total,
        exits_per_second: rounded(row.exits.rate),
        logged: row.logged.total,
        logged_per_second: rounded(row.logged.rate),
        denied: row.denied.total,
        denied_per_second: rounded(row.denied.rate),
    }
}

fn page(row: &PageRow) -> Page {
    let totals = |counts: [Count; CELLS]| counts.map(|count| count.total);
    Page {
        page: Address(row.address()),
        writes: row.writes.total,
        writes_per_second: rounded(row.writes.rate),
        guarded: row.guarded.bits(),
        sub_pages: totals(row.sub_pages),
        denied: totals(row.denied),
    }
}

/// The schema of such a line.
pub(crate) fn line_schema(generator: &mut SchemaGenerator) -> Schema {
    Line::json_schema(generator)
}

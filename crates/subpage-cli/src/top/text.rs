//! What there is to see, once, as text: for terminals that cannot be drawn on, and for files.

use std::io::{self, Write};

use super::model::{Count, EventRow, HeatMode, Model, PageRow, RuleRow, Tone};
use crate::terminal::style::{DENIED, GOOD, HEADING, LOGGED, NAME, PLAIN, QUIET};
use crate::terminal::{Align, Columns, Glyphs, bytes, grouped, plural};

/// Rules, pages and events that are told.
const RULES: usize = 20;
const PAGES: usize = 16;
const EVENTS: usize = 20;

/// Writes all of it, with ANSI colours.
pub(super) fn write(out: &mut impl Write, model: &Model) -> io::Result<()> {
    let Some(state) = &model.state else { return Ok(()) };
    let word = if model.ended { "ended" } else { &state.word };
    write!(out, "{HEADING}{}{HEADING:#}  {word}", model.socket)?;
    if let Some(reason) = &state.reason {
        write!(out, ": {reason}")?;
    }
    writeln!(
        out,
        "  {QUIET}{} {}, {}; {} {} trap; {} writes, {} a second{QUIET:#}",
        state.cpus,
        plural(state.cpus.into(), "cpu"),
        bytes(state.memory),
        grouped(state.trapped_pages),
        plural(state.trapped_pages, "page"),
        grouped(state.writes.total),
        rate(state.writes),
    )?;
    rules(out, &model.rules)?;
    pages(out, model)?;
    events(out, model)
}

fn rate(count: Count) -> String {
    count.rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"))
}

fn more(out: &mut impl Write, all: usize, shown: usize) -> io::Result<()> {
    match all.saturating_sub(shown) {
        0 => Ok(()),
        more => writeln!(out, "  {QUIET}... and {} more{QUIET:#}", grouped(more as u64)),
    }
}

fn rules(out: &mut impl Write, rows: &[RuleRow]) -> io::Result<()> {
    use Align::{Left, Right};
    if rows.is_empty() {
        return writeln!(out, "\nno rule");
    }
    writeln!(out)?;
    let mut table = Columns::new(&[Left, Left, Right, Right, Right, Right, Left]);
    let headings = ["rule", "action", "exits/s", "exits", "denied/s", "denied", ""];
    table.row(headings.map(|heading| (heading.to_owned(), HEADING)));
    for row in rows.iter().take(RULES) {
        let denied = if row.denied.total > 0 { DENIED } else { QUIET };
        table.row([
            (row.name.clone(), NAME),
            (row.action.clone(), PLAIN),
            (rate(row.exits), PLAIN),
            (grouped(row.exits.total), PLAIN),
            (rate(row.denied), PLAIN),
            (grouped(row.denied.total), denied),
            (row.state(), QUIET),
        ]);
    }
    table.write(out, 0)?;
    more(out, rows.len(), RULES)
}

fn pages(out: &mut impl Write, model: &Model) -> io::Result<()> {
    use Align::{Left, Right};
    let rows = &model.pages;
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let mut table = Columns::new(&[Left, Right, Right, Left, Left]);
    let headings = ["hottest page", "writes/s", "writes", "its sub-pages, a second", "rules"];
    table.row(headings.map(|heading| (heading.to_owned(), HEADING)));
    for row in rows.iter().take(PAGES) {
        table.row([
            (format!("{:#x}", row.address()), NAME),
            (rate(row.writes), PLAIN),
            (grouped(row.writes.total), PLAIN),
            (strip(row), PLAIN),
            (names(model, row), QUIET),
        ]);
    }
    table.write(out, 0)?;
    more(out, rows.len(), PAGES)?;
    writeln!(out, "{QUIET}{}{QUIET:#}", Glyphs::Unicode.legend())
}

fn strip(row: &PageRow) -> String {
    row.sub_pages.iter().map(|count| Glyphs::Unicode.of(HeatMode::Live.heat(*count))).collect()
}

fn names(model: &Model, row: &PageRow) -> String {
    let (names, count) = model.names_of((row.cell_bytes(0).0, row.cell_bytes(31).1), 3);
    let more =
        if count > names.len() { format!(" +{}", count - names.len()) } else { String::new() };
    names.join(", ") + &more
}

fn events(out: &mut impl Write, model: &Model) -> io::Result<()> {
    let events = &model.events;
    if events.seen() == 0 && events.rows().is_empty() {
        return Ok(());
    }
    write!(
        out,
        "\n{HEADING}{} {}{HEADING:#}",
        grouped(events.seen()),
        plural(events.seen(), "event")
    )?;
    match events.lost() {
        0 => writeln!(out)?,
        lost => writeln!(out, ", {DENIED}{} lost{DENIED:#}", grouped(lost))?,
    }
    for EventRow { tone, whole, .. } in events.rows().iter().take(EVENTS) {
        let style = match tone {
            Tone::Bad => DENIED,
            Tone::Noted => LOGGED,
            Tone::Good => GOOD,
            Tone::Quiet => QUIET,
        };
        writeln!(out, "{style}-{style:#} {whole}")?;
    }
    more(out, events.rows().len(), EVENTS)
}

//! Replies for people.

use std::io::{self, Write};

use subpage::access::{AccessMap, SubPage};
use subpage::address::PAGE_BYTES;
use subpage_kvm::control::protocol::{
    Reply, Request, Shown, ShownMap, ShownMaps, ShownRegisters, ShownRule, ShownTracking, Written,
};

use super::heat;
use crate::terminal::style::{DENIED, GOOD, HEADING, LOGGED, NAME, PLAIN, QUIET};
use crate::terminal::{Align, Columns, bytes, grouped, plural, printable};

/// Writes what a request gave, with ANSI colours.
pub fn write_text(out: &mut dyn Write, request: &Request, reply: &Reply) -> io::Result<()> {
    match reply {
        Reply::Shown(shown) => write_shown(out, shown),
        Reply::Heat { hottest, counted, omitted } => heat::write(out, hottest, *counted, *omitted),
        Reply::Maps { maps } => {
            let first = if let Request::Get { gfn, .. } = request { *gfn } else { 0 };
            write_maps(out, first, maps)
        }
        Reply::Pages { pages } => {
            let pages = u64::from(*pages);
            writeln!(out, "{} {} set", grouped(pages), plural(pages, "page"))
        }
        Reply::Rule { rule } => writeln!(out, "rule {rule}"),
        Reply::Armed { armed } if armed.is_empty() => writeln!(out, "no rule waits for that"),
        Reply::Armed { armed } => {
            let count = armed.len() as u64;
            writeln!(out, "{} {} armed", grouped(count), plural(count, "rule"))
        }
        Reply::Track { track } => writeln!(out, "tracking {track}"),
        Reply::Harvest { written } => write_harvest(out, written),
        Reply::Saved { saved } => {
            let file = if let Request::Save { path } = request { path.as_str() } else { "" };
            writeln!(out, "{}  {QUIET}{}{QUIET:#}", printable(file), bytes(*saved))
        }
        Reply::Registers(shown) => write_registers(out, shown),
        Reply::Stepped { rip } => writeln!(out, "rip {rip:#x}"),
        Reply::Memory { bytes } => {
            let start = if let Request::Read { start, .. } = request { *start } else { 0 };
            write_memory(out, start, bytes)
        }
        Reply::Gdb { gdb } => {
            let gdb = printable(gdb);
            writeln!(
                out,
                "gdb is waited for: {QUIET}target remote {gdb}{QUIET:#} in gdb attaches it"
            )
        }
        Reply::Done {} => writeln!(out, "{}", done(request)),
    }
}

/// What is true now that a request without another reply has returned.
fn done(request: &Request) -> &'static str {
    match request {
        Request::Remove { .. } => "removed",
        Request::Lock { .. } => "locked",
        Request::GdbEnd => "the debugger is sent away",
        Request::Untrack { .. } => "no longer tracked",
        Request::Pause => "held",
        Request::Resume => "the guest goes on",
        Request::Stop => "the guest ends",
        _ => "done",
    }
}

fn write_registers(out: &mut dyn Write, shown: &ShownRegisters) -> io::Result<()> {
    let mut table = Columns::new(&[Align::Left, Align::Left]);
    for register in &shown.registers {
        let value = format!("{:#x}", register.value);
        table.row([(printable(&register.name).into_owned(), NAME), (value, PLAIN)]);
    }
    table.write(out, 0)
}

/// Sixteen bytes a line, with their letters.
fn write_memory(out: &mut dyn Write, start: u64, digits: &str) -> io::Result<()> {
    let digits: Vec<char> = digits.chars().collect();
    for (number, line) in (0_u64..).zip(digits.chunks(32)) {
        write!(out, "{QUIET}{:#014x}{QUIET:#} ", start.saturating_add(16 * number))?;
        let mut letters = String::new();
        for at in 0..16 {
            let byte: String = line.iter().skip(2 * at).take(2).collect();
            let separator = if at == 8 { "  " } else { " " };
            write!(out, "{separator}{:2}", printable(&byte))?;
            let letter = u8::from_str_radix(&byte, 16).ok();
            letters.extend(letter.map(|byte| match byte {
                b' '..=b'~' => char::from(byte),
                _ => '.',
            }));
        }
        writeln!(out, "  |{letters}|")?;
    }
    Ok(())
}

fn write_shown(out: &mut dyn Write, shown: &Shown) -> io::Result<()> {
    let style = match shown.state.as_str() {
        "running" => GOOD,
        "failed" => DENIED,
        _ => LOGGED,
    };
    writeln!(
        out,
        "{style}{}{style:#}  {} {}, {}; {} trapped {}, {} trapped {}",
        printable(&shown.state),
        shown.cpus,
        plural(u64::from(shown.cpus), "cpu"),
        bytes(shown.memory),
        grouped(shown.trapped_pages),
        plural(shown.trapped_pages, "page"),
        grouped(shown.writes),
        plural(shown.writes, "write"),
    )?;
    if let Some(held) = &shown.held {
        writeln!(out, "  {}", printable(held))?;
    }
    if let Some(failure) = &shown.failure {
        writeln!(out, "  {}", printable(failure))?;
    }
    writeln!(out)?;
    if shown.rules.is_empty() {
        writeln!(out, "no rules")?;
    } else {
        rules(&shown.rules).write(out, 0)?;
    }
    write_access_maps(out, &shown.access_maps)?;
    if shown.trackings.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    trackings(&shown.trackings).write(out, 0)
}

fn rules(rules: &[ShownRule]) -> Columns {
    use Align::{Left, Right};
    let mut table = Columns::new(&[
        Right, Left, Left, Left, Right, Right, Right, Right, Right, Right, Right, Left,
    ]);
    let headings = [
        "rule",
        "name",
        "action",
        "guards",
        "",
        "owner",
        "exits",
        "checked",
        "overruled",
        "logged",
        "denied",
        "",
    ];
    table.row(headings.map(|heading| (heading.to_owned(), HEADING)));
    for shown in rules {
        let rule = &shown.new;
        let waits =
            shown.waits_for.as_ref().map(|moment| format!("waits for {}", printable(moment)));
        let state: Vec<String> = [
            rule.locked.then(|| "locked".to_owned()),
            shown.spent.then(|| "spent".to_owned()),
            waits,
        ]
        .into_iter()
        .flatten()
        .collect();
        table.row([
            (shown.rule.to_string(), PLAIN),
            (printable(&rule.name).into_owned(), NAME),
            (printable(&rule.action).into_owned(), PLAIN),
            (span(rule.start, rule.length), PLAIN),
            (bytes(rule.length), QUIET),
            (rule.owner.to_string(), PLAIN),
            (grouped(shown.exits), PLAIN),
            (grouped(shown.checked), PLAIN),
            (grouped(shown.overruled), PLAIN),
            (grouped(shown.logged), if shown.logged == 0 { QUIET } else { LOGGED }),
            (grouped(shown.denied), if shown.denied == 0 { QUIET } else { DENIED }),
            (state.join(", "), QUIET),
        ]);
    }
    table
}

/// What is denied without a rule.
fn write_access_maps(out: &mut dyn Write, maps: &ShownMaps) -> io::Result<()> {
    if maps.pages == 0 {
        return Ok(());
    }
    writeln!(
        out,
        "\naccess maps deny {} {} in {} {}",
        grouped(maps.sub_pages),
        plural(maps.sub_pages, "sub-page"),
        grouped(maps.pages),
        plural(maps.pages, "page"),
    )?;
    let mut table = map_table("not writable");
    for ShownMap { gfn, map } in &maps.first {
        table.row(page(*gfn, *map, sub_pages(AccessMap::from_bits(!*map)), PLAIN));
    }
    table.write(out, 0)?;
    match maps.pages.saturating_sub(maps.first.len() as u64) {
        0 => Ok(()),
        more => writeln!(out, "{QUIET}{} more; `get` shows any page{QUIET:#}", grouped(more)),
    }
}

fn map_table(last: &str) -> Columns {
    let mut table = Columns::new(&[Align::Left, Align::Left, Align::Left, Align::Left]);
    table.row(["page", "address", "map", last].map(|heading| (heading.to_owned(), HEADING)));
    table
}

fn trackings(trackings: &[ShownTracking]) -> Columns {
    let mut table = Columns::new(&[Align::Right, Align::Left, Align::Right]);
    table.row(["tracking", "range"].map(|heading| (heading.to_owned(), HEADING)));
    for tracking in trackings {
        table.row([
            (tracking.track.to_string(), PLAIN),
            (span(tracking.start, tracking.length), PLAIN),
            (bytes(tracking.length), QUIET),
        ]);
    }
    table
}

/// The end is a sum of what another process said, and may lie beyond 64 bits.
fn span(start: u64, length: u64) -> String {
    format!("{start:#x}..{:#x}", u128::from(start) + u128::from(length))
}

fn write_maps(out: &mut dyn Write, first: u64, maps: &[u32]) -> io::Result<()> {
    let mut table = map_table("not writable");
    for (gfn, map) in (first..).zip(maps) {
        let closed = AccessMap::from_bits(!*map);
        let style = if closed == AccessMap::NONE { QUIET } else { PLAIN };
        table.row(page(gfn, *map, sub_pages(closed), style));
    }
    table.write(out, 0)
}

fn write_harvest(out: &mut dyn Write, written: &[Written]) -> io::Result<()> {
    if written.is_empty() {
        return writeln!(out, "nothing was written");
    }
    let mut table = map_table("written");
    for Written { gfn, sub_pages: map } in written {
        table.row(page(*gfn, *map, sub_pages(AccessMap::from_bits(*map)), PLAIN));
    }
    table.write(out, 0)?;
    let pages = written.len() as u64;
    writeln!(out, "\n{} {} written", grouped(pages), plural(pages, "page"))
}

fn page(gfn: u64, map: u32, words: String, style: anstyle::Style) -> [(String, anstyle::Style); 4] {
    let address = u128::from(gfn) * u128::from(PAGE_BYTES);
    [
        (format!("{gfn:#x}"), style),
        (format!("{address:#x}"), QUIET),
        (format!("{map:08x}"), style),
        (words, style),
    ]
}

/// The sub-pages of a map as runs: `0, 3-5`.
pub(super) fn sub_pages(map: AccessMap) -> String {
    if map == AccessMap::ALL {
        return "all".to_owned();
    }
    let indices: Vec<u8> = map.iter().map(SubPage::index).collect();
    let runs = indices.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
        [] => String::new(),
    });
    let runs: Vec<_> = runs.collect();
    if runs.is_empty() { "none".to_owned() } else { runs.join(", ") }
}

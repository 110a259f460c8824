//! A plan for people and for programs.

use std::io::{self, Write};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use subpage_trace::Process;

use super::{MixedPage, RangeCost};
use crate::closing_table::per_write;
use crate::events::VERSION;
use crate::heat::CELLS;
use crate::policy::Names;
use crate::terminal::style::{GOOD, HEADING, NAME, PLAIN, QUIET};
use crate::terminal::{Align, Columns, bytes, grouped, printable, ratio};
use subpage_trap::Address;

/// Everything that a plan says.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The trace as the user named it.
    pub guest: String,
    /// Its writes.
    pub writes: u64,
    /// Bytes of those writes.
    pub bytes: u64,
    /// Pages with at least one write; absent where pages were not counted.
    pub pages_written: Option<u64>,
    /// Pages with hot and cold sub-pages.
    pub pages_mixed: u64,
    /// The best of the mixed pages, best first.
    pub pages: Vec<MixedPage>,
    /// The ranges that the user asked for.
    pub ranges: Vec<RangeCost>,
}

/// Writes the plan as tables, with ANSI colours.
pub fn write_text(out: &mut dyn Write, plan: &Plan) -> io::Result<()> {
    let pages_written = plan.pages_written.map(|pages| {
        format!(", {} {} written", grouped(pages), if pages == 1 { "page" } else { "pages" })
    });
    writeln!(
        out,
        "{HEADING}{}{HEADING:#}  {} writes, {}{}",
        printable(&plan.guest),
        grouped(plan.writes),
        bytes(plan.bytes),
        pages_written.unwrap_or_default(),
    )?;
    if !plan.ranges.is_empty() {
        writeln!(out, "\n{HEADING}VM exits if one range were protected{HEADING:#}")?;
        ranges(plan).write(out, 2)?;
    }
    if plan.pages.is_empty() {
        return Ok(());
    }
    let (shown, mixed) = (plan.pages.len() as u64, plan.pages_mixed);
    write!(out, "\n{HEADING}pages that mix hot and cold sub-pages{HEADING:#}  {}", grouped(mixed))?;
    if shown < mixed {
        write!(out, "; {} shown (--top N)", grouped(shown))?;
    }
    writeln!(out)?;
    writeln!(
        out,
        "{QUIET}hot: at least 1 % of the page's writes; avoided: exits saved if the cold sub-pages \
         are protected instead of the page{QUIET:#}"
    )?;
    pages(plan).write(out, 2)
}

fn ranges(plan: &Plan) -> Columns {
    use Align::{Left, Right};
    let mut table = Columns::new(&[Left, Left, Right, Right, Right, Right, Left]);
    table.row(
        ["range", "at", "bytes", "written", "by page", "by sub-page", "ratio"]
            .map(|heading| (heading.to_owned(), QUIET)),
    );
    for cost in &plan.ranges {
        let share = per_write(cost.exits_sub_page, plan.writes);
        table.row([
            (printable(&cost.name).into_owned(), NAME),
            (cost.start.to_string(), PLAIN),
            (grouped(cost.length), PLAIN),
            (grouped(cost.writes), PLAIN),
            (grouped(cost.exits_page), PLAIN),
            (grouped(cost.exits_sub_page), PLAIN),
            (format!("{}, {share}", ratio(cost.exits_page, cost.exits_sub_page)), GOOD),
        ]);
    }
    table
}

fn pages(plan: &Plan) -> Columns {
    use Align::{Left, Right};
    let mut table = Columns::new(&[Left, Right, Right, Right, Left, Left]);
    let scale = format!("{:<16}{:<16}", "+000", "+800");
    table.row(
        ["page", "writes", "avoided", "hot", &scale, "cold names"]
            .map(|heading| (heading.to_owned(), QUIET)),
    );
    for page in &plan.pages {
        let names: Vec<_> = page.cold_names.iter().map(|name| printable(name)).collect();
        table.row([
            (format!("{:#x}", page.counts.gfn.gpa().as_u64()), PLAIN),
            (grouped(page.counts.writes), PLAIN),
            (grouped(page.avoided()), GOOD),
            (page.hot.count().to_string(), PLAIN),
            (strip(&page.counts.sub_pages), PLAIN),
            (names.join(", "), NAME),
        ]);
    }
    table
}

/// One character a sub-page: a dot for no write, else a bar whose height is the logarithm of the
/// writes, full for the most written.
fn strip(sub_pages: &[u64; CELLS]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = sub_pages.iter().copied().max().unwrap_or(0);
    let log = |writes: u64| u64::from(writes.max(1).ilog2());
    let bar = |writes: u64| match writes {
        0 => '·',
        _ if writes == most => BARS[7],
        #[allow(clippy::cast_possible_truncation)]
        _ => BARS[(log(writes) * 7 / log(most).max(1)) as usize % 8],
    };
    sub_pages.iter().map(|writes| bar(*writes)).collect()
}

#[derive(Serialize, JsonSchema)]
struct Line<T> {
    v: u32,
    #[serde(flatten)]
    content: T,
}

#[derive(Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Content<'a> {
    PlanRange(&'a RangeCost),
    PlanPage {
        page: Address,
        writes: u64,
        sub_pages: &'a [u64],
        hot: u32,
        exits_page: u64,
        exits_sub_page: u64,
        cold_names: &'a [String],
    },
    PlanSummary {
        guest: &'a str,
        writes: u64,
        bytes: u64,
        pages_written: Option<u64>,
        pages_mixed: u64,
    },
    Name {
        name: &'a str,
        start: Address,
        length: u64,
    },
    Process {
        process: usize,
        main: bool,
        pid: u32,
        parent: Option<u16>,
        command: &'a str,
    },
}

/// The schema of the lines of `plan --json`.
pub(crate) fn line_schema(generator: &mut SchemaGenerator) -> Schema {
    Line::<Content<'_>>::json_schema(generator)
}

fn line(out: &mut impl Write, content: Content<'_>) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &Line { v: VERSION, content })?;
    out.write_all(b"\n")
}

/// Writes the plan as JSON Lines, as `docs/events.md` describes them.
pub fn write_json(out: &mut impl Write, plan: &Plan) -> io::Result<()> {
    for cost in &plan.ranges {
        line(out, Content::PlanRange(cost))?;
    }
    for page in &plan.pages {
        let content = Content::PlanPage {
            page: Address(page.counts.gfn.gpa().as_u64()),
            writes: page.counts.writes,
            sub_pages: &page.counts.sub_pages,
            hot: page.hot.bits(),
            exits_page: page.exits_page,
            exits_sub_page: page.exits_sub_page,
            cold_names: &page.cold_names,
        };
        line(out, content)?;
    }
    let content = Content::PlanSummary {
        guest: &plan.guest,
        writes: plan.writes,
        bytes: plan.bytes,
        pages_written: plan.pages_written,
        pages_mixed: plan.pages_mixed,
    };
    line(out, content)
}

/// Writes the names of a trace as a table.
pub fn write_names_text(out: &mut dyn Write, names: &Names) -> io::Result<()> {
    let mut table = Columns::new(&[Align::Left, Align::Left, Align::Right]);
    table.row(["name", "at", "bytes"].map(|heading| (heading.to_owned(), QUIET)));
    for named in names.iter() {
        table.row([
            (printable(&named.name).into_owned(), NAME),
            (format!("{:#x}", named.start), PLAIN),
            (grouped(named.length), PLAIN),
        ]);
    }
    table.write(out, 0)
}

/// Writes the names of a trace as JSON Lines.
pub fn write_names_json(out: &mut impl Write, names: &Names) -> io::Result<()> {
    for named in names.iter() {
        let (name, start, length) = (named.name.as_str(), Address(named.start), named.length);
        line(out, Content::Name { name, start, length })?;
    }
    Ok(())
}

/// Writes the processes of a trace as a table; `main` is the one that commands take by themselves.
pub fn write_processes_text(
    out: &mut dyn Write,
    processes: &[Process],
    main: u16,
) -> io::Result<()> {
    use Align::{Left, Right};
    if processes.is_empty() {
        return writeln!(out, "the trace is of one process");
    }
    let mut table = Columns::new(&[Right, Right, Left, Left]);
    table.row(["process", "pid", "after", "command"].map(|heading| (heading.to_owned(), QUIET)));
    for (number, process) in processes.iter().enumerate() {
        let after = process.parent.map(|parent| {
            let same = processes.get(usize::from(parent)).is_some_and(|p| p.pid == process.pid);
            format!("{} {parent}", if same { "exec of" } else { "started by" })
        });
        let is_main = number == usize::from(main);
        table.row([
            (format!("{number}{}", if is_main { "*" } else { " " }), PLAIN),
            (process.pid.to_string(), PLAIN),
            (after.unwrap_or_default(), QUIET),
            (printable(&process.command).into_owned(), NAME),
        ]);
    }
    table.write(out, 0)?;
    writeln!(out, "\n{QUIET}*: taken where no `--process` is given{QUIET:#}")
}

/// Writes the processes of a trace as JSON Lines.
pub fn write_processes_json(
    out: &mut impl Write,
    processes: &[Process],
    main: u16,
) -> io::Result<()> {
    for (number, process) in processes.iter().enumerate() {
        let Process { pid, parent, command, .. } = process;
        let main = number == usize::from(main);
        let (pid, parent) = (*pid, *parent);
        line(out, Content::Process { process: number, main, pid, parent, command })?;
    }
    Ok(())
}

//! The table at the end of a guarded run.

mod most_expensive;

use std::fmt::Write as _;
use std::io::{self, Write};

use subpage_trap::Address;

use crate::summary::{LiveSummary, RuleSummary, Summary};
use crate::terminal::style::{DENIED, GOOD, HEADING, LOGGED, NAME, PLAIN, QUIET};
use crate::terminal::{Align, Columns, bytes, grouped, plural, printable, ratio};

/// Most rules that are shown.
const MAX_SHOWN: usize = 20;

/// Writes the rules, the totals and the exits at both granularities, with ANSI colours.
pub fn write(out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
    rules(summary).write(out, 0)?;
    if summary.rules.len() > MAX_SHOWN {
        let more = (summary.rules.len() - MAX_SHOWN) as u64;
        let (count, rules) = (grouped(more), plural(more, "rule"));
        writeln!(
            out,
            "{QUIET}… and {count} more {rules}; `--report` and `--json` have all{QUIET:#}"
        )?;
    }
    writeln!(out)?;
    let speed = summary
        .elapsed
        .map(|elapsed| format!("{QUIET} in {:.2} s{QUIET:#}", elapsed.as_secs_f64()));
    let what = if summary.live.is_some() { "trapped writes" } else { "writes" };
    writeln!(
        out,
        "{} {what}, {}{}; {} guarded {} in {} {}",
        grouped(summary.writes),
        bytes(summary.bytes),
        speed.unwrap_or_default(),
        grouped(summary.sub_pages_protected),
        plural(summary.sub_pages_protected, "sub-page"),
        grouped(summary.pages_protected),
        plural(summary.pages_protected, "page"),
    )?;
    if let Some(write) = summary.stopped_at {
        writeln!(out, "{DENIED}stopped{DENIED:#} at write {}", grouped(write))?;
    }
    if let Some(live) = &summary.live {
        ending(out, live)?;
    }
    writeln!(out)?;
    exits(summary).write(out, 0)?;
    most_expensive::write(out, summary)
}

fn ending(out: &mut dyn Write, live: &LiveSummary) -> io::Result<()> {
    let style = if live.is_failure() { DENIED } else { PLAIN };
    writeln!(out, "{style}{}{style:#}", printable(&live.message))?;
    panic_console(out, live)?;
    if live.denied_by_maps > 0 {
        let denied = live.denied_by_maps;
        let (count, writes) = (grouped(denied), plural(denied, "write"));
        let least = if live.events_dropped > 0 { "at least " } else { "" };
        writeln!(out, "{least}{count} {writes} denied by access maps, beside the rules")?;
    }
    lost(out, live)
}

/// Writes the last lines of a console that tells of a panic, if nobody saw them.
pub(crate) fn panic_console(out: &mut dyn Write, live: &LiveSummary) -> io::Result<()> {
    if live.console_shown {
        return Ok(());
    }
    live.panic_console
        .iter()
        .try_for_each(|line| writeln!(out, "  {QUIET}{}{QUIET:#}", printable(line)))
}

/// Writes what is missing in the output or was never told, a line for each kind of it.
pub(crate) fn lost(out: &mut dyn Write, live: &LiveSummary) -> io::Result<()> {
    if live.events_dropped > 0 {
        let dropped = live.events_dropped;
        let (count, events) = (grouped(dropped), plural(dropped, "event"));
        writeln!(
            out,
            "{count} {events} lost: the guest made them too fast; the counts of the rules have them"
        )?;
    }
    if live.console_dropped > 0 {
        let dropped = bytes(live.console_dropped);
        writeln!(out, "{dropped} of the guest's console lost: it printed them too fast")?;
    }
    if live.notices_dropped > 0 {
        let dropped = live.notices_dropped;
        let (count, notices) = (grouped(dropped), plural(dropped, "notice"));
        writeln!(
            out,
            "{count} {notices} lost: more guarded pages hold live page tables of the guest"
        )?;
    }
    Ok(())
}

/// The rules that matter first, and few enough to see: those that denied most, those that reported
/// most, then the others in their order.
fn rules(summary: &Summary) -> Columns {
    use Align::{Left, Right};
    let mut order: Vec<&RuleSummary> = summary.rules.iter().collect();
    order.sort_by_key(|rule| std::cmp::Reverse((rule.denied, rule.logged)));
    let has_overruled = order.iter().any(|rule| rule.overruled > 0);
    let mut columns = vec![Left, Left, Right, Right, Right, Right, Left];
    let mut headings =
        vec!["rule", "action", "checked", "allowed", "logged", "denied", "first denial"];
    if has_overruled {
        columns.insert(4, Right);
        headings.insert(4, "overruled");
    }
    let mut table = Columns::new(&columns);
    table.row(headings.into_iter().map(|heading| (heading.to_owned(), HEADING)));
    for rule in order.into_iter().take(MAX_SHOWN) {
        let mut cells = vec![
            (printable(&rule.name).into_owned(), NAME),
            (rule.action.to_owned(), PLAIN),
            (grouped(rule.checked), PLAIN),
            (grouped(rule.allowed), PLAIN),
            (grouped(rule.logged), if rule.logged == 0 { QUIET } else { LOGGED }),
            (grouped(rule.denied), if rule.denied == 0 { QUIET } else { DENIED }),
            (first_denial(rule), PLAIN),
        ];
        if has_overruled {
            cells.insert(4, (grouped(rule.overruled), PLAIN));
        }
        table.row(cells);
    }
    table
}

fn first_denial(rule: &RuleSummary) -> String {
    let Some(first) = &rule.first_denial else { return "–".to_owned() };
    let mut text =
        format!("write {} at {}", grouped(first.write), Address(first.event.gpa.as_u64()));
    if let Some(pc) = first.pc_text() {
        let _ = write!(text, " by {pc}");
    }
    if let Some(function) = &first.function {
        let _ = write!(text, " in {}", printable(&function.to_string()));
    }
    text
}

fn exits(summary: &Summary) -> Columns {
    let (page, sub_page) = (summary.exits_page, summary.exits_sub_page);
    let mut table = Columns::new(&[Align::Left, Align::Right, Align::Left]);
    table.row([("VM exits that this policy costs".to_owned(), HEADING)]);
    table.row([
        ("  with page granularity".to_owned(), PLAIN),
        (grouped(page), PLAIN),
        (page_remark(summary), QUIET),
    ]);
    table.row([
        ("  with sub-page granularity".to_owned(), PLAIN),
        (grouped(sub_page), PLAIN),
        (sub_page_remark(summary), QUIET),
    ]);
    table.row([("  ratio".to_owned(), PLAIN), (ratio(page, sub_page), GOOD)]);
    table
}

pub(crate) use most_expensive::{rate, title};

/// What the exits with page granularity are of the writes. On KVM the whole is not known: only writes
/// that trap are, and all of them exit.
pub(crate) fn page_remark(summary: &Summary) -> String {
    match summary.live {
        None => per_write(summary.exits_page, summary.writes),
        Some(_) => "as in this run".to_owned(),
    }
}

/// The same for the exits with sub-page granularity.
pub(crate) fn sub_page_remark(summary: &Summary) -> String {
    match summary.live {
        None => per_write(summary.exits_sub_page, summary.writes),
        Some(_) => "on a processor with SPP".to_owned(),
    }
}

/// The share of the writes that exit.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn per_write(exits: u64, writes: u64) -> String {
    if writes == 0 {
        return String::new();
    }
    let percent = exits as f64 * 100.0 / writes as f64;
    match percent {
        0.0 => "none of the writes".to_owned(),
        p if p < 0.01 => "under 0.01 % of the writes".to_owned(),
        p if p < 1.0 => format!("{p:.2} % of the writes"),
        p => format!("{p:.1} % of the writes"),
    }
}

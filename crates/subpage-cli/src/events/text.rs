//! Events as lines for people.

use std::collections::HashMap;
use std::io::{self, Write};

use unicode_width::UnicodeWidthStr;

use super::{
    DebuggerEvent, FailedEvent, HeldEvent, LiveStart, NoticeEvent, ShownWarning, StartEvent,
    WarningEvent, shown_warnings,
};
use crate::summary::Summary;
use crate::terminal::style::{DENIED, GOOD, HEADING, LOGGED, NAME, QUIET};
use crate::terminal::{bytes, grouped, plural, printable};
use subpage_trap::{Address, Armed, Dump, Record, Verdict, When};

/// Writes of one rule that are shown whole; later ones are counted, and each power of ten is told.
pub const SHOWN_PER_RULE: u64 = 20;

/// Writes of all rules that are shown whole, beyond which each rule shows only its first.
const SHOWN_IN_ALL: u64 = 100;

/// Rules that came into force together of which people are told the names.
const SHOWN_ARMED: usize = 8;

/// Widest rule name that the alignment makes room for, in columns.
const MAX_NAME_COLUMNS: usize = 32;

/// The writes that met one rule.
#[derive(Default)]
struct Seen {
    count: u64,
    /// Whether it has been said that not all are shown.
    told: bool,
}

/// How much is told to people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Detail {
    /// Warnings, failures, what was lost and what was denied in all.
    Quiet,
    /// The first writes of each rule as well, later ones counted.
    #[default]
    Normal,
    /// Every write.
    All,
}

/// Writes events as lines, with ANSI colours.
pub struct TextEvents<W: Write> {
    out: W,
    detail: Detail,
    seen: HashMap<Option<String>, Seen>,
    shown: u64,
    name_columns: usize,
}

impl<W: Write> TextEvents<W> {
    /// A writer that has seen nothing.
    pub fn new(out: W, detail: Detail) -> Self {
        Self { out, detail, seen: HashMap::new(), shown: 0, name_columns: 0 }
    }

    pub(super) fn start(&mut self, start: &StartEvent) -> io::Result<()> {
        if self.detail == Detail::Quiet {
            return Ok(());
        }
        let rules = start.rules.len() as u64;
        writeln!(
            self.out,
            "{HEADING}guarding{HEADING:#} {} with {} {} of {} on the {} backend",
            printable(&start.guest),
            grouped(rules),
            plural(rules, "rule"),
            printable(&start.policy),
            start.backend,
        )?;
        let widths = start.rules.iter().map(|rule| printable(&rule.name).width());
        self.name_columns = widths.max().unwrap_or(0).min(MAX_NAME_COLUMNS);
        // Long policies scroll what matters off the screen.
        for rule in start.rules.iter().take(10) {
            let end = rule.start.0 + rule.length;
            writeln!(
                self.out,
                "  {NAME}{}{NAME:#}{:pad$}  {:10}  {}..{end:#x}  {QUIET}{}{}{QUIET:#}",
                printable(&rule.name),
                "",
                rule.action,
                rule.start,
                bytes(rule.length),
                arms_at(rule.arm),
                pad = self.name_columns.saturating_sub(printable(&rule.name).width()),
            )?;
        }
        if start.rules.len() > 10 {
            writeln!(self.out, "  {QUIET}… and {} more{QUIET:#}", grouped(rules - 10))?;
        }
        if let Some(live) = &start.live {
            live_start(&mut self.out, live)?;
        }
        writeln!(self.out)?;
        // Before the progress bar, which goes to another stream.
        self.out.flush()
    }

    /// Whether every write makes a line.
    pub(super) fn shows_all(&self) -> bool {
        self.detail == Detail::All
    }

    pub(super) fn shows(&self, write: &Record) -> bool {
        if self.detail != Detail::Normal {
            return self.shows_all();
        }
        self.seen
            .get(&write.rule_name)
            .is_none_or(|seen| !seen.told || is_power_of_ten(seen.count + 1))
    }

    pub(super) fn write(&mut self, write: &Record) -> io::Result<()> {
        if !self.seen.contains_key(&write.rule_name) {
            self.seen.insert(write.rule_name.clone(), Seen::default());
        }
        let seen = self.seen.get_mut(&write.rule_name).expect("just inserted");
        seen.count += 1;
        match self.detail {
            Detail::Quiet => return Ok(()),
            Detail::Normal => {}
            Detail::All => return self.whole(write),
        }
        let count = seen.count;
        if count <= SHOWN_PER_RULE && (count == 1 || self.shown < SHOWN_IN_ALL) {
            self.shown += 1;
            return self.whole(write);
        }
        let name = printable(write.rule_or_map());
        if !seen.told {
            seen.told = true;
            writeln!(
                self.out,
                "{QUIET}… more by{QUIET:#} {NAME}{name}{NAME:#}{QUIET}: from here on counted, all in \
                 the totals{QUIET:#}"
            )?;
        } else if is_power_of_ten(count) {
            writeln!(
                self.out,
                "{QUIET}… {} met{QUIET:#} {NAME}{name}{NAME:#} {QUIET}so far, write {}{QUIET:#}",
                grouped(count),
                grouped(write.write)
            )?;
        } else {
            return Ok(());
        }
        self.out.flush()
    }

    fn whole(&mut self, write: &Record) -> io::Result<()> {
        write_line(&mut self.out, write, self.name_columns)?;
        // A person watches, and the next event may be minutes away.
        self.out.flush()
    }

    pub(super) fn failed(&mut self, failed: &FailedEvent) -> io::Result<()> {
        let control = printable(&failed.control);
        writeln!(
            self.out,
            "{DENIED}the guest cannot continue:{DENIED:#} {}\n  it is kept as it is: {QUIET}subpage ctl \
             {control} show{QUIET:#} asks it; Ctrl-C, or {QUIET}subpage ctl {control} stop{QUIET:#}, \
             ends it",
            printable(&failed.message),
        )
    }

    pub(super) fn held(&mut self, held: &HeldEvent) -> io::Result<()> {
        let control = printable(&held.control);
        writeln!(
            self.out,
            "{LOGGED}the guest is held:{LOGGED:#} {}\n  {QUIET}subpage ctl {control} resume{QUIET:#} lets \
             it go on; Ctrl-C, or {QUIET}subpage ctl {control} stop{QUIET:#}, ends it",
            printable(&held.message),
        )?;
        if let Some(gdb) = &held.gdb {
            let gdb = printable(gdb);
            writeln!(self.out, "  {QUIET}target remote {gdb}{QUIET:#} in gdb looks at it")?;
        }
        Ok(())
    }

    pub(super) fn debugger(&mut self, debugger: &DebuggerEvent) -> io::Result<()> {
        if self.detail == Detail::Quiet {
            return Ok(());
        }
        writeln!(self.out, "{QUIET}gdb{QUIET:#}  {}", printable(&debugger.message))
    }

    pub(crate) fn warnings(&mut self, warnings: &[WarningEvent]) -> io::Result<()> {
        if self.detail == Detail::All {
            return warnings.iter().try_for_each(|warning| self.warning(warning));
        }
        for shown in shown_warnings(warnings) {
            match shown {
                ShownWarning::Whole(warning) => self.warning(warning)?,
                ShownWarning::More(count) => {
                    writeln!(self.out, "{QUIET}{}{QUIET:#}", ShownWarning::more(count))?;
                }
            }
        }
        Ok(())
    }

    fn warning(&mut self, warning: &WarningEvent) -> io::Result<()> {
        writeln!(
            self.out,
            "{LOGGED}warning:{LOGGED:#} {}\n  {QUIET}{}{QUIET:#}",
            printable(&warning.message),
            printable(&warning.help)
        )
    }

    pub(super) fn armed(&mut self, armed: &Armed) -> io::Result<()> {
        if self.detail == Detail::Quiet {
            return Ok(());
        }
        write_armed(&mut self.out, armed)
    }

    pub(super) fn notice(&mut self, notice: &NoticeEvent) -> io::Result<()> {
        if self.detail == Detail::Quiet {
            return Ok(());
        }
        writeln!(self.out, "{QUIET}slow:{QUIET:#} {}", printable(&notice.message))
    }

    pub(super) fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        if self.detail == Detail::Quiet {
            return self.verdict(summary);
        }
        if !self.seen.is_empty() {
            writeln!(self.out)?;
        }
        crate::closing_table::write(&mut self.out, summary)?;
        writeln!(self.out)?;
        self.verdict(summary)
    }

    fn verdict(&mut self, summary: &Summary) -> io::Result<()> {
        // The closing table has told it otherwise.
        if self.detail == Detail::Quiet
            && let Some(live) = &summary.live
        {
            if live.is_failure() {
                writeln!(self.out, "{DENIED}{}{DENIED:#}", printable(&live.message))?;
                crate::closing_table::panic_console(&mut self.out, live)?;
            }
            crate::closing_table::lost(&mut self.out, live)?;
        }
        let (denied, style) = match summary.denied() {
            0 => ("nothing denied".to_owned(), GOOD),
            1 => ("1 write denied".to_owned(), DENIED),
            many => (format!("{} writes denied", grouped(many)), DENIED),
        };
        writeln!(self.out, "{style}{denied}{style:#}")
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// What is said of the moment from which a rule holds, if it is not the start.
fn arms_at(arm: &str) -> String {
    match arm {
        "start" => String::new(),
        "entry" => ", from the kernel's entry".to_owned(),
        "init" => ", armed at the first program".to_owned(),
        "write" => ", armed by the guest's write to port 0xf5".to_owned(),
        _ => ", armed by `subpage ctl arm`".to_owned(),
    }
}

fn live_start(out: &mut impl Write, live: &LiveStart) -> io::Result<()> {
    let trap = match live.trap {
        "mprotect" => "write-protected pages of the host",
        _ => "read-only memory slots",
    };
    let cpus = u64::from(live.cpus);
    let (count, memory) = (grouped(cpus), bytes(live.memory));
    writeln!(
        out,
        "  {QUIET}{count} {}, {memory}; trapped by {trap}{QUIET:#}",
        plural(cpus, "cpu")
    )?;
    writeln!(out, "  {QUIET}control{QUIET:#}  subpage ctl {} show", printable(&live.control))?;
    if let Some(gdb) = &live.gdb {
        writeln!(out, "  {QUIET}gdb{QUIET:#}  target remote {}", printable(gdb))?;
    }
    if let Some(metrics) = &live.metrics {
        writeln!(out, "  {QUIET}metrics{QUIET:#}  {}", printable(metrics))?;
    }
    Ok(())
}

/// Writes one arming as one line, with ANSI colours.
pub fn write_armed(out: &mut impl Write, armed: &Armed) -> io::Result<()> {
    let names: Vec<_> = armed.rules.iter().take(SHOWN_ARMED).map(|name| printable(name)).collect();
    let more = match armed.rules.len().saturating_sub(SHOWN_ARMED) {
        0 => String::new(),
        more => format!(" and {} more", grouped(more as u64)),
    };
    let (names, by) = (names.join(", "), printable(&armed.by));
    let when = match armed.write {
        Some(write) => format!("from write {} on", grouped(write)),
        None => format!("after {:.3} s", armed.since_start),
    };
    writeln!(
        out,
        "{GOOD}armed{GOOD:#}  {NAME}{names}{NAME:#}{more}  {QUIET}by {by}, {when}{QUIET:#}"
    )
}

/// Writes one event as one line, the rule's name `name_columns` wide or wider, with ANSI colours.
pub fn write_line(out: &mut impl Write, write: &Record, name_columns: usize) -> io::Result<()> {
    let event = &write.event;
    let style = match event.verdict {
        Verdict::Denied | Verdict::Stopped => DENIED,
        Verdict::Logged | Verdict::AllowedOnce => LOGGED,
    };
    let name = printable(write.rule_or_map());
    let length = event.length.map_or_else(|| "?".to_owned(), |length| length.to_string());
    write!(
        out,
        "{style}{:12}{style:#}  {NAME}{name}{NAME:#}{:pad$}  {length:>2} {} at {}  {QUIET}sub-page \
         {:2}  write {}{QUIET:#}",
        event.verdict.word(),
        "",
        if event.length == Some(1) { "byte " } else { "bytes" },
        Address(event.gpa.as_u64()),
        event.sub_page().index(),
        grouped(write.write),
        pad = name_columns.saturating_sub(name.width()),
    )?;
    if let When::Clock { since_start, .. } = event.when {
        write!(out, "  {QUIET}after {:.3} s{QUIET:#}", since_start.as_secs_f64())?;
    }
    if let Some(pc) = write.pc_text() {
        write!(out, "  {QUIET}by{QUIET:#} {pc}")?;
    }
    if let Some(function) = &write.function {
        write!(out, " {QUIET}in{QUIET:#} {}", printable(&function.to_string()))?;
    }
    if let Some(source) = &write.source {
        write!(out, " {QUIET}at{QUIET:#} {}", printable(&source.to_string()))?;
    }
    if let Some(process) = &write.process {
        write!(out, "  {QUIET}process{QUIET:#} {}", printable(&process.to_string()))?;
    }
    if let Some(task) = &write.task {
        write!(out, "  {QUIET}process{QUIET:#} {}", printable(&task.to_string()))?;
    }
    if let Some(cpl) = event.origin.cpl {
        write!(out, "  {QUIET}vcpu {} cpl {cpl}{QUIET:#}", event.origin.vcpu)?;
    }
    if let Some(gla) = event.gla {
        write!(out, "  {QUIET}gla {}{QUIET:#}", Address(gla))?;
    }
    if let Some(text) = &write.text {
        write!(out, "  {}", printable(text))?;
    }
    if !event.bytes.is_empty() {
        write!(out, "  {QUIET}bytes{QUIET:#} {}", Dump(&event.bytes))?;
    }
    writeln!(out)?;
    if !write.call_trace.is_empty() {
        let calls: Vec<_> =
            write.call_trace.iter().map(|call| printable(&call.to_string()).into_owned()).collect();
        writeln!(out, "  {QUIET}called by{QUIET:#} {}", calls.join(" < "))?;
    }
    Ok(())
}

fn is_power_of_ten(count: u64) -> bool {
    count.checked_ilog10().is_some_and(|log| count == 10_u64.pow(log))
}

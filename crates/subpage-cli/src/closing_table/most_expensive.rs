//! What the most expensive rules cost.

use std::io::{self, Write};

use crate::summary::{MAX_EXPENSIVE, RuleSummary, Summary};
use crate::terminal::style::{DENIED, HEADING, NAME, PLAIN, QUIET};
use crate::terminal::{Align, Columns, grouped, printable};

/// Writes the table, if a rule has cost something and the totals do not say all of it.
pub(super) fn write(out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
    let rules = summary.most_expensive();
    if rules.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    table(&rules).write(out, 0)
}

/// What the table is called.
pub(crate) fn title(shown: usize) -> &'static str {
    if shown == MAX_EXPENSIVE { "the ten most expensive rules" } else { "the most expensive rules" }
}

/// Exits a second, as people read them.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative")]
pub(crate) fn rate(per_second: f64) -> String {
    if per_second < 10.0 { format!("{per_second:.1}") } else { grouped(per_second.round() as u64) }
}

fn table(rules: &[&RuleSummary]) -> Columns {
    use Align::{Left, Right};
    let timed = rules.iter().any(|rule| rule.exits_per_second.is_some());
    let mut table = Columns::new(&[Left, Right, Right, Right, Right, Right, Left, Right]);
    let mut headings =
        vec![title(rules.len()), "exits", "alone", "sub-page", "own", "denied", "hottest page"];
    if timed {
        headings.push("a second");
    }
    table.row(headings.into_iter().map(|heading| (heading.to_owned(), HEADING)));
    for rule in rules {
        let page = rule.hottest_page.map(|hot| hot.page.to_string());
        let mut cells = vec![
            (printable(&rule.name).into_owned(), NAME),
            (grouped(rule.exits), PLAIN),
            (grouped(rule.exits_alone), PLAIN),
            (grouped(rule.checked), PLAIN),
            (grouped(rule.own()), PLAIN),
            (grouped(rule.denied), if rule.denied == 0 { QUIET } else { DENIED }),
            (page.unwrap_or_default(), QUIET),
        ];
        if let Some(per_second) = rule.exits_per_second {
            cells.push((rate(per_second), PLAIN));
        }
        table.row(cells);
    }
    table
}

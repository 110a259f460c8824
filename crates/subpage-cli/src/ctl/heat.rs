//! The pages that were written most, for people.

use std::io::{self, Write};

use subpage::access::AccessMap;
use subpage::address::PAGE_BYTES;
use subpage_kvm::control::protocol::HeatPage;

use super::reply::sub_pages;
use crate::heat::CELLS;
use crate::terminal::style::{DENIED, HEADING, NAME, PLAIN, QUIET};
use crate::terminal::{Align, Columns, Glyphs, grouped, plural};

/// Writes a table of the pages, with ANSI colours.
pub(super) fn write(
    out: &mut dyn Write,
    hottest: &[HeatPage],
    counted: u64,
    omitted: u64,
) -> io::Result<()> {
    use Align::{Left, Right};
    if hottest.is_empty() {
        return writeln!(out, "no write was decided about yet");
    }
    let mut table = Columns::new(&[Left, Right, Left, Right, Left]);
    let headings = ["page", "writes", "its 32 sub-pages", "denied", "guarded"];
    table.row(headings.map(|heading| (heading.to_owned(), HEADING)));
    for page in hottest {
        let (writes, denied) = cells(page);
        let strip = writes.iter().map(|writes| Glyphs::Unicode.of(*writes)).collect();
        let denied = denied.iter().fold(0, |sum: u64, denied| sum.saturating_add(*denied));
        let guarded = !AccessMap::from_bits(page.map);
        let address = u128::from(page.gfn) * u128::from(PAGE_BYTES);
        table.row([
            (format!("{address:#x}"), NAME),
            (grouped(page.writes), PLAIN),
            (strip, PLAIN),
            (grouped(denied), if denied > 0 { DENIED } else { QUIET }),
            (sub_pages(guarded), QUIET),
        ]);
    }
    table.write(out, 0)?;
    let shown = hottest.len() as u64;
    write!(out, "\n{QUIET}{}", Glyphs::Unicode.legend())?;
    if counted > shown {
        write!(out, "; {} more {}", grouped(counted - shown), plural(counted - shown, "page"))?;
    }
    if omitted > 0 {
        write!(
            out,
            "; {} {} of pages beyond the limit",
            grouped(omitted),
            plural(omitted, "write")
        )?;
    }
    writeln!(out, "{QUIET:#}")
}

/// Writes and denials by sub-page. What no page has is left out: a server may send anything.
pub(crate) fn cells(page: &HeatPage) -> ([u64; CELLS], [u64; CELLS]) {
    let (mut writes, mut denied) = ([0; CELLS], [0; CELLS]);
    for cell in &page.sub_pages {
        let at = usize::from(cell.sub_page);
        if let (Some(writes), Some(denied)) = (writes.get_mut(at), denied.get_mut(at)) {
            (*writes, *denied) = (cell.writes, cell.denied);
        }
    }
    (writes, denied)
}

//! Written sub-pages around the rules: one row a page, one cell a sub-page.

use std::fmt::Write;

use maud::{Markup, html};
use subpage::access::SubPage;

use crate::heat::{CELLS, PageHeat, cell_bytes, class_of};
use crate::summary::Summary;
use crate::terminal::{grouped, printable};

/// Measures in the drawing's own units.
const LABEL: usize = 116;
const CELL: usize = 20;
const STEP: usize = 22;
const ROW: usize = 26;
const TOP: usize = 20;
const NAMES: usize = 190;
const WIDTH: usize = LABEL + CELLS * STEP + 10 + NAMES;

/// Characters of rule names next to a row.
const NAME_CHARACTERS: usize = 26;

/// Rows of the table for readers who cannot use the drawing.
const MAX_TABLE_ROWS: usize = 500;

/// Classes of the colour scale: none, then one for each power of ten, the last open.
const CLASSES: [&str; crate::heat::CLASSES] =
    ["0", "1+", "10+", "100+", "1,000+", "10,000+", "100,000+"];

/// Where the legend puts each class: as wide as its words.
const LEGEND: [usize; CLASSES.len()] = [52, 100, 154, 214, 282, 364, 452];

pub(super) fn section(summary: &Summary) -> Markup {
    if summary.heat.is_empty() {
        return html! {};
    }
    html! {
        h2 {
            @if summary.live.is_some() { "Where the reported writes went" }
            @else { "Where the writes went" }
        }
        p.soft {
            "The guarded pages and their written neighbours. One row is a page, one cell a sub-page \
             of 128 bytes; darker or brighter means more writes, tenfold from step to step. Point \
             at a cell for its numbers, or see the table below."
            @if summary.live.is_some() {
                " On KVM only the writes that a rule reported or denied are known one by one: all \
                 others are missing here."
            }
        }
        (legend())
        @for group in groups(&summary.heat) { (drawing(group, summary)) }
        @if summary.heat_omitted > 0 {
            p.soft {
                (grouped(summary.heat_omitted))
                " more guarded pages are not drawn: at most 64 a rule and 512 in all."
            }
        }
        (table(summary))
    }
}

/// Runs of pages without a gap.
fn groups(pages: &[PageHeat]) -> impl Iterator<Item = &[PageHeat]> {
    pages.chunk_by(|a, b| a.gfn.checked_add(1) == Some(b.gfn))
}

fn legend() -> Markup {
    html! {
        div.scroll { svg.legend viewBox="0 0 1020 24" role="img"
            aria-label="Legend: colour by the number of writes; outlined: guarded; crossed: denied" {
            text class="soft" x="0" y="16" { "writes" }
            @for (class, name) in CLASSES.iter().enumerate() {
                rect class=(format!("h{class}")) x=(LEGEND[class]) y="2" width="20" height="20" rx="3" {}
                text class="soft" x=(LEGEND[class] + 26) y="16" { (name) }
            }
            rect class="h0" x="600" y="2" width="20" height="20" rx="3" {}
            rect class="guard" x="600" y="2" width="20" height="20" rx="3" {}
            text class="soft" x="628" y="16" { "guarded" }
            rect class="h2" x="768" y="2" width="20" height="20" rx="3" {}
            (cross(768, 2))
            text class="soft" x="796" y="16" { "a write was denied" }
        } }
    }
}

fn cross(x: usize, y: usize) -> Markup {
    let (left, right, top, bottom) = (x + 6, x + CELL - 6, y + 6, y + CELL - 6);
    let path = format!("M{left} {top}L{right} {bottom}M{right} {top}L{left} {bottom}");
    html! { path class="halo" d=(path) {} path class="cross" d=(path) {} }
}

fn drawing(pages: &[PageHeat], summary: &Summary) -> Markup {
    let height = TOP + pages.len() * ROW + 4;
    let first = pages[0].gfn.gpa().as_u64();
    html! {
        div.scroll { svg.legend.wide viewBox=(format!("0 0 {WIDTH} {height}")) role="group"
            aria-label=(format!("{} pages from {first:#x}", pages.len())) {
            @for cell in (0..CELLS).step_by(4) {
                text class="mono soft" x=(LABEL + cell * STEP) y="13" { (format!("+{:03x}", cell * 128)) }
            }
            @for (row, page) in pages.iter().enumerate() {
                (draw_page(page, TOP + row * ROW, summary))
            }
        } }
    }
}

fn draw_page(page: &PageHeat, y: usize, summary: &Summary) -> Markup {
    let names = names_of(page, summary);
    html! {
        text class=(if page.guarded().is_empty() { "mono soft" } else { "mono" }) x="0" y=(y + 14) {
            (format!("{:#x}", page.gfn.gpa().as_u64()))
        }
        @for cell in SubPage::all() { (draw_cell(page, cell, y, summary)) }
        text x=(LABEL + CELLS * STEP + 10) y=(y + 14) {
            (shortened(&names))
            title { (names) }
        }
    }
}

fn draw_cell(page: &PageHeat, cell: SubPage, y: usize, summary: &Summary) -> Markup {
    let index = usize::from(cell.index());
    let x = LABEL + index * STEP;
    let (writes, denied) = (page.writes[index], page.denied[index]);
    let guarded = page.guarded().contains(cell);
    html! {
        rect class=(format!("h{}", class_of(writes))) x=(x) y=(y) width=(CELL) height=(CELL) rx="3" {
            // An empty, unguarded cell has nothing to say, and there are many.
            @if writes > 0 || guarded { title { (describe(page, cell, summary)) } }
        }
        @if guarded { rect class="guard" x=(x) y=(y) width=(CELL) height=(CELL) rx="3" {} }
        @if denied > 0 { (cross(x, y)) }
    }
}

fn describe(page: &PageHeat, cell: SubPage, summary: &Summary) -> String {
    let (start, end) = cell_bytes(page.gfn, cell);
    let index = usize::from(cell.index());
    let (writes, denied) = (page.writes[index], page.denied[index]);
    let mut text = format!("{start:#x}..{end:#x}\n{} writes", grouped(writes));
    if denied > 0 {
        let _ = write!(text, ", {} denied", grouped(denied));
    }
    for name in rules_of(page, cell, summary) {
        text.push_str("\nguarded by ");
        text.push_str(&printable(name));
    }
    if page.maps.contains(cell) {
        text.push_str("\nguarded by an access map");
    }
    text
}

fn rules_of<'a>(
    page: &'a PageHeat,
    cell: SubPage,
    summary: &'a Summary,
) -> impl Iterator<Item = &'a str> {
    let of_cell = page.rules.iter().filter(move |(_, map)| map.contains(cell));
    of_cell.take(8).map(|(rule, _)| summary.rules[*rule].name.as_str())
}

fn names_of(page: &PageHeat, summary: &Summary) -> String {
    let names = page.rules.iter().take(8).map(|(rule, _)| summary.rules[*rule].name.as_str());
    let mut text = names.map(printable).collect::<Vec<_>>().join(", ");
    if page.rules.len() > 8 {
        let _ = write!(text, " and {} more", page.rules.len() - 8);
    }
    if !page.maps.is_empty() {
        text.push_str(if text.is_empty() { "(access map)" } else { ", (access map)" });
    }
    text
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= NAME_CHARACTERS {
        return text.to_owned();
    }
    text.chars().take(NAME_CHARACTERS - 1).chain(['…']).collect()
}

/// The guarded cells as text.
fn table(summary: &Summary) -> Markup {
    let cells = || {
        let pages = summary.heat.iter();
        pages.flat_map(|page| {
            page.guarded().iter().map(move |cell| (page, cell)).collect::<Vec<_>>()
        })
    };
    let count = cells().count();
    html! {
        details {
            summary { "The guarded sub-pages as a table" }
            div.scroll { table {
                thead { tr {
                    th { "Sub-page" } th { "Rules" } th.n { "Writes" } th.n { "Denied" }
                } }
                tbody { @for (page, cell) in cells().take(MAX_TABLE_ROWS) {
                    tr {
                        td { code { (format!("{:#x}", cell_bytes(page.gfn, cell).0)) } }
                        td.name {
                            @for (index, name) in rules_of(page, cell, summary).enumerate() {
                                @if index > 0 { ", " }
                                (printable(name))
                            }
                            @if page.maps.contains(cell) {
                                @if rules_of(page, cell, summary).next().is_some() { ", " }
                                "(access map)"
                            }
                        }
                        td.n { (grouped(page.writes[usize::from(cell.index())])) }
                        td.n { (grouped(page.denied[usize::from(cell.index())])) }
                    }
                } }
            } }
            @if count > MAX_TABLE_ROWS {
                p.soft { (grouped((count - MAX_TABLE_ROWS) as u64)) " more are left out." }
            }
        }
    }
}

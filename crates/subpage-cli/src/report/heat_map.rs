//! Written sub-pages around the rules: one row a page, one cell a sub-page.

use std::fmt::Write;

use maud::{Markup, html};
use subpage::access::SubPage;

use crate::heat::{CELLS, PageHeat, cell_bytes, class_of};
use crate::summary::Summary;
use crate::terminal::{grouped, plural, printable};

/// Measures of a row of cells in its own units.
const CELL: usize = 20;
const STEP: usize = 22;
const WIDTH: usize = CELLS * STEP;

/// Characters of rule names next to a row.
const NAME_CHARACTERS: usize = 26;

/// Sub-pages that are told in words, of all pages together.
const MAX_TABLE_ROWS: usize = 5000;

/// Classes of the colour scale: none, then one for each power of ten, the last open.
const CLASSES: [&str; crate::heat::CLASSES] =
    ["0", "1+", "10+", "100+", "1,000+", "10,000+", "100,000+"];

pub(super) fn section(summary: &Summary) -> Markup {
    if summary.heat.is_empty() {
        return html! {};
    }
    let mut room = MAX_TABLE_ROWS;
    html! {
        h2 { "Where the writes went" }
        p.soft {
            @if summary.live.is_some() {
                "The guarded pages, and others that were written and trapped: every write that was \
                 decided about, permitted ones too. "
            } @else {
                "The guarded pages and their written neighbours. "
            }
            "One row is a page, one cell a sub-page of 128 bytes; darker or brighter means more writes, \
             tenfold from step to step. Open a row for its numbers."
        }
        (legend())
        @for group in groups(&summary.heat) {
            div.pages { @for page in group { (draw_page(page, summary, &mut room)) } }
        }
        @if summary.heat_omitted > 0 {
            p.soft {
                (grouped(summary.heat_omitted))
                " more guarded pages are not drawn: at most 64 a rule and 512 in all."
            }
        }
    }
}

/// Runs of pages without a gap.
fn groups(pages: &[PageHeat]) -> impl Iterator<Item = &[PageHeat]> {
    pages.chunk_by(|a, b| a.gfn.checked_add(1) == Some(b.gfn))
}

fn legend() -> Markup {
    let sample =
        |content: Markup| html! { svg.sample viewBox="0 0 20 20" aria-hidden="true" { (content) } };
    let cell =
        |class: usize| html! { rect class=(format!("h{class}")) width="20" height="20" rx="3" {} };
    html! {
        p.legend.soft {
            "writes"
            @for (class, name) in CLASSES.iter().enumerate() { span { (sample(cell(class))) (name) } }
            span {
                (sample(html! { (cell(0)) rect class="guard" width="20" height="20" rx="3" {} }))
                "guarded"
            }
            span { (sample(html! { (cell(2)) (cross(0)) })) "a write was denied" }
        }
    }
}

fn cross(x: usize) -> Markup {
    let (left, right, top, bottom) = (x + 6, x + CELL - 6, 6, CELL - 6);
    let path = format!("M{left} {top}L{right} {bottom}M{right} {top}L{left} {bottom}");
    html! { path class="halo" d=(path) {} path class="cross" d=(path) {} }
}

/// A row: the page as cells, to be opened for its numbers, by touch and by keys.
fn draw_page(page: &PageHeat, summary: &Summary, room: &mut usize) -> Markup {
    let names = names_of(page, summary);
    let all = told_cells(page);
    let told = all.len().min(*room);
    *room -= told;
    let address = format!("{:#x}", page.gfn.gpa().as_u64());
    html! {
        details.page {
            summary {
                span class=(if page.guarded().is_empty() { "mono at soft" } else { "mono at" }) { (address) }
                svg.strip viewBox=(format!("0 0 {WIDTH} {CELL}")) preserveAspectRatio="none" role="img"
                    aria-label=(format!("32 sub-pages of {address}")) {
                    @for cell in SubPage::all() { (draw_cell(page, cell, summary)) }
                }
                span.of title=(names) { (shortened(&names)) }
            }
            @if told > 0 { (table(page, &all[..told], summary)) }
            @if all.is_empty() { p.soft { "Nothing was written here." } }
            @if told < all.len() { p.soft { (grouped((all.len() - told) as u64)) " more are left out." } }
        }
    }
}

fn draw_cell(page: &PageHeat, cell: SubPage, summary: &Summary) -> Markup {
    let index = usize::from(cell.index());
    let x = index * STEP;
    let (writes, denied) = (page.writes[index], page.denied[index]);
    let guarded = page.guarded().contains(cell);
    html! {
        rect class=(format!("h{}", class_of(writes))) x=(x) width=(CELL) height=(CELL) rx="3" {
            // An empty, unguarded cell has nothing to say, and there are many.
            @if writes > 0 || guarded { title { (describe(page, cell, summary)) } }
        }
        @if guarded { rect class="guard" x=(x) width=(CELL) height=(CELL) rx="3" {} }
        @if denied > 0 { (cross(x)) }
    }
}

fn describe(page: &PageHeat, cell: SubPage, summary: &Summary) -> String {
    let (start, end) = cell_bytes(page.gfn, cell);
    let index = usize::from(cell.index());
    let (writes, denied) = (page.writes[index], page.denied[index]);
    let mut text = format!("{start:#x}..{end:#x}\n{} {}", grouped(writes), plural(writes, "write"));
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

/// The cells that have something to say.
fn told_cells(page: &PageHeat) -> Vec<SubPage> {
    let told = |cell: &SubPage| {
        page.writes[usize::from(cell.index())] > 0 || page.guarded().contains(*cell)
    };
    SubPage::all().filter(told).collect()
}

/// Cells in words and numbers.
fn table(page: &PageHeat, cells: &[SubPage], summary: &Summary) -> Markup {
    html! {
        div.scroll { table {
            thead { tr { th { "Sub-page" } th { "Guarded by" } th.n { "Writes" } th.n { "Denied" } } }
            tbody { @for cell in cells.iter().copied() {
                @let denied = page.denied[usize::from(cell.index())];
                tr.hit[denied > 0] {
                    td.nowrap {
                        code { (format!("{:#x}", cell_bytes(page.gfn, cell).0)) }
                        " " span.soft { (cell.index()) }
                    }
                    td.text {
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
                    td class=(if denied > 0 { "n denied" } else { "n zero" }) { (grouped(denied)) }
                }
            } }
        } }
    }
}

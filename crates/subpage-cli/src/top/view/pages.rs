//! The pane of the hottest pages: a row a page, a cell a sub-page.

use std::fmt::Write as _;

use ratatui::layout::Rect;
use ratatui::style::Style;

use super::canvas::{Canvas, Side, window};
use super::numbers::{count, rate};
use super::rules::mark;
use super::{NUMBER, title};
use crate::heat::CELLS;
use crate::top::model::{Count, Model, PageRow, Pane, Tone};

/// Columns of the marker before a row, and of an address.
const MARKER: u16 = 2;
const ADDRESS: u16 = 12;

/// Names of rules that are told of a sub-page.
const NAMES: usize = 3;

/// Which columns there is room for.
struct Columns {
    /// Columns of one cell.
    cell: u16,
    /// Sub-pages in one cell.
    group: usize,
    address: u16,
    rate: bool,
    total: bool,
    names: u16,
}

impl Columns {
    fn of(width: u16) -> Self {
        let numbers = 2 * (NUMBER + 1);
        let width = width.saturating_sub(MARKER);
        // The map matters most: in the narrowest several sub-pages share a cell.
        let (cell, group) = match width {
            108.. => (2, 1),
            32.. => (1, 1),
            16.. => (1, 2),
            _ => (1, 4),
        };
        let mut columns = Self { cell, group, address: 0, rate: false, total: false, names: 0 };
        let left = width.saturating_sub(columns.strip());
        columns.address = if left >= ADDRESS { ADDRESS } else { 0 };
        let left = left - columns.address;
        (columns.rate, columns.total) = (left > NUMBER, left >= numbers);
        let used = (u16::from(columns.rate) + u16::from(columns.total)) * (NUMBER + 1);
        columns.names = left.saturating_sub(used + 1);
        columns
    }

    /// Columns of all cells.
    fn strip(&self) -> u16 {
        let cells = CELLS / self.group;
        u16::try_from(cells).expect("32 at most") * self.cell
    }

    /// Where the cells begin, in a row that begins at `x`.
    const fn begin(&self, x: u16) -> u16 {
        x + MARKER + self.address
    }

    /// Where the cell of a sub-page is, behind where they begin.
    fn at(&self, cell: usize) -> u16 {
        u16::try_from(cell / self.group).expect("31 at most") * self.cell
    }
}

pub(super) fn draw(canvas: &mut Canvas<'_>, area: Rect, model: &Model) {
    let mut text = "Hottest pages".to_owned();
    if let Some((counted, omitted)) = model.heat {
        let _ = write!(text, ", {} written", count(counted));
        if omitted > 0 {
            let _ = write!(text, ", {} writes not counted by page", count(omitted));
        }
    }
    title(canvas, area, &text, model.mode.word(), model.focus == Pane::Pages);
    let columns = Columns::of(area.width);
    let (top, left) = (area.y + 1, area.height.saturating_sub(1));
    if left == 0 {
        return;
    }
    if model.pages.is_empty() {
        let text = match (&model.state, model.heat) {
            (None, _) => "no answer yet",
            (Some(_), None) => "the guest's process is older and has no counts by page",
            (Some(_), Some(_)) => "no write trapped yet",
        };
        canvas.run((area.x + 2, top), area.right(), text, canvas.theme.quiet());
        return;
    }
    // The heading goes first, then what is said of the selected cell.
    let has_heading = left >= 4;
    let has_detail = left >= 3;
    if has_heading {
        heading(canvas, Rect { y: top, height: 1, ..area }, &columns);
    }
    let rows = left - u16::from(has_heading) - u16::from(has_detail);
    let selected = model.page_index();
    let shown = window(model.pages.len(), selected, usize::from(rows));
    for (y, index) in (top + u16::from(has_heading)..).zip(shown) {
        let place = Rect { y, height: 1, ..area };
        row(canvas, place, &columns, model, &model.pages[index]);
        if index == selected {
            let focused = model.focus == Pane::Pages;
            let width = MARKER + columns.address;
            mark(canvas, Rect { width: width.min(area.width), ..place }, focused);
            if focused {
                let cell = model.cell_of(&model.pages[index]);
                let x = columns.begin(area.x) + columns.at(cell);
                canvas.paint(Rect { x, width: columns.cell, ..place }, canvas.theme.selected());
            }
        }
    }
    if let Some(page) = model.pages.get(selected).filter(|_| has_detail) {
        detail(canvas, Rect { y: area.bottom() - 1, height: 1, ..area }, model, page);
    }
}

fn heading(canvas: &mut Canvas<'_>, area: Rect, columns: &Columns) {
    let (y, quiet) = (area.y, canvas.theme.quiet());
    if columns.address > 0 {
        canvas.text((area.x + MARKER, y), columns.address, "page", quiet, Side::Left);
    }
    let mut x = columns.begin(area.x);
    for quarter in 0..4 {
        let (at, text) = (x + columns.at(quarter * 8), format!("+{:03x}", quarter * 1024));
        canvas.text((at, y), columns.at(8), &text, quiet, Side::Left);
    }
    x += columns.strip();
    for (text, _) in
        [("writes/s", columns.rate), ("writes", columns.total)].iter().filter(|it| it.1)
    {
        canvas.text((x + 1, y), NUMBER, text, quiet, Side::Right);
        x += NUMBER + 1;
    }
    if columns.names > 8 {
        canvas.text((x + 1, y), columns.names, "rules", quiet, Side::Left);
    }
}

fn row(canvas: &mut Canvas<'_>, area: Rect, columns: &Columns, model: &Model, page: &PageRow) {
    let (mut x, y) = (columns.begin(area.x), area.y);
    if columns.address > 0 {
        let (at, address) = (area.x + MARKER, format!("{:#x}", page.address()));
        canvas.text((at, y), columns.address - 1, &address, Style::new(), Side::Left);
    }
    for first in (0..CELLS).step_by(columns.group) {
        let cells = first..first + columns.group;
        let sum = |counts: &[Count; CELLS]| {
            let heat = |sum: u64, count: &Count| sum.saturating_add(model.mode.heat(*count));
            counts[cells.clone()].iter().fold(0, heat)
        };
        let guarded = cells.clone().any(|cell| page.guarded.bits() >> cell & 1 != 0);
        let heat = sum(&page.sub_pages);
        let denied = &page.denied[cells.clone()];
        let ever = denied.iter().any(|count| count.total > 0);
        let denied = (ever, denied.iter().any(|count| count.rate_class() > 0));
        let (character, style) = canvas.theme.cell(heat, denied, guarded);
        for _ in 0..columns.cell {
            canvas.character((x, y), character, style);
            x += 1;
        }
    }
    let numbers = [(rate(page.writes), columns.rate), (count(page.writes.total), columns.total)];
    for (text, _) in numbers.iter().filter(|it| it.1) {
        canvas.text((x + 1, y), NUMBER, text, Style::new(), Side::Right);
        x += NUMBER + 1;
    }
    if columns.names > 8 {
        let (first, last) = (page.cell_bytes(0).0, page.cell_bytes(CELLS - 1).1);
        let style = canvas.theme.name();
        canvas.text((x + 1, y), columns.names, &names(model, (first, last)), style, Side::Left);
    }
}

/// The names of the rules there, in few words.
fn names(model: &Model, bytes: (u64, u64)) -> String {
    let (names, count) = model.names_of(bytes, NAMES);
    let more =
        if count > names.len() { format!(" +{}", count - names.len()) } else { String::new() };
    names.join(", ") + &more
}

/// What is known of the selected cell.
fn detail(canvas: &mut Canvas<'_>, area: Rect, model: &Model, page: &PageRow) {
    let cell = model.cell_of(page);
    let (first, last) = page.cell_bytes(cell);
    let (writes, denied) = (page.sub_pages[cell], page.denied[cell]);
    let theme = canvas.theme;
    let end = area.right();
    let mut at = (area.x + 2, area.y);
    let part = |canvas: &mut Canvas<'_>, at: &mut (u16, u16), text: &str, style| {
        at.0 = canvas.run(*at, end, text, style);
    };
    part(canvas, &mut at, &format!("{first:#x} sub-page {cell}: "), theme.quiet());
    part(
        canvas,
        &mut at,
        &format!("{}/s, {} writes", rate(writes), count(writes.total)),
        Style::new(),
    );
    if denied.total > 0 {
        part(canvas, &mut at, &format!(", {} denied", count(denied.total)), theme.tone(Tone::Bad));
    }
    let names = names(model, (first, last));
    let guarded = page.guarded.bits() >> cell & 1 != 0;
    match (names.is_empty(), guarded) {
        (false, _) => {
            part(canvas, &mut at, ", ", Style::new());
            part(canvas, &mut at, &names, theme.name());
        }
        (true, true) => part(canvas, &mut at, ", denied by an access map", theme.quiet()),
        (true, false) => {}
    }
}

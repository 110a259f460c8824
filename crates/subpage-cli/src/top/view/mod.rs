//! The state as cells of a terminal: a function, without a terminal.

mod canvas;
mod events;
mod numbers;
mod overlay;
mod pages;
mod rules;
mod theme;

use std::time::Duration;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use unicode_width::UnicodeWidthStr;

use self::canvas::{Canvas, Side};
use self::numbers::rate;
pub(crate) use self::theme::Theme;
use super::model::{Link, Model, Pane, State, Tone};
use crate::terminal::bytes;

/// Columns of a number.
const NUMBER: u16 = 8;

/// Less than this and only one part is shown at a time.
const STACKED_HEIGHT: u16 = 16;
const STACKED_WIDTH: u16 = 40;

/// From here on the events have a column of their own.
const BESIDE_WIDTH: u16 = 160;

/// Draws everything.
pub(crate) fn draw(buffer: &mut Buffer, model: &Model, theme: Theme, now: Duration) {
    let area = buffer.area;
    let mut canvas = Canvas { buffer, theme };
    if area.is_empty() {
        return;
    }
    header(&mut canvas, Rect { height: 1, ..area }, model, now);
    // The keys are the first to go where there is no room.
    let has_footer = area.height >= 4;
    let panes = Rect { y: area.y + 1, height: area.height - 1 - u16::from(has_footer), ..area };
    if has_footer {
        footer(&mut canvas, Rect { y: area.bottom() - 1, height: 1, ..area }, model, now);
    }
    if panes.height > 0 {
        draw_panes(&mut canvas, panes, model);
    }
    overlay::draw(&mut canvas, area, model);
}

fn draw_panes(canvas: &mut Canvas<'_>, area: Rect, model: &Model) {
    if area.height + 2 < STACKED_HEIGHT || area.width < STACKED_WIDTH {
        return pane(canvas, area, model, model.focus);
    }
    let mut left = area;
    if area.width >= BESIDE_WIDTH {
        left.width = area.width * 3 / 5;
        let x = left.right() + 2;
        let right = Rect { x, width: area.right() - x, ..area };
        pane(canvas, right, model, Pane::Events);
        let rules = rows(model.rules.len()).saturating_add(3).min(area.height / 2);
        let upper = Rect { height: rules.max(4), ..left };
        pane(canvas, upper, model, Pane::Rules);
        let lower = Rect { y: upper.bottom(), height: left.height - upper.height, ..left };
        return pane(canvas, lower, model, Pane::Pages);
    }
    // What has few rows leaves its room to the others; the events take what is left.
    let third = area.height / 3;
    let rules = rows(model.rules.len()).saturating_add(2).clamp(3, third + 1);
    let pages = rows(model.pages.len()).saturating_add(3).clamp(3, third + 2);
    let mut y = area.y;
    for (kind, height) in
        [(Pane::Rules, rules), (Pane::Pages, pages), (Pane::Events, area.height - rules - pages)]
    {
        pane(canvas, Rect { y, height, ..area }, model, kind);
        y += height;
    }
}

fn rows(rows: usize) -> u16 {
    u16::try_from(rows).unwrap_or(u16::MAX)
}

fn pane(canvas: &mut Canvas<'_>, area: Rect, model: &Model, kind: Pane) {
    match kind {
        Pane::Rules => rules::draw(canvas, area, model),
        Pane::Pages => pages::draw(canvas, area, model),
        Pane::Events => events::draw(canvas, area, model),
    }
}

/// The first row of a pane: what it is, at its right end a remark.
fn title(canvas: &mut Canvas<'_>, area: Rect, text: &str, remark: &str, focused: bool) {
    let row = Rect { height: 1, ..area };
    let (line, quiet) = (canvas.theme.rule(), canvas.theme.quiet());
    let style = if focused { canvas.theme.focused() } else { canvas.theme.heading() };
    for x in row.left()..row.right() {
        canvas.character((x, row.y), line, quiet);
    }
    let text = format!(" {text} ");
    let end = canvas.run((row.x, row.y), row.right(), &text, style);
    let remark = if remark.is_empty() { String::new() } else { format!(" {remark} ") };
    let columns = u16::try_from(remark.width()).unwrap_or(u16::MAX);
    if row.right().saturating_sub(end) > columns {
        canvas.text((row.right() - columns, row.y), columns, &remark, quiet, Side::Left);
    }
}

/// Which guest, how it is, and what it does.
fn header(canvas: &mut Canvas<'_>, area: Rect, model: &Model, now: Duration) {
    let theme = canvas.theme;
    let (word, tone) = state(model, now);
    let mut parts = vec![(word, theme.tone(tone))];
    if let Some(state) = &model.state {
        let unit = if area.width >= 30 { " writes/s" } else { "/s" };
        let writes = format!("{}{unit}", rate(state.writes));
        parts.push((writes, Style::new()));
        if let Some(reason) = &state.reason {
            parts.push((reason.clone(), theme.tone(Tone::Noted)));
        }
        parts.extend(machine(state).map(|text| (text, theme.quiet())));
    }
    let mut x = area.x;
    // The state matters more than the name.
    if area.width >= 30 {
        let name = model.socket.rsplit('/').next().unwrap_or_default();
        let columns = u16::try_from(name.width()).unwrap_or(u16::MAX).min(area.width / 3);
        canvas.text((x, area.y), columns, name, theme.heading(), Side::Left);
        x += columns + 2;
    }
    for (index, (text, style)) in parts.into_iter().enumerate() {
        let columns = u16::try_from(text.width()).unwrap_or(u16::MAX);
        // Half a reason is better than none; half a number is not.
        let fits = area.right().saturating_sub(x) >= columns;
        if !fits && index > 0 && style != theme.tone(Tone::Noted) {
            break;
        }
        x = canvas.run((x, area.y), area.right(), &text, style) + 2;
    }
}

fn machine(state: &State) -> [String; 4] {
    let cpus = if state.cpus == 1 { "cpu" } else { "cpus" };
    let pages = if state.trapped_pages == 1 { "page" } else { "pages" };
    [
        format!("{} in all", numbers::count(state.writes.total)),
        format!("{} {pages} trap", numbers::count(state.trapped_pages)),
        format!("{} {cpus}", state.cpus),
        bytes(state.memory),
    ]
}

/// The state in a word or two.
fn state(model: &Model, now: Duration) -> (String, Tone) {
    match (&model.link, model.silent_for(now), &model.state) {
        _ if model.ended => ("ended".to_owned(), Tone::Quiet),
        (Link::Gone(_), ..) => ("gone".to_owned(), Tone::Bad),
        _ if model.frozen => ("view frozen".to_owned(), Tone::Noted),
        (_, Some(age), _) => (format!("silent for {} s", age.as_secs()), Tone::Bad),
        (Link::Troubled(_), ..) => ("does not answer".to_owned(), Tone::Bad),
        (.., None) => ("asking".to_owned(), Tone::Quiet),
        (.., Some(state)) => {
            let tone = match state.word.as_str() {
                "running" => Tone::Good,
                "held" => Tone::Noted,
                "failed" => Tone::Bad,
                _ => Tone::Quiet,
            };
            (state.word.clone(), tone)
        }
    }
}

/// What there is to say, or the keys.
fn footer(canvas: &mut Canvas<'_>, area: Rect, model: &Model, now: Duration) {
    let theme = canvas.theme;
    let reason = match &model.link {
        Link::Answers => None,
        Link::Troubled(reason) | Link::Gone(reason) => Some((reason.as_str(), Tone::Bad)),
    };
    let ended = model
        .ended
        .then_some(("the guest has ended; this is how it was last; q quits", Tone::Noted));
    if let Some((text, tone)) = model.message(now).or(ended).or(reason) {
        canvas.run((area.x, area.y), area.right(), text, theme.tone(tone));
        return;
    }
    let held = model.state.as_ref().is_some_and(|state| state.word == "held");
    let keys = [
        ("q", "quit"),
        ("?", "help"),
        ("Tab", "part"),
        ("a", "arm"),
        ("x", "remove"),
        ("p", if held { "go on" } else { "pause" }),
        ("s", "step"),
        ("f", "freeze"),
        ("t", "heat"),
        ("o", "order"),
    ];
    let mut x = area.x;
    for (key, what) in keys {
        let columns = u16::try_from(key.len() + what.len() + 1).unwrap_or(u16::MAX);
        if area.right().saturating_sub(x) < columns {
            break;
        }
        x = canvas.run((x, area.y), area.right(), key, theme.heading());
        x = canvas.run((x + 1, area.y), area.right(), what, theme.quiet()) + 2;
    }
}

#[cfg(test)]
mod tests;

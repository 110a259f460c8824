//! What lies over the panes: help, a question, all about an event.

use ratatui::layout::Rect;
use ratatui::style::Style;
use unicode_width::UnicodeWidthChar;

use super::canvas::{Canvas, Side};
use crate::top::model::{Model, Overlay};

/// The keys, in the order of the help.
const HELP: [(&str, &str); 16] = [
    ("Tab", "next part: rules, pages, events"),
    ("Up Down", "select; Home: whatever comes first"),
    ("Left Right", "select a sub-page of the page"),
    ("Enter", "all about the selected event"),
    ("a", "put the selected rule in force, if it waits"),
    ("A", "put all rules in force that wait for a command"),
    ("x", "remove the selected rule, after a question"),
    ("p", "hold the guest, or let it go on"),
    ("s", "execute one instruction of a held guest"),
    ("o", "order of the rules: exits, denials, address"),
    ("t", "heat of the last interval, or since the start"),
    ("f", "freeze the view, or let it go on"),
    ("q", "quit; the guest runs on"),
    ("", ""),
    ("underlined", "guarded: a write there asks the rules"),
    ("x in a cell", "a write there was denied"),
];

/// Widest box.
const WIDTH: u16 = 100;

pub(super) fn draw(canvas: &mut Canvas<'_>, area: Rect, model: &Model) {
    match &model.overlay {
        Overlay::None => {}
        Overlay::Help => {
            let keys: Vec<_> =
                HELP.iter().map(|(key, what)| format!("{key:>11}  {what}")).collect();
            let legend = format!("{:>11}  {}", "", canvas.theme.glyphs.legend());
            let lines: Vec<String> = keys.into_iter().chain([legend]).collect();
            board(canvas, area, "Keys (any key goes back)", &lines);
        }
        Overlay::Confirm { question, .. } => {
            let lines = [question.clone(), String::new(), "y: yes    any other key: no".to_owned()];
            board(canvas, area, "Sure?", &lines);
        }
        Overlay::Event(row) => {
            let lines: Vec<_> = row.whole.lines().map(str::to_owned).collect();
            board(canvas, area, "Event (any key goes back)", &lines);
        }
    }
}

/// A box with a title over the middle of the area, as large as its lines need and the area has.
fn board(canvas: &mut Canvas<'_>, area: Rect, title: &str, lines: &[String]) {
    let width = area.width.min(WIDTH);
    let inner = usize::from(width.saturating_sub(4)).max(1);
    let lines: Vec<String> = lines.iter().flat_map(|line| wrapped(line, inner)).collect();
    let height = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_add(3).min(area.height);
    let place = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    for y in place.top()..place.bottom() {
        for x in place.left()..place.right() {
            if let Some(cell) = canvas.buffer.cell_mut((x, y)) {
                cell.reset();
            }
        }
    }
    let focused = canvas.theme.focused();
    canvas.text((place.x, place.y), width, &format!("  {title}"), focused, Side::Left);
    canvas.paint(Rect { height: height.min(1), ..place }, focused);
    // One row of air above the text, if there is room for it.
    let air = u16::from(height > 4);
    let top = place.y + 1 + air;
    let rows = place.bottom().saturating_sub(top);
    for (y, line) in (top..place.bottom()).zip(&lines) {
        let cut = y + 1 == place.bottom() && lines.len() > usize::from(rows);
        let text = if cut { "…" } else { line };
        canvas.text((place.x + 2, y), width.saturating_sub(2), text, Style::new(), Side::Left);
    }
    let rule = canvas.theme.rule();
    if air > 0 && lines.len() < usize::from(rows) {
        for x in place.left()..place.right() {
            canvas.character((x, place.bottom() - 1), rule, canvas.theme.quiet());
        }
    }
}

/// A line in pieces that fit, broken at blanks where there are any.
fn wrapped(line: &str, width: usize) -> Vec<String> {
    let mut pieces = Vec::new();
    let mut piece = String::new();
    let (mut columns, mut blank) = (0, None);
    for character in line.chars() {
        columns += character.width().unwrap_or(0);
        if columns > width && !piece.is_empty() {
            // From the last blank on, unless that leaves next to nothing.
            let rest = match blank.take() {
                Some(at) if at > width / 3 => piece.split_off(at).trim_start().to_owned(),
                _ => String::new(),
            };
            pieces.push(std::mem::replace(&mut piece, rest));
            columns = unicode_width::UnicodeWidthStr::width(piece.as_str())
                + character.width().unwrap_or(0);
        }
        if character == ' ' {
            blank = Some(piece.len());
        }
        piece.push(character);
    }
    pieces.push(piece);
    pieces
}

#[cfg(test)]
mod tests {
    use super::wrapped;

    #[test]
    fn lines_break_at_blanks_or_anywhere() {
        assert_eq!(wrapped("", 5), [""]);
        assert_eq!(wrapped("a word or two", 8), ["a word", "or two"]);
        assert_eq!(wrapped("abcdefghij", 4), ["abcd", "efgh", "ij"]);
        assert_eq!(wrapped("漢字漢字", 4), ["漢字", "漢字"]);
        assert_eq!(wrapped("漢", 1), ["漢"], "never without end");
    }
}

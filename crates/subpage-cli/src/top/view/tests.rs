use std::path::Path;

use expect_test::expect_file;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::{Color, Modifier};
use serde_json::json;
use unicode_width::UnicodeWidthStr;

use super::*;
use crate::terminal::Glyphs;
use crate::top::model::tests::{denied, event, look, new, page, rule};
use crate::top::model::{Ask, Overlay};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

const NOW: Duration = Duration::from_secs(3);

fn press(model: &mut Model, code: KeyCode) -> Option<Ask> {
    model.key(KeyEvent::new(code, KeyModifiers::NONE))
}

fn model() -> Model {
    let mut model = new();
    let rules = |factor: u64| {
        let mut waiting = rule(3, "a rule with quite a long name, 漢字 in it", 0x20_4000, 0, 0);
        (waiting.waits_for, waiting.new.action) =
            (Some("command".to_owned()), "allow-once".to_owned());
        let mut locked = rule(9, "vectors", 0xfff_0000_1000, 3, 0);
        locked.new.locked = true;
        vec![
            rule(1, "helper path", 0x10_e180, 31_000 * factor, 4 * factor),
            rule(2, "audit \u{1b}[31mlog", 0x20_3180, 812 * factor, 0),
            waiting,
            locked,
        ]
    };
    let pages = |factor: u64| {
        let cells = [
            (0, 3, 0),
            (3, 4 * factor, 4 * factor),
            (8, 12 * factor, 0),
            (16, 350 * factor, 0),
            (17, 4_100 * factor, 0),
            (24, 26_000 * factor, 0),
            (31, 300_000 * factor, 0),
        ];
        vec![
            page(0x10e, !0b1000, &cells),
            page(0x203, !0b1000, &[(2, 800 * factor, 0), (4, 12 * factor, 0)]),
            page(0xfff0_0001, !0b1, &[(1, 3, 0)]),
        ]
    };
    model.look(look(1, rules(1), pages(1)));
    model.look(look(2, rules(2), pages(2)));
    for number in 1..=4 {
        event(&mut model, denied(number));
    }
    event(&mut model, json!({"type": "dropped", "events": 1200}));
    let armed = json!({"type": "armed", "rules": ["a rule"], "by": "command", "time": "2026-11-27T17:30:00Z", "since_start": 4.6});
    event(&mut model, armed);
    model
}

/// The view as lines of text, without styles.
fn drawn(model: &Model, theme: Theme, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("memory");
    terminal.draw(|frame| draw(frame.buffer_mut(), model, theme, NOW)).expect("memory");
    text_of(terminal.backend().buffer())
}

fn text_of(buffer: &Buffer) -> String {
    let mut text = String::new();
    for row in buffer.content().chunks(usize::from(buffer.area.width).max(1)) {
        let mut line = String::new();
        let mut cells = row.iter();
        while let Some(cell) = cells.next() {
            line.push_str(cell.symbol());
            // The cells that a wide character covers.
            for _ in 1..cell.symbol().width() {
                cells.next();
            }
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn assert_view(name: &str, text: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/top");
    expect_file![folder.join(name)].assert_eq(text);
}

#[test]
fn every_size_has_its_view() {
    let theme = Theme { color: true, glyphs: Glyphs::Unicode };
    let mut model = model();
    for (width, height) in [(80, 24), (20, 10), (1, 1), (200, 60), (100, 12), (40, 3)] {
        assert_view(&format!("{width}x{height}.txt"), &drawn(&model, theme, width, height));
    }
    press(&mut model, KeyCode::Tab);
    press(&mut model, KeyCode::Right);
    assert_view("pages-40x10.txt", &drawn(&model, theme, 40, 10));
    assert_view("pages-20x10.txt", &drawn(&model, theme, 20, 10));
    press(&mut model, KeyCode::Tab);
    assert_view("events-20x10.txt", &drawn(&model, theme, 20, 10));
}

#[test]
fn what_lies_over_it_fits_every_size() {
    let theme = Theme { color: true, glyphs: Glyphs::Unicode };
    let mut model = model();
    press(&mut model, KeyCode::Char('?'));
    assert_view("help-80x24.txt", &drawn(&model, theme, 80, 24));
    press(&mut model, KeyCode::Esc);
    press(&mut model, KeyCode::Char('x'));
    assert_view("confirm-40x12.txt", &drawn(&model, theme, 40, 12));
    press(&mut model, KeyCode::Esc);
    model.focus = Pane::Events;
    press(&mut model, KeyCode::Down);
    press(&mut model, KeyCode::Down);
    press(&mut model, KeyCode::Enter);
    assert_view("event-60x16.txt", &drawn(&model, theme, 60, 16));
}

/// Any size, any part, anything over it: nothing panics, and nothing harmful is drawn.
#[test]
fn nothing_is_drawn_outside_and_nothing_harmful_inside() {
    let mut model = model();
    let overlays = {
        let mut asked = self::model();
        press(&mut asked, KeyCode::Char('x'));
        [Overlay::None, Overlay::Help, asked.overlay]
    };
    let empty = new();
    for focus in [Pane::Rules, Pane::Pages, Pane::Events] {
        model.focus = focus;
        for overlay in &overlays {
            model.overlay = overlay.clone();
            for (width, height) in
                (0..34).flat_map(|width| (0..24).map(move |height| (width * 5, height)))
            {
                for glyphs in [Glyphs::Unicode, Glyphs::Ascii] {
                    let theme = Theme { color: false, glyphs };
                    let mut buffer = Buffer::empty(Rect::new(0, 0, width, height));
                    draw(&mut buffer, &empty, theme, NOW);
                    draw(&mut buffer, &model, theme, NOW);
                    let text = text_of(&buffer);
                    assert!(!text.replace('\n', "").contains(char::is_control), "{text:?}");
                    assert!(glyphs == Glyphs::Unicode || text.is_ascii(), "{text}");
                }
            }
        }
    }
}

#[test]
fn without_colours_everything_is_still_told() {
    let model = model();
    let theme = Theme { color: false, glyphs: Glyphs::Ascii };
    let mut buffer = Buffer::empty(Rect::new(0, 0, 80, 24));
    draw(&mut buffer, &model, theme, NOW);
    for cell in buffer.content() {
        assert_eq!((cell.fg, cell.bg), (Color::Reset, Color::Reset));
    }
    assert_view("ascii-80x24.txt", &text_of(&buffer));
    // The guarded sub-page is underlined, and crossed, because a write there was denied.
    let row =
        buffer.content().chunks(80).find(|row| text(row).contains("0x10e000")).expect("it is hot");
    let cross = row
        .iter()
        .find(|cell| cell.symbol() == "x" && cell.modifier.contains(Modifier::UNDERLINED));
    assert!(cross.is_some(), "{}", text(row));
}

fn text(row: &[ratatui::buffer::Cell]) -> String {
    row.iter().map(ratatui::buffer::Cell::symbol).collect()
}

#[test]
fn thousands_of_rules_are_a_window_around_the_selected() {
    let mut model = new();
    let rules = |factor| {
        (0..10_000).map(|n| rule(n, &format!("rule {n}"), n * 4096, n * factor, 0)).collect()
    };
    model.look(look(1, rules(1), Vec::new()));
    model.look(look(2, rules(2), Vec::new()));
    let theme = Theme { color: true, glyphs: Glyphs::Unicode };
    let top = drawn(&model, theme, 80, 24);
    assert!(top.contains("Rules 10,000") && top.contains("▸ rule 9999 "), "{top}");
    press(&mut model, KeyCode::End);
    let end = drawn(&model, theme, 80, 24);
    assert!(end.contains("▸ rule 0 "), "{end}");
}

#[test]
fn the_header_tells_what_is_wrong() {
    let theme = Theme::default();
    let header = |model: &Model, now| {
        let mut buffer = Buffer::empty(Rect::new(0, 0, 80, 5));
        draw(&mut buffer, model, theme, Duration::from_secs(now));
        let text = text_of(&buffer);
        let lines: Vec<_> = text.lines().collect();
        (lines[0].to_owned(), lines[4].to_owned())
    };
    let mut model = model();
    assert!(header(&model, 3).0.contains("running  "), "{}", header(&model, 3).0);
    assert!(header(&model, 9).0.contains("silent for 7 s"));
    model.link = Link::Troubled("no answer within 5 s".to_owned());
    assert!(header(&model, 3).0.contains("does not answer"));
    assert!(header(&model, 3).1.contains("no answer within 5 s"));
    model.link = Link::Gone("nobody listens".to_owned());
    assert!(header(&model, 30).0.contains("gone"));
    event(&mut model, json!({"type": "end"}));
    let (first, last) = header(&model, 30);
    assert!(first.contains("ended") && last.contains("the guest has ended"), "{first} {last}");
}

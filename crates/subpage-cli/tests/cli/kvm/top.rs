//! A guest as `top` and the report draw it.

use std::fs;

use iced_x86::code_asm::{byte_ptr, word_ptr};

use super::{DATA, Place, Running, assemble, can_run, exit, harmless};
use crate::top::screen::Screen;

#[test]
fn a_guest_is_drawn_held_stepped_and_freed() {
    if !can_run() {
        return;
    }
    let place = Place::new(&harmless());
    let running = Running::start(&place, &[]);
    let mut top = place.program(&["top", "--interval", "0.1"]);
    top.arg("socket").env("TERM", "xterm-256color").env("LC_ALL", "C.UTF-8");
    let mut screen = Screen::start(&top, 80, 24);
    // Cells are behind the address: the sixteenth is written, and nothing else.
    let is_hot = |line: &str| {
        let cells: Vec<_> = line.chars().skip(14).take(32).collect();
        line.contains("0x200000") && cells[16] != '·' && cells[..16].iter().all(|cell| *cell == '·')
    };
    screen.wait_until("a hot sub-page", |shown| shown.lines().any(is_hot));
    screen.wait_for("running");
    screen.press("p");
    screen.wait_for("socket  held");
    screen.press("s");
    screen.wait_for("one instruction of processor 0: at 0x");
    screen.press("p");
    screen.wait_for("socket  running");
    screen.press("x");
    screen.wait_for("remove the rule helper path");
    screen.press("y");
    screen.wait_for("no rule");
    screen.press("q");
    assert_eq!(screen.end().code(), Some(0));
    let shown = place.ask(&["show"]);
    assert_eq!((&shown["rules"], &shown["state"]), (&serde_json::json!([]), &"running".into()));
    place.ask(&["stop"]);
    assert_eq!(running.end().1, Some(0), "nothing was denied");
}

/// Permitted writes beside a rule's bytes are on no list of events.
#[test]
fn the_report_draws_every_decided_write() {
    if !can_run() {
        return;
    }
    let place = Place::new(&assemble(|code| {
        for _ in 0..5 {
            code.mov(word_ptr(DATA + 0x800), 1)?;
        }
        code.mov(byte_ptr(DATA + 0x81), 1)?;
        exit(code, 0)
    }));
    assert_eq!(place.run(&["--report", "report.html"]).status.code(), Some(3));
    let report = fs::read_to_string(place.path("report.html")).expect("it is written");
    let told = |text: &str| report.contains(text);
    assert!(told("0x200800..0x200880\n5 writes<"), "{report}");
    assert!(told("0x200080..0x200100\n1 write, 1 denied\nguarded by helper path<"), "{report}");
}

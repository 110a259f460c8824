//! Words and cases for people.

use std::fmt::Write as _;

use crate::case::{Case, Mode, Word};
use crate::layout::{self, DATA_PAGES, PAGES, WINDOWS, frame, host};

/// Names a word of the arena and gives its value.
pub(crate) fn word(word: u32, value: u64) -> String {
    format!("{} = {value:#x}", place(word))
}

/// What stands in a word of the arena.
fn place(word: u32) -> String {
    let (number, index) = (word / 512, word % 512);
    let address = host(number) + u64::from(index) * 8;
    let windows = |from: u32| (from..from + WINDOWS).contains(&number);
    let letter = |from: u32| char::from(b'A' + u8::try_from(number - from).unwrap_or(0));
    let page = |name: &str, from: u32| {
        if index < PAGES {
            format!("{name} of page {}{index}", letter(from))
        } else {
            format!("{name} table {}[{index:#x}]", letter(from))
        }
    };
    match number {
        _ if number < DATA_PAGES => format!("data {address:#x}"),
        frame::WINDOW_TABLES..frame::EPT_L4 => {
            format!("guest level {} in page {number} [{index:#x}]", 16 - number)
        }
        frame::EPT_L4 => format!("EPT L4[{index:#x}]"),
        frame::EPT_HARNESS..frame::EPT_L3 => {
            format!("EPT of the harness L{}[{index:#x}]", 3 - (number - frame::EPT_HARNESS))
        }
        frame::EPT_L3 => format!("EPT L3[{index:#x}]"),
        _ if windows(frame::EPT_L2) => format!("EPT L2 {}[{index:#x}]", letter(frame::EPT_L2)),
        _ if windows(frame::EPT_L1) => page("EPT leaf", frame::EPT_L1),
        frame::SPPT_L4 => format!("SPPT L4[{index:#x}]"),
        frame::SPPT_L3 => format!("SPPT L3[{index:#x}]"),
        _ if windows(frame::SPPT_L2) => format!("SPPT L2 {}[{index:#x}]", letter(frame::SPPT_L2)),
        _ if windows(frame::SPPT_L1) => page("SPPT vector", frame::SPPT_L1),
        frame::CODE => format!("code {address:#x}"),
        frame::STACK => format!("stack {address:#x}"),
        frame::DESCRIPTORS => format!("descriptors {address:#x}"),
        frame::SOURCE => format!("source {address:#x}"),
        frame::SCRATCH => format!("scratch {address:#x}"),
        frame::GUEST_L4 => format!("guest L4[{index:#x}]"),
        frame::GUEST_HARNESS..frame::GUEST_TABLES => {
            format!("guest L{} of the harness[{index:#x}]", 3 - (number - frame::GUEST_HARNESS))
        }
        _ if (frame::GUEST_TABLES..frame::GUEST_TABLES + 3).contains(&number) => {
            format!("guest L{}[{index:#x}]", 3 - (number - frame::GUEST_TABLES))
        }
        _ => format!("word {address:#x}"),
    }
}

/// A whole case, a line per store and instruction.
pub(crate) fn case(case: &Case) -> String {
    let mut text = String::new();
    let on = |set| if set { "on" } else { "off" };
    let _ = writeln!(
        text,
        "  SPP control {}, EPT accessed and dirty flags {}, CR3 {:#x}",
        on(case.sub_page),
        on(case.accessed_dirty),
        case.cr3
    );
    let _ = writeln!(
        text,
        "  page A0 is guest-physical {:#x}, page B0 {:#x}; linear page 0 is {:#x}",
        layout::window(0, 0),
        layout::window(1, 0),
        layout::linear(0)
    );
    stores(&mut text, &case.stores);
    for (number, step) in case.steps.iter().enumerate() {
        let _ = writeln!(text, "  step {number}{}", mode(step.mode));
        stores(&mut text, &step.stores);
        for instruction in &step.instructions {
            let _ = writeln!(text, "    {instruction}");
        }
    }
    text
}

/// What a step's mode has beyond the usual one.
fn mode(mode: Mode) -> String {
    let names = [
        (mode.user, "CPL 3"),
        (!mode.write_protect, "CR0.WP = 0"),
        (mode.smep, "SMEP"),
        (mode.smap, "SMAP"),
        (mode.alignment_check, "RFLAGS.AC"),
    ];
    let names: Vec<_> = names.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
    if names.is_empty() { String::new() } else { format!(" with {}", names.join(", ")) }
}

fn stores(text: &mut String, words: &[Word]) {
    for (at, value) in words {
        let _ = writeln!(text, "    {}", word(*at, *value));
    }
}

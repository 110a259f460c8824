//! Colours and characters by meaning, for terminals with and without.

use ratatui::style::{Color, Modifier, Style};

use crate::heat::class_of;
use crate::terminal::Glyphs;
use crate::top::model::Tone;

/// What a terminal can show.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Theme {
    /// Colours, of the terminal's own sixteen, so that its theme decides; without them nothing is told
    /// by colour alone.
    pub(crate) color: bool,
    pub(crate) glyphs: Glyphs,
}

#[allow(
    clippy::unused_self,
    reason = "how something looks is asked of the theme, whatever it is by"
)]
impl Theme {
    fn colored(self, color: Color) -> Style {
        if self.color { Style::new().fg(color) } else { Style::new() }
    }

    pub(super) fn heading(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    pub(super) fn quiet(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    pub(super) fn name(self) -> Style {
        self.colored(Color::Cyan)
    }

    pub(super) fn tone(self, tone: Tone) -> Style {
        match tone {
            Tone::Bad => self.colored(Color::Red).add_modifier(Modifier::BOLD),
            Tone::Noted => self.colored(Color::Yellow).add_modifier(Modifier::BOLD),
            Tone::Good => self.colored(Color::Green).add_modifier(Modifier::BOLD),
            Tone::Quiet => self.quiet(),
        }
    }

    /// The title of the pane that has the keys.
    pub(super) fn focused(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD | Modifier::REVERSED)
    }

    /// What is selected.
    pub(super) fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// A cell of the heat map: a character and how it looks. `denied`: whether a write there ever was, and
    /// whether one just was.
    pub(super) fn cell(self, heat: u64, denied: (bool, bool), guarded: bool) -> (char, Style) {
        const HEAT: [Color; 7] = [
            Color::DarkGray,
            Color::Blue,
            Color::Cyan,
            Color::Green,
            Color::Yellow,
            Color::LightMagenta,
            Color::White,
        ];
        let (character, style) = match (denied, self.glyphs) {
            ((true, just), glyphs) => {
                let style = if just { self.tone(Tone::Bad) } else { self.colored(Color::Red) };
                (if glyphs == Glyphs::Unicode { '×' } else { 'x' }, style)
            }
            ((false, _), glyphs) => (glyphs.of(heat), self.colored(HEAT[class_of(heat)])),
        };
        let mark = if guarded { Modifier::UNDERLINED } else { Modifier::empty() };
        (character, style.add_modifier(mark))
    }

    /// A line between parts.
    pub(super) fn rule(self) -> char {
        match self.glyphs {
            Glyphs::Unicode => '─',
            Glyphs::Ascii => '-',
        }
    }

    /// What marks the selected row.
    pub(super) fn marker(self) -> &'static str {
        match self.glyphs {
            Glyphs::Unicode => "▸",
            Glyphs::Ascii => ">",
        }
    }
}

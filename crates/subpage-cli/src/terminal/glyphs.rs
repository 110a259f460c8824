//! Counts as single characters: how hot something is.

use crate::heat::class_of;

/// What a terminal can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Glyphs {
    /// Bars of block characters.
    #[default]
    Unicode,
    /// Digits: how many digits the count has.
    Ascii,
}

impl Glyphs {
    /// By the locale, as `LC_ALL`, `LC_CTYPE` and `LANG` give it: the first that is not empty counts.
    pub fn of_locale(variables: [Option<&str>; 3]) -> Self {
        let locale = variables.into_iter().flatten().find(|value| !value.is_empty());
        let locale = locale.unwrap_or_default().to_ascii_lowercase();
        if locale.contains("utf-8") || locale.contains("utf8") {
            Self::Unicode
        } else {
            Self::Ascii
        }
    }

    /// A character for a count: none, then one for each power of ten, the last open.
    pub const fn of(self, count: u64) -> char {
        const BARS: [char; 7] = ['·', '▁', '▂', '▃', '▅', '▆', '█'];
        const DIGITS: [char; 7] = ['.', '1', '2', '3', '4', '5', '6'];
        match self {
            Self::Unicode => BARS[class_of(count)],
            Self::Ascii => DIGITS[class_of(count)],
        }
    }

    /// What the characters mean.
    pub const fn legend(self) -> &'static str {
        match self {
            Self::Unicode => "▁ 1 or more, ▂ 10, ▃ 100, ▅ 1,000, ▆ 10,000, █ 100,000",
            Self::Ascii => "1: one digit, 2: two digits (10 or more), and so on to 6 or more",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_power_of_ten_has_a_character_of_its_own() {
        let of = |glyphs: Glyphs| {
            [0, 1, 9, 10, 99, 100, 1000, 10_000, 99_999, 100_000, u64::MAX]
                .map(|count| glyphs.of(count))
                .iter()
                .collect::<String>()
        };
        assert_eq!(of(Glyphs::Unicode), "·▁▁▂▂▃▅▆▆██");
        assert_eq!(of(Glyphs::Ascii), ".1122345566");
    }

    #[test]
    fn the_first_variable_that_is_set_decides() {
        let of = Glyphs::of_locale;
        assert_eq!(of([None, None, Some("en_US.UTF-8")]), Glyphs::Unicode);
        assert_eq!(of([Some(""), Some("C.utf8"), Some("C")]), Glyphs::Unicode);
        assert_eq!(of([Some("C"), None, Some("en_US.UTF-8")]), Glyphs::Ascii);
        assert_eq!(of([None, None, None]), Glyphs::Ascii);
    }
}

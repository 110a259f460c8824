//! Text from files, made harmless for a terminal.

use std::borrow::Cow;

/// The text with control characters, direction overrides and characters without a width written as
/// escapes (`\u{1b}`).
///
/// Names come from policies, traces and ELF files, which may be hostile; without this a name could
/// move the cursor, recolour the screen or hide a line.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_harmful(character) {
            safe.extend(character.escape_default());
        } else {
            safe.push(character);
        }
    }
    Cow::Owned(safe)
}

/// Control characters, Unicode's line separators, what changes the direction of text, and what is not
/// seen at all: with the last, two names that look the same are not.
pub(super) fn is_harmful(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harmless_text_is_not_copied() {
        assert!(matches!(printable("modprobe_path é 漢"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_terminal_sees_no_control_character() {
        assert_eq!(printable("a\x1b[2Jb\n\u{9b}c"), "a\\u{1b}[2Jb\\n\\u{9b}c");
        assert_eq!(printable("x\u{202e}y"), "x\\u{202e}y");
        assert_eq!(printable("x\u{200b}\u{feff}y"), "x\\u{200b}\\u{feff}y");
        for code in 0..=0x2100 {
            if let Some(character) = char::from_u32(code) {
                assert!(!printable(&character.to_string()).contains(char::is_control));
            }
        }
    }
}

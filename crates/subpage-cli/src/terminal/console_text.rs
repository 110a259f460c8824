//! What a guest prints, as text that cannot pass for anything else.

use anstream::adapter::StripBytes;

use super::printable::is_harmful;

/// Longest escape sequence in bytes that is left out. A longer one is shown: a sequence without an end
/// would silence the console for good.
const LONGEST_ESCAPE: usize = 256;

/// Makes text out of what a guest's serial port sends: printable characters, tabs and ends of lines.
///
/// Escape sequences are left out, other harmful characters are written as escapes, as in names. A
/// carriage return within a line begins a new one: what follows would be seen in place of the mark at
/// the start of the line.
pub(super) struct ConsoleText {
    escapes: StripBytes,
    /// Bytes that were left out since the last that was not.
    hidden: usize,
    /// The first bytes of a character.
    character: Vec<u8>,
    /// There was a carriage return, and what it means is not known yet.
    returned: bool,
    /// Something is in the line.
    in_line: bool,
}

impl ConsoleText {
    pub(super) fn new() -> Self {
        Self {
            escapes: StripBytes::new(),
            hidden: 0,
            character: Vec::new(),
            returned: false,
            in_line: false,
        }
    }

    /// Adds what `bytes` amount to to `text`.
    pub(super) fn push(&mut self, bytes: &[u8], text: &mut String) {
        for &byte in bytes {
            if byte == b'\n' {
                self.end_line(text);
                continue;
            }
            let mut shown = [0; 4];
            let mut count = 0;
            for &byte in self.escapes.strip_next(&[byte]).flatten() {
                shown[count] = byte;
                count += 1;
            }
            self.hidden = if count > 0 { 0 } else { self.hidden + 1 };
            if self.hidden > LONGEST_ESCAPE {
                self.escapes = StripBytes::new();
                self.hidden = 0;
            }
            for &byte in &shown[..count] {
                self.byte(byte, text);
            }
        }
    }

    fn byte(&mut self, byte: u8, text: &mut String) {
        if byte == b'\r' {
            self.returned = self.in_line;
            return;
        }
        if self.returned {
            self.end_line(text);
        }
        self.in_line = true;
        self.character.push(byte);
        match std::str::from_utf8(&self.character) {
            Ok(whole) => {
                whole.chars().for_each(|character| show(character, text));
                self.character.clear();
            }
            // It may still become one.
            Err(error) if error.error_len().is_none() => {}
            Err(_) => {
                text.push(char::REPLACEMENT_CHARACTER);
                let begins_anew = self.character.len() > 1;
                self.character.clear();
                if begins_anew {
                    self.byte(byte, text);
                }
            }
        }
    }

    fn end_line(&mut self, text: &mut String) {
        if !self.character.is_empty() {
            self.character.clear();
            text.push(char::REPLACEMENT_CHARACTER);
        }
        text.push('\n');
        // No sequence goes beyond a line.
        *self = Self::new();
    }
}

fn show(character: char, text: &mut String) {
    if character == '\t' || !is_harmful(character) {
        text.push(character);
    } else {
        text.extend(character.escape_default());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(bytes: &[u8]) -> String {
        let (mut console, mut text) = (ConsoleText::new(), String::new());
        // Byte by byte, as a serial port sends them.
        for &byte in bytes {
            console.push(&[byte], &mut text);
        }
        text
    }

    #[test]
    fn a_guest_does_not_reach_the_terminal() {
        for (sent, shown) in [
            ("\u{1b}[2J\u{1b}]0;title\u{7}ok \u{1b}[31mred\u{1b}[0m é\u{8}\u{7}\n", "ok red é\n"),
            ("a\tb\r\nc\r\r\n", "a\tb\nc\n"),
            ("kept\rdenied", "kept\ndenied"),
            ("\r\r\rx", "x"),
            ("a\u{202e}b\u{200b}c\u{2028}d\u{85}", "a\\u{202e}b\\u{200b}c\\u{2028}d\\u{85}"),
        ] {
            assert_eq!(text(sent.as_bytes()), shown, "{sent:?}");
        }
        // What is no text spoils its line at most.
        for bytes in [&b"\xff"[..], b"\xc3", b"\xe2\x82", b"\xf0\x9f"] {
            let shown = text(&[bytes, b"\nfine\n"].concat());
            assert!(shown.ends_with("\nfine\n"), "{shown:?}");
        }
    }

    #[test]
    fn a_sequence_without_end_does_not_silence_the_console() {
        for begin in ["\u{1b}]0;", "\u{1b}P", "\u{1b}_", "\u{1b}[", "\u{1b}X", "\u{1b}^"] {
            let shown = text(format!("{begin}hidden\nseen\n").as_bytes());
            assert!(shown.ends_with("\nseen\n"), "{begin:?}: {shown:?}");
            let long = format!("{begin}{}seen", "; ".repeat(LONGEST_ESCAPE));
            let shown = text(long.as_bytes());
            assert!(shown.ends_with("seen"), "{begin:?}: {shown:?}");
        }
    }

    proptest! {
        /// Whatever is sent, nothing but text comes out, in any pieces the same.
        #[test]
        fn only_text_comes_out(bytes: Vec<u8>, at: prop::sample::Index) {
            let (mut console, mut pieces) = (ConsoleText::new(), String::new());
            let (first, second) = bytes.split_at(at.index(bytes.len() + 1));
            console.push(first, &mut pieces);
            console.push(second, &mut pieces);
            prop_assert!(pieces.chars().all(|it| matches!(it, '\n' | '\t') || !is_harmful(it)));
            prop_assert_eq!(pieces, text(&bytes));
        }
    }
}

//! Numbers and ranges written as text.

use std::ops::Range;

/// A whole number: decimal, or `0x`, `0o`, `0b`; underscores between digits; a leading `-`.
///
/// `None` for everything else and beyond 128 bits.
pub fn parse_number(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.get(..2) {
        Some("0x") => (16, &lower[2..]),
        Some("0o") => (8, &lower[2..]),
        Some("0b") => (2, &lower[2..]),
        _ => (10, lower.as_str()),
    };
    // from_str_radix would accept a second sign.
    if !digits.starts_with(|c: char| c.is_digit(radix)) || digits.ends_with('_') {
        return None;
    }
    let magnitude = i128::from_str_radix(&digits.replace('_', ""), radix).ok()?;
    Some(if negative { -magnitude } else { magnitude })
}

/// `START..END`, the end not included, both below 2^64, in any notation of [`parse_number`].
///
/// `Err` says in words what is wrong. An empty or backward range is returned as it is written.
pub fn parse_address_range(text: &str) -> Result<Range<u64>, String> {
    let Some((start, end)) = text.split_once("..") else {
        return Err("there is no `..` between a start and an end".to_owned());
    };
    let parse = |part: &str, what: &str| {
        let part = part.trim();
        parse_number(part)
            .and_then(|number| u64::try_from(number).ok())
            .ok_or_else(|| format!("the {what} `{part}` is not a number from 0 to 2^64 - 1"))
    };
    Ok(parse(start, "start")?..parse(end, "end")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_every_notation() {
        for (text, number) in [
            ("0", 0),
            ("4096", 4096),
            ("0x1000", 4096),
            ("0X1fFf", 8191),
            ("0b101", 5),
            ("0o17", 15),
            ("1_000", 1000),
            ("-0x80", -128),
        ] {
            assert_eq!(parse_number(text), Some(number), "{text}");
        }
        for text in ["", "-", "0x", "--1", "0x-1", "+1", "1.5", "0xg", " 1", "_1", "1_", "9é"] {
            assert_eq!(parse_number(text), None, "{text}");
        }
        assert_eq!(parse_number(&"9".repeat(100)), None);
    }

    #[test]
    fn ranges_say_what_is_wrong() {
        assert_eq!(parse_address_range("0x1000..0x1080"), Ok(0x1000..0x1080));
        assert_eq!(parse_address_range("16 .. 32"), Ok(16..32));
        assert!(parse_address_range("0x1000-0x1080").is_err_and(|e| e.contains("..")));
        assert!(parse_address_range("x..0x1080").is_err_and(|e| e.contains("start `x`")));
        assert!(parse_address_range("1..=5").is_err_and(|e| e.contains("end `=5`")));
        assert!(parse_address_range("-1..5").is_err_and(|e| e.contains("start `-1`")));
    }
}

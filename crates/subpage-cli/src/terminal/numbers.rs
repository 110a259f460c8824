//! Numbers as people read them.

use std::fmt::Write;

/// A count with a comma between thousands: `1,234,567`.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The noun as it stands behind a count: `page`, `pages`; `process`, `processes`.
pub fn plural(count: u64, noun: &str) -> String {
    match count {
        1 => noun.to_owned(),
        _ if noun.ends_with('s') => format!("{noun}es"),
        _ => format!("{noun}s"),
    }
}

/// A length in bytes with a binary unit and at most one decimal: `128 B`, `1.5 KiB`, `3 MiB`.
///
/// Rounded down, so that a length just below a unit is not shown as that unit.
pub fn bytes(length: u64) -> String {
    const UNITS: [(u64, &str); 4] =
        [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    for (unit, name) in UNITS {
        if length >= unit {
            let tenths = u128::from(length) * 10 / u128::from(unit);
            let mut text = grouped(u64::try_from(tenths / 10).unwrap_or(u64::MAX));
            if tenths % 10 != 0 {
                let _ = write!(text, ".{}", tenths % 10);
            }
            return format!("{text} {name}");
        }
    }
    format!("{length} B")
}

/// How many times `more` is `fewer`, or why there is no such number.
///
/// Three significant digits below 100, whole numbers above: `1.25×`, `12.5×`, `1,234×`.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub fn ratio(more: u64, fewer: u64) -> String {
    match (more, fewer) {
        (0, 0) => "none either way".to_owned(),
        (_, 0) => "all avoided".to_owned(),
        _ => {
            let ratio = more as f64 / fewer as f64;
            if ratio < 9.995 {
                format!("{ratio:.2}×")
            } else if ratio < 99.95 {
                format!("{ratio:.1}×")
            } else {
                format!("{}×", grouped(ratio.round() as u64))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        for (count, text) in
            [(0, "0"), (999, "999"), (1000, "1,000"), (123456, "123,456"), (1234567, "1,234,567")]
        {
            assert_eq!(grouped(count), text);
        }
        assert_eq!(grouped(u64::MAX), "18,446,744,073,709,551,615");
    }

    #[test]
    fn one_is_no_plural() {
        let nouns = |count| ["page", "process"].map(|noun| plural(count, noun));
        assert_eq!(nouns(1), ["page", "process"]);
        assert_eq!(nouns(0), ["pages", "processes"]);
        assert_eq!(nouns(21), ["pages", "processes"]);
    }

    #[test]
    fn lengths_have_units() {
        for (length, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1,023.9 KiB"),
            (3 << 20, "3 MiB"),
            (1 << 48, "256 TiB"),
        ] {
            assert_eq!(bytes(length), text);
        }
    }

    #[test]
    fn a_ratio_without_divisor_is_said_in_words() {
        assert_eq!(ratio(0, 0), "none either way");
        assert_eq!(ratio(5, 0), "all avoided");
        assert_eq!(ratio(5, 4), "1.25×");
        assert_eq!(ratio(50, 4), "12.5×");
        assert_eq!(ratio(1_234_000, 1000), "1,234×");
        assert_eq!(ratio(1, 4), "0.25×");
    }
}

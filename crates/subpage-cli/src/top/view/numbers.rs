//! Numbers in few columns.

use crate::terminal::grouped;
use crate::top::model::Count;

/// A count in at most seven columns: `99,999`, `123k`, `1.2M`.
pub(super) fn count(count: u64) -> String {
    const UNITS: [(u64, char); 6] = [
        (1_000_000_000_000_000_000, 'E'),
        (1_000_000_000_000_000, 'P'),
        (1_000_000_000_000, 'T'),
        (1_000_000_000, 'G'),
        (1_000_000, 'M'),
        (1_000, 'k'),
    ];
    if count < 100_000 {
        return grouped(count);
    }
    let (unit, name) =
        UNITS.into_iter().find(|(unit, _)| count >= *unit).expect("a thousand or more");
    let (whole, tenth) = (count / unit, count % unit * 10 / unit);
    if whole < 10 { format!("{whole}.{tenth}{name}") } else { format!("{whole}{name}") }
}

/// A rate in at most seven columns; a dash if there is none yet.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
pub(super) fn rate(counted: Count) -> String {
    match counted.rate {
        None => "-".to_owned(),
        Some(rate) if rate > 0.0 && rate < 0.1 => "<0.1".to_owned(),
        Some(rate) if rate > 0.0 && rate < 9.95 => format!("{rate:.1}"),
        Some(rate) => count(rate.round() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_never_too_large() {
        for (number, text) in [
            (0, "0"),
            (99_999, "99,999"),
            (100_000, "100k"),
            (1_290_000, "1.2M"),
            (12_900_000, "12M"),
            (999_999_999, "999M"),
            (u64::MAX, "18E"),
        ] {
            assert_eq!(count(number), text);
        }
        for (per_second, text) in
            [(0.0, "0"), (0.04, "<0.1"), (0.25, "0.2"), (9.96, "10"), (1234.4, "1,234")]
        {
            assert_eq!(rate(Count { total: 0, rate: Some(per_second) }), text);
        }
        assert_eq!(rate(Count::first(7)), "-");
    }
}

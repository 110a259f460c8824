//! Numbers, sizes and ranges as they are written on the command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{PathBufValueParser, TypedValueParser};
use parse_size::{ByteSuffix, Config};
use subpage::address::{GPA_BITS, Gpa};
#[cfg(feature = "kvm")]
use subpage_kvm::control::protocol::RuleRef;
#[cfg(feature = "kvm")]
pub(super) use subpage_kvm::vcpu::FeatureChoice;

use crate::policy::parse_number;

/// A path of a file, which standard input or output cannot stand in for.
pub(super) fn file() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| {
        if path == Path::new("-") {
            return Err("no standard stream fits here: name a file (`./-`, if it is called so)");
        }
        Ok(path)
    })
}

/// What is chosen of a processor that there is not.
#[cfg(not(feature = "kvm"))]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeatureChoice {}

/// Features of the processor: at least one.
#[cfg(feature = "kvm")]
pub(super) fn parse_features(text: &str) -> Result<FeatureChoice, String> {
    if text.split(',').any(|word| word.trim().is_empty()) {
        return Err("a name is empty: write for example `-avx,cx16`".to_owned());
    }
    text.parse().map_err(|error: subpage_kvm::vcpu::FeatureError| error.to_string())
}

/// None where there is no processor.
#[cfg(not(feature = "kvm"))]
pub(super) fn parse_features(_: &str) -> Result<FeatureChoice, &'static str> {
    Err(crate::guard::NO_VMM)
}

/// A length in bytes with powers of 1024: `128M`, `2G`, `1.5GiB`; without a unit, bytes.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    Config::new()
        .with_binary()
        .with_byte_suffix(ByteSuffix::Allow)
        .parse_size(text)
        .map_err(|error| format!("{error}; write for example 128M or 2G"))
}

/// A guest-physical address, in any notation of [`parse_number`].
pub(super) fn parse_gpa(text: &str) -> Result<u64, String> {
    parse_unsigned(text).and_then(|address| {
        Gpa::try_new(address).map_err(|_| {
            format!("a guest-physical address has at most {GPA_BITS} bits: below 0x1000000000000")
        })?;
        Ok(address)
    })
}

/// A number from 0 to 2^64 - 1, in any notation of [`parse_number`].
pub(super) fn parse_unsigned(text: &str) -> Result<u64, String> {
    parse_number(text)
        .and_then(|number| u64::try_from(number).ok())
        .ok_or_else(|| "not a number from 0 to 2^64 - 1; hexadecimal ones begin with 0x".to_owned())
}

/// An access map: 32 bits in hexadecimal, with or without `0x`. Bit i set: sub-page i may be written.
#[cfg(feature = "kvm")]
pub(super) fn parse_map(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    // from_str_radix would accept a sign.
    if digits.starts_with(|first: char| first.is_ascii_hexdigit())
        && let Ok(map) = u32::from_str_radix(digits, 16)
    {
        return Ok(map);
    }
    Err("an access map has 1 to 8 hexadecimal digits, for example fffffff7; bit i set: sub-page i \
         may be written"
        .to_owned())
}

/// A rule by its number, if the text is one in decimal, else by its name.
#[cfg(feature = "kvm")]
#[allow(clippy::unnecessary_wraps, reason = "the signature that clap calls")]
pub(super) fn parse_rule(text: &str) -> Result<RuleRef, String> {
    let number = text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok());
    Ok(number.flatten().map_or_else(|| RuleRef::Name(text.to_owned()), RuleRef::Number))
}

/// The longest time that can be asked for.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// A time from a millisecond to a day, in seconds with an optional fraction.
pub(super) fn parse_seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|time| (Duration::from_millis(1)..=LONGEST).contains(time))
        .ok_or_else(|| "not a number of seconds from 0.001 to 86400, a day".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_units_of_1024() {
        for (text, bytes) in [
            ("128M", 128 << 20),
            ("2G", 2 << 30),
            ("2g", 2 << 30),
            ("4096", 4096),
            ("512k", 512 << 10),
            ("1.5GiB", 3 << 29),
            ("1 MB", 1 << 20),
            ("0", 0),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "-1M", "1X", "1MM", "999999999999G", "é"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_have_an_end() {
        assert_eq!(parse_gpa("0x10_0000"), Ok(0x10_0000));
        assert_eq!(parse_gpa("0xffffffffffff"), Ok((1 << 48) - 1));
        for text in ["0x1000000000000", "-1", "", "0xfffffffffffffffff"] {
            assert!(parse_gpa(text).is_err(), "{text}");
        }
    }

    #[cfg(feature = "kvm")]
    #[test]
    fn maps_are_hexadecimal() {
        assert_eq!(parse_map("fffffff7"), Ok(0xffff_fff7));
        assert_eq!(parse_map("0xFF"), Ok(0xff));
        assert_eq!(parse_map("0"), Ok(0));
        for text in ["", "0x", "1ffffffff", "+f", "-1", "0x0xf", "g"] {
            assert!(parse_map(text).is_err(), "{text}");
        }
    }

    #[cfg(feature = "kvm")]
    #[test]
    fn a_rule_is_a_number_or_a_name() {
        assert_eq!(parse_rule("7"), Ok(RuleRef::Number(7)));
        assert_eq!(parse_rule("helper path"), Ok(RuleRef::Name("helper path".to_owned())));
        for name in ["18446744073709551616", "+7", "0x7", ""] {
            assert_eq!(parse_rule(name), Ok(RuleRef::Name(name.to_owned())));
        }
    }

    #[test]
    fn times_are_above_zero_and_no_longer_than_a_day() {
        assert_eq!(parse_seconds("2"), Ok(Duration::from_secs(2)));
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["0", "-1", "", "NaN", "inf", "1e30", "1e19", "86401", "1s", "0.0000001"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }
}

//! Addresses and bytes as text.

use core::fmt;

/// A number as text, `0x` and lower-case digits: JSON readers keep only 53 bits of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address(pub u64);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Bytes as text, two lower-case digits each, in the order of their addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digits<'a>(pub &'a [u8]);

impl fmt::Display for Digits<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Bytes for people, as digits and as ASCII, where a dot stands for what cannot be printed:
/// `2f 74 6d 70 |/tmp|`. After the first 16, `…` stands for the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dump<'a>(pub &'a [u8]);

/// Most bytes that a [`Dump`] shows.
const SHOWN_BYTES: usize = 16;

impl fmt::Display for Dump<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;

        let shown = &self.0[..self.0.len().min(SHOWN_BYTES)];
        for byte in shown {
            write!(f, "{byte:02x} ")?;
        }
        f.write_char('|')?;
        for &byte in shown {
            let is_shown = byte.is_ascii_graphic() || byte == b' ';
            f.write_char(if is_shown { char::from(byte) } else { '.' })?;
        }
        f.write_char('|')?;
        if shown.len() < self.0.len() { f.write_char('…') } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::ToString;

    use super::*;

    #[test]
    fn bytes_are_shown_as_digits_and_characters() {
        assert_eq!(Dump(b"/tmp").to_string(), "2f 74 6d 70 |/tmp|");
        let hostile = Dump(&[0x1b, b'[', b' ', 0x7f, 0xc3, 0xa4, b'\n', 0]);
        assert_eq!(hostile.to_string(), "1b 5b 20 7f c3 a4 0a 00 |.[ .....|");
        let sixteen = Dump(b"0123456789abcdef").to_string();
        assert!(sixteen.ends_with("66 |0123456789abcdef|"), "{sixteen}");
        let more = Dump(&[b'a'; 512]).to_string();
        assert!(more.ends_with("61 |aaaaaaaaaaaaaaaa|…"), "{more}");
        assert_eq!(more.matches("61").count(), 16);
        assert_eq!(Dump(&[]).to_string(), "||");
    }
}

#[cfg(feature = "record")]
mod json {
    use std::string::String;

    use serde::de::{Error, Unexpected};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Address, Digits};

    impl Serialize for Address {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_str(self)
        }
    }

    #[cfg(feature = "schema")]
    impl schemars::JsonSchema for Address {
        fn schema_name() -> std::borrow::Cow<'static, str> {
            "Address".into()
        }

        fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
            schemars::json_schema!({
                "type": "string",
                "pattern": "^0x[0-9a-f]{1,16}$",
            })
        }
    }

    impl<'de> Deserialize<'de> for Address {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let text = String::deserialize(deserializer)?;
            let digits = text.strip_prefix("0x").filter(|digits| !digits.starts_with('+'));
            digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()).map(Self).ok_or_else(
                || D::Error::invalid_value(Unexpected::Str(&text), &"an address as 0x1000"),
            )
        }
    }

    impl Serialize for Digits<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_str(self)
        }
    }
}

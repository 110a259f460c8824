//! Times as text.

use core::fmt;
use core::str::FromStr;
use std::string::String;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A time since 1970 UTC, as text by RFC 3339 in UTC with six digits of a second, cut and not rounded:
/// `2025-11-27T04:00:00.123456Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    seconds: u64,
    microseconds: u32,
}

/// The first second of the year 10000, which RFC 3339 cannot name.
const END: u64 = 253_402_300_800;

impl Timestamp {
    /// The time so long after the first moment of 1970, UTC; `None` from the year 10000 on.
    pub fn from_unix(time: Duration) -> Option<Self> {
        let (seconds, microseconds) = (time.as_secs(), time.subsec_micros());
        (seconds < END).then_some(Self { seconds, microseconds })
    }

    /// The time by the host's clock; 1970 if that is wrong by thousands of years.
    pub fn now() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok();
        now.and_then(Self::from_unix).unwrap_or_default()
    }

    /// How long after the first moment of 1970, UTC.
    pub const fn unix(self) -> Duration {
        Duration::new(self.seconds, self.microseconds * 1000)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = i64::try_from(self.seconds).expect("a year of four digits");
        let time = OffsetDateTime::from_unix_timestamp(seconds).expect("a year of four digits");
        let (year, month, day) = time.to_calendar_date();
        let (hour, minute, second) = time.to_hms();
        write!(f, "{year:04}-{:02}-{day:02}", u8::from(month))?;
        write!(f, "T{hour:02}:{minute:02}:{second:02}.{:06}Z", self.microseconds)
    }
}

impl FromStr for Timestamp {
    type Err = &'static str;

    /// A time by RFC 3339, of any offset.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| "not a time by RFC 3339")?;
        let seconds = u64::try_from(time.unix_timestamp()).map_err(|_| "a time before 1970")?;
        let time = Duration::new(seconds, time.nanosecond());
        Self::from_unix(time).ok_or("a time after the year 9999")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|_| {
            D::Error::invalid_value(Unexpected::Str(&text), &"a time since 1970 by RFC 3339")
        })
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Timestamp {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Timestamp".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "format": "date-time",
            "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[.][0-9]{6}Z$",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    /// The texts are those of `date -u -d @SECONDS +%FT%T.%6NZ`.
    #[test]
    fn times_are_texts_of_one_length() {
        for (time, text) in [
            (Duration::ZERO, "1970-01-01T00:00:00.000000Z"),
            (Duration::from_micros(1_764_216_000_123_456), "2025-11-27T04:00:00.123456Z"),
            (Duration::new(951_782_400, 999), "2000-02-29T00:00:00.000000Z"),
            (Duration::new(253_402_300_799, 999_999_999), "9999-12-31T23:59:59.999999Z"),
        ] {
            let stamp = Timestamp::from_unix(time).expect("a year of four digits");
            assert_eq!(stamp.to_string(), text);
            assert_eq!(text.parse(), Ok(stamp));
        }
        assert_eq!(Timestamp::from_unix(Duration::from_secs(END)), None);
        assert_eq!(Timestamp::from_unix(Duration::MAX), None);
    }

    #[test]
    fn a_time_of_another_zone_is_read_and_nothing_else() {
        let noon = "2025-11-27T12:00:00.5Z".parse::<Timestamp>().expect("a time");
        assert_eq!("2025-11-27T14:30:00.500+02:30".parse(), Ok(noon));
        for wrong in [
            "",
            "now",
            "1764216000.123456",
            "2025-11-27",
            "2025-11-27T12:00:00",
            "2025-02-30T12:00:00Z",
            "1969-12-31T23:59:59Z",
            "10000-01-01T00:00:00Z",
            "9999-12-31T23:59:59-01:00",
            "2025-11-27T12:00:00Z ",
        ] {
            assert!(wrong.parse::<Timestamp>().is_err(), "{wrong}");
        }
    }
}

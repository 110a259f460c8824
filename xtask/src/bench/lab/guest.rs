//! What the lines of `subpage guard --json` tell of one Linux guest.

use std::time::Duration;

use serde_json::Value;

/// Before each line of a guest's console.
const CONSOLE: &str = "guest| ";

/// The first thing that the guest's first program prints.
const FIRST: &str = "# work ";

/// The first thing that it prints behind that, when the work is done.
const WORKED: &str = "work: ";

/// A guest, as far as it has come.
#[derive(Debug, Default)]
pub(super) struct Guest {
    /// The emulator's processor time when the guest started, when its first program printed something,
    /// which is the beginning of its work, and when it had worked.
    started: Option<Duration>,
    first_program: Option<Duration>,
    worked: Option<Duration>,
    summary: Option<Value>,
}

/// What a guest that came to its end gives.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Measured {
    /// From its kernel's entry to its first program, in seconds of the emulator's processor time.
    pub(super) boot: f64,
    /// Its workload, likewise.
    pub(super) work: f64,
    pub(super) exits: u64,
    pub(super) seconds: f64,
    pub(super) rules: Vec<RuleCost>,
}

/// What a rule cost in one run.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct RuleCost {
    pub(super) name: String,
    pub(super) exits: u64,
    pub(super) alone: u64,
    pub(super) sub_page: u64,
    pub(super) own: u64,
    pub(super) denied: u64,
    pub(super) per_second: f64,
    pub(super) page: String,
}

impl Guest {
    /// A line of the host, with what tells the emulator's processor time.
    pub(super) fn line(&mut self, line: &str, now: impl Fn() -> Duration) {
        let line = line.trim_end_matches('\r');
        if let Some(text) = line.strip_prefix(CONSOLE) {
            if text.starts_with(FIRST) {
                self.first_program.get_or_insert_with(now);
            } else if text.starts_with(WORKED) {
                self.worked.get_or_insert_with(now);
            }
            return;
        }
        let Ok(event) = serde_json::from_str::<Value>(line) else { return };
        match event["type"].as_str() {
            Some("start") => self.started = Some(now()),
            Some("summary") => self.summary = Some(event),
            _ => {}
        }
    }

    /// What was measured, or how far it came.
    pub(super) fn measured(&self) -> Result<Measured, String> {
        let Some(started) = self.started else { return Err("it did not start".into()) };
        let ending = |default: &str| {
            let told = self.summary.as_ref().and_then(|summary| summary["ending_message"].as_str());
            told.unwrap_or(default).to_owned()
        };
        let Some(first) = self.first_program else {
            return Err(format!("its first program said nothing: {}", ending("it was cut off")));
        };
        let (Some(worked), Some(summary)) = (self.worked, &self.summary) else {
            return Err(format!("its work came to no end: {}", ending("it was cut off")));
        };
        let rules = summary["rules"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(Measured {
            boot: first.saturating_sub(started).as_secs_f64(),
            work: worked.saturating_sub(first).as_secs_f64(),
            exits: summary["exits_page"].as_u64().unwrap_or_default(),
            seconds: summary["elapsed_seconds"].as_f64().unwrap_or_default(),
            rules: rules.iter().map(rule).collect(),
        })
    }
}

fn rule(rule: &Value) -> RuleCost {
    let count = |key: &str| rule[key].as_u64().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    RuleCost {
        name: text(&rule["name"]),
        exits: count("exits"),
        alone: count("exits_alone"),
        sub_page: count("checked"),
        own: count("overruled") + count("logged") + count("denied"),
        denied: count("denied"),
        per_second: rule["exits_per_second"].as_f64().unwrap_or_default(),
        page: text(&rule["hottest_page"]["page"]),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The lines of a guest that boots and works in so many seconds, with the exits of two rules.
    pub(in super::super) fn guest(boot: u64, work: u64, exits: [u64; 2]) -> Guest {
        let mut guest = Guest::default();
        let at = |seconds| move || Duration::from_secs(seconds);
        guest.line(r#"{"v":1,"type":"start","guest":"/lab/vmlinuz"}"#, at(10));
        guest.line("guest| # work 100\r", at(10 + boot));
        guest.line("guest| work: 100 rounds in 1234 us\r", at(10 + boot + work));
        guest.line("guest| # poweroff", at(501));
        let rule = |name: &str, exits: u64| {
            serde_json::json!({
                "name": name, "exits": exits, "exits_alone": exits, "exits_per_second": 2.5,
                "hottest_page": {"page": "0x2a5a000", "writes": exits},
                "checked": 7, "overruled": 1, "logged": 2, "denied": 3,
            })
        };
        let summary = serde_json::json!({
            "v": 1, "type": "summary", "exits_page": exits[0] + exits[1], "elapsed_seconds": 100.0,
            "ending_message": "the guest has powered itself off",
            "rules": [rule("modprobe path", exits[0]), rule("hooks", exits[1])],
        });
        guest.line(&summary.to_string(), at(600));
        guest
    }

    #[test]
    fn a_guest_is_measured_from_its_entry_to_its_first_program() {
        let measured = guest(40, 6, [500, 0]).measured().expect("it came to its end");
        assert_eq!((measured.boot, measured.work), (40.0, 6.0));
        assert_eq!((measured.exits, measured.seconds), (500, 100.0));
        let expected = RuleCost {
            name: "modprobe path".into(),
            exits: 500,
            alone: 500,
            sub_page: 7,
            own: 6,
            denied: 3,
            per_second: 2.5,
            page: "0x2a5a000".into(),
        };
        assert_eq!(measured.rules[0], expected);
    }

    #[test]
    fn a_guest_that_says_nothing_gives_no_figure() {
        let mut guest = Guest::default();
        assert!(guest.measured().is_err_and(|why| why.contains("did not start")));
        guest.line(r#"{"v":1,"type":"start"}"#, || Duration::ZERO);
        guest.line("guest| # workshop", || Duration::ZERO);
        guest.line(r#"{"type":"summary","ending_message":"its time is up"}"#, || Duration::ZERO);
        let why = guest.measured().expect_err("it never came to its first program");
        assert_eq!(why, "its first program said nothing: its time is up");
        guest.line("guest| # work 100", || Duration::ZERO);
        assert!(guest.measured().is_err_and(|why| why.contains("came to no end")));
    }
}

//! Counts by rule. Names are anything that a policy says, so they are compared whole, not by a hash, for
//! which two names could be made equal.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

#[cfg(feature = "metrics")]
use super::encode::Text;

/// Rules that get a count of their own: the first that there were.
pub const MAX_RULES: usize = 10_000;

/// The label of all further rules together. No rule has this name: it is too long for one.
pub const OTHER_RULES: &str = "all rules that came after the first 10000 with a count of their own";

/// Longest name of a rule in bytes.
const MAX_NAME_BYTES: usize = 62;
const _: () = assert!(OTHER_RULES.len() > MAX_NAME_BYTES && MAX_RULES == 10_000);

/// One counter for each rule.
#[derive(Debug, Default)]
pub(super) struct RuleCounts {
    counts: Mutex<BTreeMap<String, u64>>,
}

impl RuleCounts {
    /// The rule of this name is shown from now on, at 0 if it has not been counted: a series that
    /// began with its first write would not have increased by it. Without a name it is access maps.
    pub(super) fn show(&self, rule: Option<&str>) {
        self.add(rule, 0);
    }

    /// Adds one to the count of the rule of this name; without one it was an access map.
    pub(super) fn count(&self, rule: Option<&str>) {
        self.add(rule, 1);
    }

    fn add(&self, rule: Option<&str>, writes: u64) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let rule = rule.unwrap_or_default();
        if let Some(count) = counts.get_mut(rule) {
            *count = count.saturating_add(writes);
            return;
        }
        let room = counts.len() < MAX_RULES;
        let name = if room { rule } else { OTHER_RULES };
        let count = counts.entry(name.to_owned()).or_default();
        *count = count.saturating_add(writes);
    }

    /// Writes all counts, in the order of the names; where there is none, nothing.
    #[cfg(feature = "metrics")]
    pub(super) fn write(&self, text: &mut Text, name: &str, help: &str) {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if !counts.is_empty() {
            text.family(name, help, "counter");
        }
        for (rule, count) in counts.iter() {
            text.labelled(name, ("rule", rule), count);
        }
    }
}

#[cfg(all(test, feature = "metrics"))]
mod tests {
    use super::{MAX_RULES, OTHER_RULES, RuleCounts, Text};

    fn encode(counts: &RuleCounts) -> Vec<String> {
        let mut text = Text::default();
        counts.write(&mut text, "n", "Help.");
        text.lines().split_off(2)
    }

    #[test]
    fn hostile_names_stay_in_their_quotes() {
        let counts = RuleCounts::default();
        for name in ["a\"} 1\nevil 2", "\\", "\\n", "\u{1b}[31m\u{202e}", "é"] {
            counts.count(Some(name));
        }
        assert_eq!(
            encode(&counts),
            [
                r#"n{rule="\u{1b}[31m\u{202e}"} 1"#
                    .replace("\\u{1b}", "\u{1b}")
                    .replace("\\u{202e}", "\u{202e}")
                    .as_str(),
                r#"n{rule="\\"} 1"#,
                r#"n{rule="\\n"} 1"#,
                r#"n{rule="a\"} 1\nevil 2"} 1"#,
                r#"n{rule="é"} 1"#,
            ]
        );
    }

    #[test]
    fn a_rule_is_shown_before_it_is_counted() {
        let counts = RuleCounts::default();
        counts.show(None);
        counts.show(Some("rule"));
        assert_eq!(encode(&counts), [r#"n{rule=""} 0"#, r#"n{rule="rule"} 0"#]);
        counts.count(Some("rule"));
        // A second rule of the same name is the same series.
        counts.show(Some("rule"));
        assert_eq!(encode(&counts), [r#"n{rule=""} 0"#, r#"n{rule="rule"} 1"#]);
    }

    #[test]
    fn rules_beyond_the_limit_are_counted_together() {
        let counts = RuleCounts::default();
        counts.count(None);
        for number in 0..MAX_RULES + 5 {
            counts.count(Some(&format!("rule {number}")));
        }
        counts.count(Some("rule 0"));
        counts.count(None);
        let lines = encode(&counts);
        assert_eq!(lines.len(), MAX_RULES + 1);
        assert!(lines.contains(&"n{rule=\"\"} 2".to_owned()));
        assert!(lines.contains(&"n{rule=\"rule 0\"} 2".to_owned()));
        assert!(lines.contains(&format!("n{{rule=\"{OTHER_RULES}\"}} 6")));
    }
}

//! Rules that came into force.

use std::time::Duration;

use subpage::rules::{Moment, RuleId};
use subpage_trap::{Armed, Timestamp, When};

/// Who put rules in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArmedBy {
    /// The guest, by a write to the port.
    Write,
    /// The guest's kernel, which is about to start its first program.
    Init,
    /// Somebody, over the control socket or by a call.
    Command,
}

/// Rules that came into force together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arming {
    /// Number and name of each, ascending.
    pub rules: Vec<(RuleId, String)>,
    /// By whom.
    pub by: ArmedBy,
    /// When: before the guest executed another instruction if it was by its own write.
    pub when: When,
}

impl From<&Arming> for Armed {
    fn from(arming: &Arming) -> Self {
        let (unix, since_start) = match arming.when {
            When::Clock { unix, since_start } => (unix, since_start),
            _ => (Duration::ZERO, Duration::ZERO),
        };
        let by = match arming.by {
            ArmedBy::Write => Moment::Write,
            ArmedBy::Init => Moment::Init,
            ArmedBy::Command => Moment::Command,
        };
        Self {
            rules: arming.rules.iter().map(|(_, name)| name.clone()).collect(),
            by: by.word().to_owned(),
            time: Timestamp::from_unix(unix).unwrap_or_else(Timestamp::now),
            since_start: (since_start.as_secs_f64() * 1e6).round() / 1e6,
            write: None,
        }
    }
}

//! Rules that came into force while a guest ran, as programs show and send it.

use std::string::String;
use std::vec::Vec;

use serde::{Deserialize, Serialize};

use super::{Timestamp, VERSION};

/// Rules that came into force together while the guest ran.
///
/// As JSON it is the object that `docs/events.md` describes as `armed`; [`line`](Self::line) adds the
/// fields `v` and `type`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Armed {
    /// Their names, in the order of the policy.
    pub rules: Vec<String>,
    /// By what: `write` or `init` of the guest, or `command`; in the trace of a machine `entry` or `init`.
    pub by: String,
    /// Time of the host.
    pub time: Timestamp,
    /// Seconds since the guest was made; of a trace, since its first write was looked at.
    pub since_start: f64,
    /// In the trace of a machine, the number of the first write under them, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write: Option<u64>,
}

#[derive(Serialize)]
struct Line<'a> {
    v: u32,
    r#type: &'static str,
    #[serde(flatten)]
    armed: &'a Armed,
}

impl Armed {
    /// What stands in the field `type` of its line.
    pub const TYPE: &'static str = "armed";

    /// The object of its line.
    pub fn line(&self) -> impl Serialize + '_ {
        Line { v: VERSION, r#type: Self::TYPE, armed: self }
    }
}

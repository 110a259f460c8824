//! Requests and replies: one JSON object a line in each direction.

use serde::{Deserialize, Serialize};

/// A rule as a request names it: by number or by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RuleRef {
    /// Its number.
    Number(u64),
    /// Its name, if only one rule has it.
    Name(String),
}

/// A rule to be added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewRule {
    /// 1 to 62 bytes of UTF-8 without control characters.
    pub name: String,
    /// First guest-physical byte.
    pub start: u64,
    /// Bytes, at least 1.
    pub length: u64,
    /// `log`, `allow-once`, `deny` or `stop`.
    pub action: String,
    /// Whose it is; 0 is the host.
    #[serde(default)]
    pub owner: u32,
    /// Nothing can loosen it.
    #[serde(default)]
    pub locked: bool,
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    /// State of the guest, rules, trackings and counts.
    Show,
    /// What may be written of `pages` pages (1..=512) from frame `gfn`.
    Get { gfn: u64, pages: u32 },
    /// Sets the access maps of the pages from frame `gfn`, all or none (1..=512 of them).
    Set { gfn: u64, maps: Vec<u32> },
    /// Adds a rule.
    Add(NewRule),
    /// Removes a rule.
    Remove { rule: RuleRef },
    /// Locks a rule.
    Lock { rule: RuleRef },
    /// Every event from now on; no other request follows on this connection.
    Watch,
    /// Tracks which sub-pages of a range are written.
    Track { start: u64, length: u64 },
    /// Pages written since the last harvest, which are armed again.
    Harvest { track: u64 },
    /// Stops tracking.
    Untrack { track: u64 },
    /// Saves rules, vectors, tracking, memory and processors to a file of the server's machine.
    Save { path: String },
    /// Ends the guest.
    Stop,
}

/// A written page of a harvest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Its frame.
    pub gfn: u64,
    /// Bit i: sub-page i was written.
    pub sub_pages: u32,
}

/// A rule that is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownRule {
    /// Its number.
    pub rule: u64,
    /// What was asked for.
    #[serde(flatten)]
    pub new: NewRule,
    /// For `allow-once`: the one write has happened.
    pub spent: bool,
    /// Writes that touched a sub-page of it.
    pub checked: u64,
    /// Of these, those that it reported and let happen.
    pub logged: u64,
    /// Of these, those that it denied.
    pub denied: u64,
}

/// A tracked range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownTracking {
    /// Its number.
    pub track: u64,
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

/// The state of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// `running`, `failed` (see `failure`), or `ended`.
    pub state: String,
    /// Why it cannot go on, with RIP and the bytes of the instruction.
    pub failure: Option<String>,
    /// Virtual processors.
    pub cpus: u32,
    /// Bytes of guest memory.
    pub memory: u64,
    /// Rules in force, ascending by address.
    pub rules: Vec<ShownRule>,
    /// Tracked ranges, ascending by number.
    pub trackings: Vec<ShownTracking>,
    /// Pages whose writes trap now.
    pub trapped_pages: u64,
    /// Writes that trapped so far.
    pub writes: u64,
}

/// What a request gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Reply {
    /// To `show`.
    Shown(Box<Shown>),
    /// To `get`: one map a page.
    Maps { maps: Vec<u32> },
    /// To `set`: how many pages.
    Pages { pages: u32 },
    /// To `add`: the rule's number.
    Rule { rule: u64 },
    /// To `track`: the tracking's number.
    Track { track: u64 },
    /// To `harvest`.
    Harvest { written: Vec<Written> },
    /// To `save`: bytes of the file.
    Saved { saved: u64 },
    /// To everything else.
    Done {},
}

/// Why a request was refused; nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The errno name of the KVM series where it has one (`EPERM`, `EINVAL`, `ENOENT`, `ENOMEM`,
    /// `EFAULT`, `EBUSY`), else `EIO`.
    pub code: String,
    /// What, where and what to do.
    pub error: String,
}

//! Requests and replies: one JSON object a line in each direction.

use std::fmt;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A rule as a request names it: by number or by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum RuleRef {
    /// Its number.
    Number(u64),
    /// Its name, if only one rule has it.
    Name(String),
}

/// A rule to be added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Request {
    /// State of the guest, rules, trackings and counts.
    Show,
    /// The pages that were written most, by sub-page.
    Heat {
        /// How many at most, 1..=512.
        pages: u32,
    },
    /// What may be written of some pages.
    Get {
        /// Frame number of the first.
        gfn: u64,
        /// How many, 1..=512.
        pages: u32,
    },
    /// Sets the access maps of some pages, all or none.
    Set {
        /// Frame number of the first.
        gfn: u64,
        /// One map a page, 1..=512 of them; bit i: sub-page i may be written.
        maps: Vec<u32>,
    },
    /// Adds a rule.
    Add(NewRule),
    /// Removes a rule.
    Remove {
        /// Which.
        rule: RuleRef,
    },
    /// Locks a rule.
    Lock {
        /// Which.
        rule: RuleRef,
    },
    /// Puts rules in force that wait: those named, or without names all that wait for a command.
    Arm {
        /// Which.
        #[serde(default)]
        rules: Vec<RuleRef>,
    },
    /// Every event from now on; no other request follows on this connection.
    Watch,
    /// Tracks which sub-pages of a range are written.
    Track {
        /// First guest-physical byte.
        start: u64,
        /// Bytes, at least 1.
        length: u64,
    },
    /// Pages written since the last harvest, which are armed again.
    Harvest {
        /// Number of the tracking.
        track: u64,
    },
    /// Stops tracking.
    Untrack {
        /// Number of the tracking.
        track: u64,
    },
    /// Saves rules, vectors, tracking, memory and processors to a file of the server's machine.
    Save {
        /// Path as the server sees it.
        path: String,
    },
    /// Holds the guest between two instructions of each processor, until it is let go.
    Pause,
    /// Lets a held guest go on.
    Resume,
    /// Executes one instruction of a processor of a held guest.
    Step {
        /// Which processor.
        #[serde(default)]
        cpu: u32,
    },
    /// The registers of a processor of a held guest.
    Registers {
        /// Which processor.
        #[serde(default)]
        cpu: u32,
    },
    /// Reads memory.
    Read {
        /// First guest-physical byte.
        start: u64,
        /// Bytes, 1..=65536.
        length: u64,
    },
    /// Waits for debuggers that speak gdb's protocol.
    Gdb {
        /// A port, `HOST:PORT`, or the path of a socket with a slash.
        address: String,
    },
    /// Has the debugger go that is attached.
    GdbEnd,
    /// Ends the guest.
    Stop,
}

/// Registers of a processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ShownRegisters {
    /// Which processor.
    pub cpu: u32,
    /// Its registers, in a fixed order.
    pub registers: Vec<ShownRegister>,
}

/// A register and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ShownRegister {
    /// In lower case.
    pub name: String,
    /// All of it.
    pub value: u64,
}

/// A page and the writes to it that were decided about since the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HeatPage {
    /// Its frame.
    pub gfn: u64,
    /// What is in force now; bit i: sub-page i may be written.
    pub map: u32,
    /// Writes that touched it.
    pub writes: u64,
    /// Its sub-pages that were written, ascending.
    pub sub_pages: Vec<HeatSubPage>,
}

/// A sub-page and the writes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HeatSubPage {
    /// Which, 0..=31.
    pub sub_page: u8,
    /// Writes that touched it.
    pub writes: u64,
    /// Of these, those that had no effect.
    pub denied: u64,
}

/// A written page of a harvest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Written {
    /// Its frame.
    pub gfn: u64,
    /// Bit i: sub-page i was written.
    pub sub_pages: u32,
}

/// A rule of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ShownRule {
    /// Its number.
    pub rule: u64,
    /// What was asked for.
    #[serde(flatten)]
    pub new: NewRule,
    /// For `allow-once`: the one write has happened.
    pub spent: bool,
    /// What it waits for, if it is not in force: `init`, `write` or `command`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// Trapped writes that touched a page of it while it was in force: what it costs.
    #[serde(default)]
    pub exits: u64,
    /// Of these, those that touched a page of no other rule: what the guest would not have had without it.
    #[serde(default)]
    pub exits_alone: u64,
    /// Writes that touched a sub-page of it.
    pub checked: u64,
    /// Of these, those to its bytes about which another rule, or an access map, decided.
    #[serde(default)]
    pub overruled: u64,
    /// Of these, those that it reported and let happen.
    pub logged: u64,
    /// Of these, those that it denied.
    pub denied: u64,
}

/// A tracked range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ShownTracking {
    /// Its number.
    pub track: u64,
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

/// What access maps deny, underneath rules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ShownMaps {
    /// Pages whose map denies something.
    pub pages: u64,
    /// Sub-pages that they deny.
    pub sub_pages: u64,
    /// The first of these pages, ascending, at most 32.
    pub first: Vec<ShownMap>,
}

/// The access map of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ShownMap {
    /// The page: its address / 4096.
    pub gfn: u64,
    /// Bit i: sub-page i may be written.
    pub map: u32,
}

/// The state of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Shown {
    /// `running`, `held` (see `held`), `failed` (see `failure`), or `ended`.
    pub state: String,
    /// Why it is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
    /// Why it cannot continue, with RIP and the bytes of the instruction.
    pub failure: Option<String>,
    /// Virtual processors.
    pub cpus: u32,
    /// Bytes of guest memory.
    pub memory: u64,
    /// Rules, ascending by address.
    pub rules: Vec<ShownRule>,
    /// What access maps deny beside them, as `set` gave them.
    #[serde(default)]
    pub access_maps: ShownMaps,
    /// Tracked ranges, ascending by number.
    pub trackings: Vec<ShownTracking>,
    /// Pages whose writes trap now.
    pub trapped_pages: u64,
    /// Writes that trapped so far.
    pub writes: u64,
}

/// What a request gives.
///
/// The object does not tell which of these it is: [`Request::reply`] reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Reply {
    /// To `show`.
    Shown(Box<Shown>),
    /// To `heat`.
    Heat {
        /// The pages that were written most, in descending order.
        hottest: Vec<HeatPage>,
        /// Pages with counts.
        counted: u64,
        /// Touches of pages without counts, because too many have some.
        omitted: u64,
    },
    /// To `get`.
    Maps {
        /// One map a page; bit i: sub-page i may be written.
        maps: Vec<u32>,
    },
    /// To `set`.
    Pages {
        /// How many pages were set: all that were asked for.
        pages: u32,
    },
    /// To `add`.
    Rule {
        /// The rule's number.
        rule: u64,
    },
    /// To `arm`.
    Armed {
        /// Numbers of the rules that were put in force now.
        armed: Vec<u64>,
    },
    /// To `track`.
    Track {
        /// The tracking's number.
        track: u64,
    },
    /// To `harvest`.
    Harvest {
        /// The written pages, ascending.
        written: Vec<Written>,
    },
    /// To `save`.
    Saved {
        /// Bytes of the file.
        saved: u64,
    },
    /// To `registers`.
    Registers(ShownRegisters),
    /// To `step`: where the processor is.
    Stepped {
        /// Its RIP.
        rip: u64,
    },
    /// To `read`.
    Memory {
        /// The bytes, two hexadecimal digits each.
        bytes: String,
    },
    /// To `gdb`.
    Gdb {
        /// Where debuggers are waited for, with the port that was chosen.
        gdb: String,
    },
    /// To everything else.
    Done {},
}

/// Why a request was refused; nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Refusal {
    /// The errno name of the KVM series where it has one (`EPERM`, `EINVAL`, `ENOENT`, `ENOMEM`,
    /// `EFAULT`, `EBUSY`), else `EIO`.
    pub code: String,
    /// What, where and what to do. It may quote the request: escape it before it reaches a terminal.
    pub error: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(code: &str, error: impl Into<String>) -> Self {
        Self { code: code.to_owned(), error: error.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.error, self.code)
    }
}

impl std::error::Error for Refusal {}

/// Characters of a mistake that are told: it may quote a whole request.
const MISTAKE_CHARACTERS: usize = 300;

impl Request {
    /// The request in one line of a client, with or without the line's end. What is not a request is
    /// refused with `EINVAL`.
    pub fn parse(line: &[u8]) -> Result<Self, Refusal> {
        Self::read(line).map_err(|mistake| {
            let mistake: String = mistake.chars().take(MISTAKE_CHARACTERS).collect();
            Refusal::new("EINVAL", format!("not a request: {mistake}; docs/control.md lists them"))
        })
    }

    fn read(line: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(line).map_err(|mistake| mistake.to_string())?;
        let request = serde_json::from_str(text).map_err(|mistake| mistake.to_string())?;
        // serde refuses unknown fields of all others by itself.
        let has_no_fields = matches!(
            request,
            Self::Show | Self::Watch | Self::Pause | Self::Resume | Self::GdbEnd | Self::Stop
        );
        if has_no_fields {
            let fields: Map<String, Value> =
                serde_json::from_str(text).map_err(|mistake| mistake.to_string())?;
            if let Some(field) = fields.keys().find(|field| *field != "op") {
                return Err(format!("unknown field `{field}`, there is only `op`"));
            }
        }
        Ok(request)
    }

    /// Reads the fields of a reply to this request. Fields that it does not know are skipped: a
    /// newer server may send more. For `watch` it is [`Reply::Done`]; the events follow.
    pub fn reply(&self, mut fields: Map<String, Value>) -> Result<Reply, serde_json::Error> {
        Ok(match self {
            Self::Show => Reply::Shown(serde_json::from_value(Value::Object(fields))?),
            Self::Heat { .. } => Reply::Heat {
                hottest: take(&mut fields, "hottest")?,
                counted: take(&mut fields, "counted")?,
                omitted: take(&mut fields, "omitted")?,
            },
            Self::Get { .. } => Reply::Maps { maps: take(&mut fields, "maps")? },
            Self::Set { .. } => Reply::Pages { pages: take(&mut fields, "pages")? },
            Self::Add(_) => Reply::Rule { rule: take(&mut fields, "rule")? },
            Self::Arm { .. } => Reply::Armed { armed: take(&mut fields, "armed")? },
            Self::Track { .. } => Reply::Track { track: take(&mut fields, "track")? },
            Self::Harvest { .. } => Reply::Harvest { written: take(&mut fields, "written")? },
            Self::Save { .. } => Reply::Saved { saved: take(&mut fields, "saved")? },
            Self::Registers { .. } => {
                Reply::Registers(serde_json::from_value(Value::Object(fields))?)
            }
            Self::Step { .. } => Reply::Stepped { rip: take(&mut fields, "rip")? },
            Self::Read { .. } => Reply::Memory { bytes: take(&mut fields, "bytes")? },
            Self::Gdb { .. } => Reply::Gdb { gdb: take(&mut fields, "gdb")? },
            Self::Remove { .. }
            | Self::Lock { .. }
            | Self::Pause
            | Self::Resume
            | Self::Watch
            | Self::Untrack { .. }
            | Self::GdbEnd
            | Self::Stop => Reply::Done {},
        })
    }
}

fn take<T: DeserializeOwned>(
    fields: &mut Map<String, Value>,
    name: &'static str,
) -> Result<T, serde_json::Error> {
    let value = fields.remove(name).ok_or_else(|| serde_json::Error::missing_field(name))?;
    serde_json::from_value(value)
}

/// A line of the server: what became of a request.
#[derive(Debug, Serialize)]
pub(super) struct ReplyLine<T> {
    ok: bool,
    #[serde(flatten)]
    fields: T,
}

impl<T: Serialize> ReplyLine<T> {
    /// To a request that was done.
    pub(super) const fn done(fields: T) -> Self {
        Self { ok: true, fields }
    }

    /// To one that was not.
    pub(super) const fn refused(fields: T) -> Self {
        Self { ok: false, fields }
    }
}

#[cfg(test)]
mod tests;

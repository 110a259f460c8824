//! A write that met a rule: what the events, the summary and the report tell about it.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use subpage::rules::Action;
use subpage_kvm::event::{Event, Verdict};

use crate::hex::Hex;

/// A rule, or an access map, met a write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteEvent {
    /// Number of this event among those of writes, from 1, without gaps.
    pub seq: u64,
    /// Name of the rule that decided; none if an access map did.
    pub rule: Option<String>,
    /// Its action.
    #[serde(with = "word_of_action")]
    pub action: Action,
    /// What became of the write.
    pub verdict: Verdict,
    /// Number of the write in the run, from 1; on KVM, among those that trapped.
    pub write: u64,
    /// First byte written.
    pub gpa: Hex,
    /// Bytes written.
    pub length: u64,
    /// Index, in its page, of the sub-page of the first byte that the rule guards.
    pub sub_page: u8,
    /// Address of the writing instruction, if known.
    pub pc: Option<Hex>,
    /// The function that holds it, if known.
    pub pc_symbol: Option<String>,
    /// The virtual CPU that wrote.
    pub vcpu: u32,
    /// What is known only of a write that happens now.
    #[serde(flatten)]
    pub live: Option<LiveWrite>,
}

/// What is known of a write in a running guest, and of none in a trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveWrite {
    /// Number of the rule that decided; none if an access map did.
    pub rule_id: Option<u64>,
    /// Whether the program counter was told; if not, it was found by decoding backwards.
    pub pc_exact: bool,
    /// Privilege level, 0..=3.
    pub cpl: u8,
    /// Page-table base.
    pub cr3: Hex,
    /// Guest-linear address of the first byte, if known.
    pub gla: Option<Hex>,
    /// First byte that the rule or map holds.
    pub at: Hex,
    /// The bytes that were, or would have been, stored: two digits each.
    pub bytes: String,
    /// The bytes of the instruction, if it was found: two digits each.
    pub instruction: Option<String>,
    /// The instruction in words, Intel syntax.
    pub text: Option<String>,
}

impl WriteEvent {
    /// The rule's name for people; what stands in its place for an access map.
    pub fn rule_name(&self) -> &str {
        self.rule.as_deref().unwrap_or("(access map)")
    }

    /// The program counter for people; behind a `~` if it was found by decoding backwards.
    pub fn pc_text(&self) -> Option<String> {
        let exact = self.live.as_ref().is_none_or(|live| live.pc_exact);
        self.pc.map(|pc| format!("{}{pc}", if exact { "" } else { "~" }))
    }
}

impl From<&Event> for WriteEvent {
    fn from(event: &Event) -> Self {
        Self {
            seq: event.seq,
            rule: event.rule.map(|_| event.rule_name.clone()),
            action: event.action,
            verdict: event.verdict,
            write: event.write,
            gpa: Hex(event.gpa),
            length: event.bytes.len() as u64,
            sub_page: event.sub_page(),
            pc: event.rip.map(Hex),
            pc_symbol: None,
            vcpu: event.vcpu,
            live: Some(LiveWrite {
                rule_id: event.rule,
                pc_exact: event.rip_exact,
                cpl: event.cpl,
                cr3: Hex(event.cr3),
                gla: event.gla.map(Hex),
                at: Hex(event.at),
                bytes: digits(&event.bytes),
                instruction: (!event.instruction.is_empty()).then(|| digits(&event.instruction)),
                text: event.text.clone(),
            }),
        }
    }
}

fn digits(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Actions as words.
mod word_of_action {
    use serde::de::{Error, Unexpected};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use subpage::rules::Action;

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
    pub(super) fn serialize<S: Serializer>(
        action: &Action,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        action.word().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Action, D::Error> {
        let word = String::deserialize(deserializer)?;
        Action::from_word(&word)
            .ok_or_else(|| D::Error::invalid_value(Unexpected::Str(&word), &"an action"))
    }
}

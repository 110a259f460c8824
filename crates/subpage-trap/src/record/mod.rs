//! An event as programs keep, show and send it.

mod json;
#[cfg(feature = "schema")]
mod schema;

use std::string::{String, ToString};
use std::vec::Vec;

pub use json::VERSION;

use crate::{Address, Event};

/// An event with its number, and with what a program knows about it besides: names.
///
/// As JSON it is the object that `docs/events.md` describes; [`line`](Self::line) adds the fields `v`
/// and `type`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Number of this event, from 1, without gaps.
    pub seq: u64,
    /// Number of the write in the run, from 1; where only trapped writes are known, among those.
    pub write: u64,
    /// Name of the rule that decided; `None` if an access map did.
    pub rule_name: Option<String>,
    /// The function that holds the writing instruction, if known.
    pub function: Option<Function>,
    /// The instruction in words, Intel syntax, if it was found.
    pub text: Option<String>,
    /// What happened.
    pub event: Event<Vec<u8>>,
}

/// A place in a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// How many bytes behind its first one.
    pub offset: u64,
}

impl core::fmt::Display for Function {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}+{:#x}", self.name, self.offset)
    }
}

impl Record {
    /// The rule's name for people; what stands in its place for an access map.
    pub fn rule_or_map(&self) -> &str {
        self.rule_name.as_deref().unwrap_or("(access map)")
    }

    /// The address of the instruction for people, behind a `~` if it was found by decoding backwards.
    pub fn pc_text(&self) -> Option<String> {
        let origin = self.event.origin;
        let near = if origin.rip_exact { "" } else { "~" };
        origin.rip.map(|rip| near.to_string() + &Address(rip).to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::ToOwned;

    use subpage::address::{ByteRange, Gpa};
    use subpage::rules::Action;

    use super::*;
    use crate::Verdict;

    #[test]
    fn in_words() {
        let written = ByteRange::new(Gpa::new(0x1000), 8).expect("memory");
        let event = Event::bare(Verdict::Denied, Action::Deny, written);
        let mut record =
            Record { seq: 1, write: 1, rule_name: None, function: None, text: None, event };
        assert_eq!((record.rule_or_map(), record.pc_text()), ("(access map)", None));
        record.rule_name = Some("helper path".to_owned());
        record.event.origin.rip = Some(0x40_1234);
        assert_eq!(record.rule_or_map(), "helper path");
        assert_eq!(record.pc_text().as_deref(), Some("0x401234"));
        record.event.origin.rip_exact = false;
        assert_eq!(record.pc_text().as_deref(), Some("~0x401234"));
        let function = Function { name: "setup".to_owned(), offset: 18 };
        assert_eq!(function.to_string(), "setup+0x12");
    }
}

//! Events as JSON objects, in the form of `docs/events.md`.

use std::fmt;

use serde::{Serialize, Serializer};

use super::{Event, Verdict};

/// Version of the description of events: the value of `v` in every one.
pub const VERSION: u32 = 1;

/// A number as text, `0x` and lower-case digits: JSON readers keep only 53 bits of a number.
struct Address(u64);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Bytes as text, two lower-case digits each, in the order of their addresses.
struct Digits<'a>(&'a [u8]);

impl fmt::Display for Digits<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Digits<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[derive(Serialize)]
struct Object<'a> {
    v: u32,
    r#type: &'static str,
    seq: u64,
    rule: Option<&'a str>,
    action: &'static str,
    verdict: Verdict,
    write: u64,
    gpa: Address,
    length: usize,
    sub_page: u8,
    pc: Option<Address>,
    pc_symbol: Option<&'a str>,
    vcpu: u32,
    rule_id: Option<u64>,
    pc_exact: bool,
    cpl: u8,
    cr3: Address,
    gla: Option<Address>,
    at: Address,
    bytes: Digits<'a>,
    instruction: Option<Digits<'a>>,
    text: Option<&'a str>,
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let object = Object {
            v: VERSION,
            r#type: match self.verdict {
                Verdict::Denied | Verdict::Stopped => "denied",
                Verdict::Logged => "logged",
                Verdict::AllowedOnce => "allowed_once",
            },
            seq: self.seq,
            rule: self.rule.map(|_| self.rule_name.as_str()),
            action: self.action.word(),
            verdict: self.verdict,
            write: self.write,
            gpa: Address(self.gpa),
            length: self.bytes.len(),
            sub_page: self.sub_page(),
            pc: self.rip.map(Address),
            pc_symbol: None,
            vcpu: self.vcpu,
            rule_id: self.rule,
            pc_exact: self.rip_exact,
            cpl: self.cpl,
            cr3: Address(self.cr3),
            gla: self.gla.map(Address),
            at: Address(self.at),
            bytes: Digits(&self.bytes),
            instruction: (!self.instruction.is_empty()).then_some(Digits(&self.instruction)),
            text: self.text.as_deref(),
        };
        object.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::event;
    use super::super::{Event, Verdict};

    #[test]
    fn a_denied_write() {
        assert_eq!(
            serde_json::to_string(&event(3)).expect("events are JSON"),
            concat!(
                r#"{"v":1,"type":"denied","seq":3,"rule":"helper path","action":"deny","#,
                r#""verdict":"denied","write":145,"gpa":"0x10e17d","length":4,"sub_page":3,"#,
                r#""pc":"0x401234","pc_symbol":null,"vcpu":1,"rule_id":7,"pc_exact":true,"cpl":3,"#,
                r#""cr3":"0x1000","gla":"0xffff80000010e17d","at":"0x10e180","bytes":"00ab01ff","#,
                r#""instruction":"8907","text":"mov [rdi],eax"}"#
            )
        );
    }

    #[test]
    fn the_type_follows_from_the_verdict() {
        for (verdict, kind, word) in [
            (Verdict::Denied, "denied", "denied"),
            (Verdict::Stopped, "denied", "stopped"),
            (Verdict::Logged, "logged", "logged"),
            (Verdict::AllowedOnce, "allowed_once", "allowed_once"),
        ] {
            let json = serde_json::to_value(Event { verdict, ..event(1) }).expect("JSON");
            assert_eq!(json["type"], kind);
            assert_eq!(json["verdict"], word);
            assert_eq!(verdict.is_denial(), kind == "denied");
        }
    }

    #[test]
    fn what_is_not_known_is_null() {
        let unknown = Event {
            rule: None,
            rule_name: String::new(),
            rip: None,
            rip_exact: false,
            gla: None,
            instruction: Vec::new(),
            text: None,
            ..event(1)
        };
        let json = serde_json::to_value(unknown).expect("JSON");
        for key in ["rule", "rule_id", "pc", "pc_symbol", "gla", "instruction", "text"] {
            assert_eq!(json[key], Value::Null, "{key}");
        }
        assert_eq!(json["pc_exact"], json!(false));
    }

    #[test]
    fn every_number_and_name_comes_through() {
        let extreme = Event {
            rule_name: "\"\\\u{202e}\n".to_owned(),
            cr3: u64::MAX,
            gpa: u64::MAX,
            at: u64::MAX,
            rip: Some(0),
            ..event(u64::MAX)
        };
        let json = serde_json::to_value(extreme).expect("JSON");
        assert_eq!(json["rule"], "\"\\\u{202e}\n");
        assert_eq!(json["cr3"], "0xffffffffffffffff");
        assert_eq!(json["gpa"], "0xffffffffffffffff");
        assert_eq!(json["pc"], "0x0");
        assert_eq!(json["sub_page"], 31);
        assert_eq!(json["seq"], u64::MAX);
    }
}

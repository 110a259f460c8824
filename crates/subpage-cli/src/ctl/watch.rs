//! Events as they happen, from the control socket.

use std::io::Write;

use serde_json::{Map, Value};
use subpage_kvm::control::protocol::{Reply, Request};
use subpage_kvm::control::{Client, ClientError};
use unicode_width::UnicodeWidthStr;

use super::Unanswered;
use crate::events::{write_armed, write_line};
use crate::terminal::style::{DENIED, QUIET};
use crate::terminal::{Output, grouped, plural, printable};
use subpage_trap::{Armed, Record};

/// Widest rule name that the alignment makes room for, in columns.
const MAX_NAME_COLUMNS: usize = 32;

/// Which events are printed, and how many.
pub(super) struct Filter<'a> {
    /// Name of the rule that decided.
    pub(super) rule: Option<&'a str>,
    /// Its action.
    pub(super) action: Option<&'static str>,
    /// After so many events it is enough.
    pub(super) count: Option<u64>,
}

impl Filter<'_> {
    /// Whether a line is printed; if so, whether it is an event that counts.
    fn passes(&self, object: &Map<String, Value>) -> Option<bool> {
        let text = |key: &str| object.get(key).and_then(Value::as_str);
        if text("type") == Some(Armed::TYPE) {
            let rules = object.get("rules").and_then(Value::as_array);
            let has = |wanted| rules.is_some_and(|rules| rules.iter().any(|rule| rule == wanted));
            return (self.action.is_none() && self.rule.is_none_or(has)).then_some(false);
        }
        // What is lost, and the end, are told to all.
        if !matches!(text("type"), Some("denied" | "logged" | "allowed_once")) {
            return Some(false);
        }
        let is = |wanted: Option<&str>, key| wanted.is_none_or(|wanted| text(key) == Some(wanted));
        (is(self.rule, "rule") && is(self.action, "action")).then_some(true)
    }
}

/// Says so if no rule has the name that is waited for: it may be mistyped, or come later.
pub(super) fn say_if_unknown(
    client: &mut Client,
    filter: &Filter<'_>,
    out: &mut Output,
) -> Result<(), Unanswered> {
    let Some(wanted) = filter.rule else { return Ok(()) };
    if let Reply::Shown(shown) = client.request(&Request::Show)?
        && shown.rules.iter().all(|rule| rule.new.name != wanted)
    {
        let wanted = printable(wanted);
        writeln!(out, "{QUIET}no rule has the name {wanted} now; waiting for one{QUIET:#}")?;
        out.flush()?;
    }
    Ok(())
}

/// Prints every event that passes until the guest ends, there were enough, or nobody reads any more.
pub(super) fn run(
    client: Client,
    json: bool,
    filter: &Filter<'_>,
    out: &mut Output,
) -> Result<(), Unanswered> {
    let mut name_columns = 0;
    let mut left = filter.count;
    for line in client.watch()? {
        let line = line?;
        let Some(counts) = filter.passes(&line.object) else { continue };
        if json {
            writeln!(out, "{}", line.text)?;
        } else {
            write_text(out, line.object, &mut name_columns)?;
        }
        // A person watches, and the next event may be minutes away.
        out.flush()?;
        if let Some(left) = left.as_mut().filter(|_| counts) {
            *left -= 1;
        }
        if out.is_gone() || left == Some(0) {
            break;
        }
    }
    Ok(())
}

/// Writes a line of the watched connection for people.
fn write_text(
    out: &mut impl Write,
    object: Map<String, Value>,
    name_columns: &mut usize,
) -> Result<(), Unanswered> {
    let kind = object.get("type").and_then(Value::as_str).unwrap_or_default();
    match kind {
        "denied" | "logged" | "allowed_once" => {
            let write: Record = serde_json::from_value(Value::Object(object))
                .map_err(|mistake| ClientError::Answer { reason: mistake.to_string() })?;
            let columns = printable(write.rule_or_map()).width().min(MAX_NAME_COLUMNS);
            *name_columns = columns.max(*name_columns);
            write_line(out, &write, *name_columns)?;
        }
        Armed::TYPE => {
            let armed: Armed = serde_json::from_value(Value::Object(object))
                .map_err(|mistake| ClientError::Answer { reason: mistake.to_string() })?;
            write_armed(out, &armed)?;
        }
        "dropped" => {
            let events = object.get("events").and_then(Value::as_u64).unwrap_or_default();
            writeln!(
                out,
                "{DENIED}… {} {} lost here:{DENIED:#} they came faster than they were read",
                grouped(events),
                plural(events, "event"),
            )?;
        }
        "end" => writeln!(out, "{QUIET}the guest has ended{QUIET:#}")?,
        // A newer server may send more.
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;

    use std::time::Duration;

    use subpage::address::{ByteRange, Gpa};
    use subpage::rules::{Action, RuleId};
    use subpage_trap::{
        Event, Function, Origin, Process, Response, SourceLine, Task, Verdict, When,
    };

    use super::*;

    fn text(object: &Value) -> io::Result<String> {
        let mut out = Vec::new();
        let Value::Object(object) = object else { panic!("an object") };
        let done = write_text(&mut out, object.clone(), &mut 0);
        done.map_err(|_| io::Error::other("no event"))?;
        Ok(anstream::adapter::strip_str(&String::from_utf8(out).expect("text")).to_string())
    }

    #[test]
    fn an_event_comes_through_the_socket_as_it_is() {
        let written = ByteRange::new(Gpa::new(0x10_e17d), 4).expect("four bytes");
        let record = Record {
            seq: 3,
            write: 1145,
            rule_name: Some("helper \u{1b}path".to_owned()),
            function: Some(Function { name: "sys_\u{1b}write".to_owned(), offset: 0x10 }),
            source: Some(SourceLine { file: "fs/\u{1b}read.c".to_owned(), line: 7 }),
            call_trace: ["vfs_\u{1b}write+0x10", "ksys_write+0x6b"]
                .map(|text| text.parse().expect("a place"))
                .to_vec(),
            process: Some(Process { number: 1, name: "sh\u{1b}".to_owned() }),
            task: Some(Task { pid: 17, tid: 18, name: "ca\u{1b}t".to_owned(), uid: Some(0) }),
            text: Some("mov [rdi],eax".to_owned()),
            event: Event {
                response: Response::Fault,
                rule: Some(RuleId(7)),
                origin: Origin {
                    vcpu: 1,
                    rip: Some(0x40_1234),
                    rip_exact: false,
                    cr3: Some(0x1000),
                    cpl: Some(3),
                },
                when: When::Clock {
                    unix: Duration::from_micros(1_764_216_000_123_456),
                    since_start: Duration::from_millis(1_250),
                },
                gla: Some(0xffff_8000_0010_e17d),
                at: Gpa::new(0x10_e180),
                bytes: b"/t|\x1b".to_vec(),
                instruction: [0x89, 7].into_iter().collect(),
                ..Event::bare(Verdict::Denied, Action::Deny, written)
            },
        };
        let object = serde_json::to_value(record.line()).expect("JSON");
        let read: Record = serde_json::from_value(object.clone()).expect("a record");
        assert_eq!(read, record);
        assert_eq!(
            text(&object).expect("an event"),
            "denied        helper \\u{1b}path   4 bytes at 0x10e17d  sub-page  3  write 1,145  \
             after 1.250 s  by ~0x401234 in sys_\\u{1b}write+0x10 at fs/\\u{1b}read.c:7  process 1 \
             sh\\u{1b}  process 17 ca\\u{1b}t uid 0  vcpu 1 cpl 3  gla 0xffff80000010e17d  mov [rdi],eax  bytes 2f 74 7c 1b \
             |/t|.|\n  called by vfs_\\u{1b}write+0x10 < ksys_write+0x6b\n"
        );
        let mut by_a_map = Record::new(record.seq, record.write, record.event);
        let event = &mut by_a_map.event;
        (event.rule, event.origin.rip, event.gla) = (None, None, None);
        (event.when, event.bytes) = (When::Unknown, vec![7; 17]);
        let object = serde_json::to_value(by_a_map.line()).expect("JSON");
        assert_eq!(
            text(&object).expect("an event"),
            "denied        (access map)   4 bytes at 0x10e17d  sub-page  3  write 1,145  vcpu 1 \
             cpl 3  bytes 07 07 07 07 07 07 07 07 07 07 07 07 07 07 07 07 |................|…\n"
        );
    }

    #[test]
    fn a_filter_passes_what_it_names_and_all_that_is_lost() {
        let filter = Filter { rule: Some("path"), action: Some("deny"), count: None };
        let passes = |text: &str| filter.passes(&serde_json::from_str(text).expect("an object"));
        let event = |rule: &str, action: &str| {
            passes(&format!(r#"{{"type":"denied","rule":"{rule}","action":"{action}"}}"#))
        };
        assert_eq!(event("path", "deny"), Some(true));
        assert_eq!(event("other", "deny"), None);
        assert_eq!(event("path", "stop"), None);
        assert_eq!(passes(r#"{"type":"denied","rule":null,"action":"deny"}"#), None);
        assert_eq!(passes(r#"{"type":"dropped","events":3}"#), Some(false));
        assert_eq!(passes(r#"{"type":"end"}"#), Some(false));
        let armed = r#"{"type":"armed","rules":["other","path"]}"#;
        assert_eq!(passes(armed), None, "it has no action");
        let of = |rule| Filter { rule, action: None, count: None };
        let armed: Map<String, Value> = serde_json::from_str(armed).expect("an object");
        let passes = [Some("path"), None, Some("third")].map(|rule| of(rule).passes(&armed));
        assert_eq!(passes, [Some(false), Some(false), None], "it does not count");
    }

    #[test]
    fn other_lines_are_said_in_words_or_skipped() {
        let line = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
        let dropped = line("{\"v\":1,\"type\":\"dropped\",\"events\":1200}");
        assert!(text(&dropped).expect("known").contains("1,200 events lost"));
        let armed = line(
            r#"{"v":1,"type":"armed","rules":["a \u001brule","b"],"by":"init","time":"2026-11-27T17:30:00Z","since_start":4.6}"#,
        );
        let told = "armed  a \\u{1b}rule, b  by init, after 4.600 s\n";
        assert_eq!(text(&armed).expect("known"), told);
        assert_eq!(text(&line("{\"type\":\"end\"}")).expect("known"), "the guest has ended\n");
        assert_eq!(text(&line("{\"type\":\"later\"}")).expect("skipped"), "");
        assert_eq!(text(&line("{}")).expect("skipped"), "");
        text(&line("{\"type\":\"denied\",\"action\":\"block\"}")).expect_err("not an event");
    }
}

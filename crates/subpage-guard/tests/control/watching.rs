//! Clients that watch.

use serde_json::{Value, json};
use subpage_guard::control::Watch;

use super::{Raw, Served, record};

fn kind(line: &Value) -> &str {
    line["type"].as_str().expect("each line has a type")
}

/// The number of the next event.
fn seq(watch: &mut Watch) -> u64 {
    let line = watch.next().expect("there is more").expect("the server is there");
    line.object["seq"].as_u64().expect("an event")
}

#[test]
fn events_come_as_they_are_documented() {
    let served = Served::new();
    let mut watch = served.client().watch().expect("it watches");
    // A client that has been told `ok` sees every event from then on.
    served.publish(1);
    let line = watch.next().expect("there is more").expect("the server is there");
    assert_eq!(line.text, serde_json::to_string(&record(1).line()).expect("JSON"));
    assert_eq!(Value::Object(line.object), serde_json::to_value(record(1).line()).expect("JSON"));
    served.publish(2);
    assert_eq!(seq(&mut watch), 2);
    served.fake.events.close();
    let last = watch.next().expect("there is more").expect("the server is there");
    assert_eq!(last.text, r#"{"v":1,"type":"end"}"#);
    assert!(watch.next().is_none());
}

#[test]
fn watching_after_the_end() {
    let served = Served::new();
    served.fake.events.close();
    let mut raw = served.raw();
    assert_eq!(raw.ask(r#"{"op":"watch"}"#), json!({"ok": true}));
    assert_eq!(raw.line(), json!({"v": 1, "type": "end"}));
    assert_eq!(raw.rest(), b"");
}

/// One never reads, and loses its own events only; how many is said where they are missing.
#[test]
fn a_slow_watcher_loses_only_its_own_events() {
    const CAPACITY: usize = 4;
    let served = Served::with_capacity(CAPACITY);
    let mut slow = served.raw();
    assert_eq!(slow.ask(r#"{"op":"watch"}"#), json!({"ok": true}));
    let mut quick = served.client().watch().expect("it watches");
    served.wait_for_watchers(2);

    // Each event is read before the next is published, so the quick one never has two waiting.
    let mut published = 0;
    while served.fake.events.dropped_total() < 10 {
        published += 1;
        served.publish(published);
        assert_eq!(seq(&mut quick), published);
    }
    served.fake.events.close();
    let last = quick.next().expect("there is more").expect("the server is there");
    assert_eq!(last.object["type"], "end");

    let (mut next, mut lost) = (1, 0);
    loop {
        let line = slow.line();
        match kind(&line) {
            "logged" => {
                assert_eq!(line["seq"], next, "events are missing and nobody said so");
                next += 1;
            }
            "dropped" => {
                assert_eq!(line["v"], 1);
                let events = line["events"].as_u64().expect("a count");
                assert!(events > 0);
                lost += events;
                next += events;
            }
            "end" => break,
            other => panic!("{other}"),
        }
    }
    assert_eq!(next, published + 1);
    assert_eq!(lost, served.fake.events.dropped_total());
    assert_eq!(slow.rest(), b"");
}

#[test]
fn a_watcher_that_goes_is_forgotten() {
    let served = Served::new();
    let mut stays = served.client().watch().expect("it watches");
    let goes = served.client().watch().expect("it watches");
    served.wait_for_watchers(2);
    // Without an event: nothing is written to it that could fail.
    drop(goes);
    served.wait_for_watchers(1);
    served.publish(1);
    assert_eq!(seq(&mut stays), 1);
    assert_eq!(served.fake.events.dropped_total(), 0);
}

#[test]
fn a_watcher_with_nothing_more_to_say_stays() {
    let served = Served::new();
    let mut raw: Raw = served.raw();
    raw.send(b"{\"op\":\"watch\"}\n{\"op\":\"stop\"}\nand more");
    assert_eq!(raw.line(), json!({"ok": true}));
    raw.end_of_input();
    served.publish(1);
    assert_eq!(raw.line()["seq"], 1);
    served.publish(2);
    assert_eq!(raw.line()["seq"], 2);
    assert!(served.asked().is_empty(), "no other request follows on this connection");
}

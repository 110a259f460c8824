//! The end of the server.

use std::sync::Arc;
use std::thread;

use serde_json::json;
use subpage_guard::control::protocol::Request;
use subpage_guard::control::{Client, ClientError, Server};

use super::{PATIENCE, Served};

#[test]
fn clients_are_sent_away_and_the_file_goes() {
    let mut served = Served::new();
    let mut idle = served.raw();
    assert_eq!(idle.ask(r#"{"op":"show"}"#)["ok"], true);
    let mut silent = served.raw();
    let mut half = served.raw();
    half.send(b"{\"op\":\"st");
    let mut watching = served.client().watch().expect("it watches");
    served.publish(1);

    drop(served.server.take());
    assert_eq!(idle.rest(), b"");
    assert_eq!(silent.rest(), b"");
    assert_eq!(half.rest(), b"");
    let mut last = None;
    for line in &mut watching {
        last = Some(line.expect("it is told that this is the end"));
    }
    assert_eq!(last.expect("at least the end").text, r#"{"v":1,"type":"end"}"#);
    assert!(!served.path.exists());
    let error = Client::connect(&served.path, PATIENCE).expect_err("nobody is there");
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
    assert_eq!(served.fake.events.subscribers(), 0);
    assert_eq!(served.asked(), [Request::Show]);
}

/// Stopping does not wait for a client that reads nothing.
#[test]
fn the_deaf_are_sent_away_too() {
    let mut served = Served::with_capacity(1);
    let mut deaf_watcher = served.raw();
    assert_eq!(deaf_watcher.ask(r#"{"op":"watch"}"#), json!({"ok": true}));
    let mut deaf = served.raw();
    deaf.send(b"{\"op\":\"get\",\"gfn\":0,\"pages\":4000000}\n");
    let mut seq = 0;
    // The queue overflows for good once the buffers on the way are full: then its thread is blocked.
    while served.fake.events.dropped_total() < 100_000 {
        seq += 1;
        served.publish(seq);
    }
    while served.asked().is_empty() {
        thread::yield_now();
    }
    drop(served.server.take());
    assert_eq!(served.fake.events.subscribers(), 0);
    assert!(!deaf.rest().ends_with(b"\n"), "all of it cannot have been sent");
}

/// What is being done when the server stops is finished and answered; what is asked after that is not
/// done.
#[test]
fn a_request_in_progress_is_answered() {
    let mut served = Served::new();
    let mut idle = served.raw();
    assert_eq!(idle.ask(r#"{"op":"show"}"#)["ok"], true);
    let mut saving = served.raw();
    saving.send(b"{\"op\":\"save\",\"path\":\"state\"}\n{\"op\":\"stop\"}\n");
    served.fake.save.wait();
    let server = served.server.take();
    thread::scope(|scope| {
        scope.spawn(move || drop(server));
        // This ends when the server has begun to stop.
        assert_eq!(idle.rest(), b"");
        // It waits for the request, and the file goes last.
        assert!(served.path.exists());
        served.fake.save.wait();
    });
    assert_eq!(saving.line(), json!({"ok": true, "saved": 42}));
    assert_eq!(saving.rest(), b"");
    assert!(!served.asked().contains(&Request::Stop));
}

#[test]
fn a_new_server_may_follow() {
    let mut served = Served::new();
    for _ in 0..3 {
        drop(served.server.take());
        let handler = Arc::clone(&served.fake);
        let server = Server::listen(&served.path, handler);
        served.server = Some(server.expect("the path is free again"));
        served.client().request(&Request::Show).expect("it is served");
    }
}

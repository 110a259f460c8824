//! Clients that behave.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io, thread};

use serde_json::json;
use subpage_guard::control::protocol::{Reply, Request, RuleRef, ShownRegister, ShownRegisters};
use subpage_guard::control::{Client, ClientError, ControlError, MAX_CLIENTS, Server};

use super::{PATIENCE, Raw, Served, shown};

#[test]
fn every_request_reaches_the_operator() {
    let served = Served::new();
    let mut client = served.client();
    let requests = [
        (Request::Show, Reply::Shown(Box::new(shown()))),
        (Request::Heat { pages: 3 }, Reply::Heat { hottest: Vec::new(), counted: 3, omitted: 7 }),
        (Request::Get { gfn: 1, pages: 2 }, Reply::Maps { maps: vec![u32::MAX; 2] }),
        (Request::Set { gfn: 1, maps: vec![1, 2, 3] }, Reply::Pages { pages: 3 }),
        (Request::Lock { rule: RuleRef::Number(1) }, Reply::Done {}),
        (Request::Track { start: 0, length: 1 }, Reply::Track { track: 1 }),
        (Request::Harvest { track: 1 }, Reply::Harvest { written: Vec::new() }),
        (Request::Untrack { track: 1 }, Reply::Done {}),
        (Request::Pause, Reply::Done {}),
        (Request::Resume, Reply::Done {}),
        (Request::Step { cpu: 1 }, Reply::Stepped { rip: 0x1000 }),
        (
            Request::Registers { cpu: 2 },
            Reply::Registers(ShownRegisters {
                cpu: 2,
                registers: vec![ShownRegister { name: "rip".to_owned(), value: 0x1000 }],
            }),
        ),
        (Request::Read { start: 0, length: 2 }, Reply::Memory { bytes: "00ff".to_owned() }),
        (Request::Gdb { address: "1".to_owned() }, Reply::Gdb { gdb: "1".to_owned() }),
        (Request::GdbEnd, Reply::Done {}),
        (Request::Stop, Reply::Done {}),
    ];
    for (request, reply) in &requests {
        assert_eq!(&client.request(request).expect("it is done"), reply);
    }
    assert_eq!(served.asked(), requests.map(|(request, _)| request));
}

#[test]
fn a_refusal_leaves_the_connection() {
    let served = Served::new();
    let mut client = served.client();
    let remove = Request::Remove { rule: RuleRef::Name("counter".to_owned()) };
    for _ in 0..2 {
        match client.request(&remove).expect_err("the handler says no") {
            ClientError::Refused(refusal) => {
                assert_eq!(refusal.code, "EPERM");
                assert_eq!(refusal.error, "rule 7 is locked");
            }
            other => panic!("{other}"),
        }
    }
    let answer = served.raw().ask(r#"{"op":"remove","rule":7}"#);
    assert_eq!(answer, json!({"ok": false, "code": "EPERM", "error": "rule 7 is locked"}));
}

#[test]
fn the_file_is_the_owners_alone() {
    let served = Served::new();
    let mode = fs::metadata(&served.path).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn several_clients_at_once() {
    let served = Served::new();
    // One has the server do something that takes as long as the test wants it to.
    let save = Request::Save { path: "state".to_owned() };
    thread::scope(|scope| {
        let saving = scope.spawn(|| served.client().request(&save));
        served.fake.save.wait();
        let others: Vec<_> = (1..=8_u32)
            .map(|pages| {
                let served = &served;
                scope.spawn(move || {
                    let mut client = served.client();
                    for _ in 0..100 {
                        let reply = client.request(&Request::Get { gfn: 0, pages });
                        let Ok(Reply::Maps { maps }) = reply else { panic!("{reply:?}") };
                        assert_eq!(u32::try_from(maps.len()), Ok(pages));
                    }
                })
            })
            .collect();
        for other in others {
            other.join().expect("the others do not wait for the first");
        }
        served.fake.save.wait();
        let saved = saving.join().expect("no panic").expect("it is done");
        assert_eq!(saved, Reply::Saved { saved: 42 });
    });
    assert_eq!(served.asked().len(), 801);
}

#[test]
fn requests_may_be_sent_ahead() {
    let served = Served::new();
    let mut raw = served.raw();
    raw.send(
        b"{\"op\":\"get\",\"gfn\":0,\"pages\":1}\n{\"op\":\"get\",\"gfn\":0,\"pages\":2}\n{\"op\"",
    );
    raw.send(b":\"stop\"}\r\n");
    assert_eq!(raw.line(), json!({"ok": true, "maps": [u32::MAX]}));
    assert_eq!(raw.line(), json!({"ok": true, "maps": [u32::MAX, u32::MAX]}));
    assert_eq!(raw.line(), json!({"ok": true}));
}

/// Clients that say nothing keep nobody out: the oldest makes room.
#[test]
fn one_client_too_many_takes_the_place_of_an_idle_one() {
    let served = Served::new();
    let mut clients: Vec<Client> = (0..MAX_CLIENTS).map(|_| served.client()).collect();
    for client in &mut clients {
        client.request(&Request::Show).expect("there is room for all of them");
    }
    served.client().request(&Request::Show).expect("there is for another");
    let error = clients[0].request(&Request::Show).expect_err("it was the oldest");
    assert!(matches!(error, ClientError::Closed | ClientError::Connection(_)), "{error}");
    for client in &mut clients[1..] {
        client.request(&Request::Show).expect("nothing happened to the others");
    }
}

#[test]
fn one_watcher_too_many_is_told_so() {
    let served = Served::new();
    let watching = |_| served.client().watch().expect("there is room");
    let mut watchers: Vec<_> = (0..MAX_CLIENTS).map(watching).collect();
    let error = served.client().request(&Request::Show).expect_err("there is not for another");
    match error {
        ClientError::Refused(refusal) => assert_eq!(refusal.code, "EBUSY"),
        other => panic!("{other}"),
    }
    // Once one has gone there is room again. When the server notices is its business.
    watchers.pop();
    while served.client().request(&Request::Show).is_err() {
        thread::yield_now();
    }
}

/// A process that is stopped, or stuck, keeps its clients waiting for as long as they say.
#[test]
fn a_server_that_says_nothing() {
    let patience = Duration::from_millis(20);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("guest.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let silent = |error: ClientError| {
        let ClientError::Silent { patience: told } = error else { panic!("{error}") };
        assert_eq!(told, patience);
    };
    let mut client = Client::connect(&path, patience).expect("it listens");
    silent(client.request(&Request::Show).expect_err("no answer"));
    let client = Client::connect(&path, patience).expect("it listens");
    silent(client.watch().expect_err("no answer"));
    // Bytes that drip do not make the time longer.
    let mut client = Client::connect(&path, patience).expect("it listens");
    for _ in 0..2 {
        drop(listener.accept().expect("an earlier one"));
    }
    let mut stream = listener.accept().expect("it connected").0;
    thread::scope(|scope| {
        let dripping = scope.spawn(move || while stream.write_all(b" ").is_ok() {});
        silent(client.request(&Request::Show).expect_err("no answer"));
        drop(client);
        dripping.join().expect("no panic");
    });
    // Where nobody takes connections, the queue of those that wait is full at some point.
    let mut waiting = Vec::new();
    let error = loop {
        match Client::connect(&path, patience) {
            Ok(client) => waiting.push(client),
            Err(error) => break error,
        }
    };
    silent(error);
}

#[test]
fn one_path_has_one_server() {
    let served = Served::new();
    let handler = Arc::clone(&served.fake);
    let error = Server::listen(&served.path, handler).expect_err("it is served already");
    assert!(matches!(error, ControlError::InUse { .. }), "{error}");
    served.client().request(&Request::Show).expect("the first one still is");
}

#[test]
fn nobody_there() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("guest.sock");
    let missing = Client::connect(&path, PATIENCE).expect_err("no file");
    assert!(matches!(missing, ClientError::Connect { .. }), "{missing}");
    drop(UnixListener::bind(&path).expect("a socket"));
    let dead = Client::connect(&path, PATIENCE).expect_err("no process");
    let ClientError::Connect { cause, .. } = dead else { panic!("{dead}") };
    assert_eq!(cause.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn servers_of_another_kind() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("guest.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    for answer in
        ["nonsense\n", "{}\n", "{\"ok\":1}\n", "{\"ok\":false}\n", "{\"ok\":true}\n", "\u{ff}\n"]
    {
        let mut client = Client::connect(&path, PATIENCE).expect("it listens");
        let mut server = Raw::new(listener.accept().expect("it connected").0);
        server.send(answer.as_bytes());
        let error = client.request(&Request::Show).expect_err("no answer to `show`");
        assert!(matches!(error, ClientError::Answer { .. }), "{answer}: {error}");
    }
    let mut client = Client::connect(&path, PATIENCE).expect("it listens");
    let server = listener.accept().expect("it connected").0;
    server.shutdown(std::net::Shutdown::Write).expect("it is connected");
    let error = client.request(&Request::Stop).expect_err("the end");
    assert!(matches!(error, ClientError::Closed), "{error}");
}

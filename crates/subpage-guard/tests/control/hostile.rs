//! Clients that do not behave.

use std::io::Write;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::Value;
use subpage_guard::control::MAX_LINE_BYTES;
use subpage_guard::control::protocol::Request;

use super::Served;

#[test]
fn what_is_not_a_request_is_refused_and_the_connection_goes_on() {
    let served = Served::new();
    let mut raw = served.raw();
    for line in [
        b"".as_slice(),
        b"{",
        b"stop",
        b"\xff\xfe\x00",
        b"{\"op\":\"stop\"}{\"op\":\"stop\"}",
        b"{\"op\":\"explode\"}",
        b"{\"op\":\"stop\",\"now\":true}",
        b"\0\0\0\0",
    ] {
        raw.send(line);
        raw.send(b"\n");
        let answer = raw.line();
        assert_eq!(answer["ok"], false, "{answer}");
        assert_eq!(answer["code"], "EINVAL", "{answer}");
        assert!(answer["error"].is_string(), "{answer}");
    }
    assert_eq!(raw.ask(r#"{"op":"show"}"#)["ok"], true);
    assert_eq!(served.asked(), [Request::Show]);
}

#[test]
fn a_line_may_be_a_mebibyte_and_no_longer() {
    let served = Served::new();
    let mut raw = served.raw();
    let mut line = br#"{"op":"show"}"#.to_vec();
    line.resize(MAX_LINE_BYTES, b' ');
    line.push(b'\n');
    raw.send(&line);
    assert_eq!(raw.line()["ok"], true);

    line.insert(0, b' ');
    // The server may close the connection before it has seen all of it.
    let _ = raw.stream.write_all(&line);
    let answer = raw.line();
    assert_eq!(answer["code"], "EINVAL", "{answer}");
    assert_eq!(raw.rest(), b"");
    assert_eq!(served.asked(), [Request::Show]);
}

#[test]
fn half_a_request_is_none() {
    let served = Served::new();
    let mut killed = served.raw();
    killed.send(b"{\"op\":\"stop\"}");
    killed.end_of_input();
    assert_eq!(killed.rest(), b"");

    let mut gone = served.raw();
    gone.send(b"{\"op\":\"st");
    drop(gone);
    assert_eq!(served.raw().ask(r#"{"op":"show"}"#)["ok"], true);
    assert_eq!(served.asked(), [Request::Show]);
}

/// It fills every buffer on its way and blocks its own thread only.
#[test]
fn who_does_not_read_its_replies_holds_up_nobody() {
    let served = Served::new();
    let mut deaf = served.raw();
    // 44 MB of reply.
    deaf.send(b"{\"op\":\"get\",\"gfn\":0,\"pages\":4000000}\n{\"op\":\"stop\"}\n");
    while served.asked().is_empty() {
        std::thread::yield_now();
    }
    let mut other = served.client();
    for _ in 0..10 {
        other.request(&Request::Show).expect("it is served");
    }
    assert!(!served.asked().contains(&Request::Stop), "the reply before it cannot have been sent");
    // Once it reads, everything comes.
    assert_eq!(deaf.line()["maps"].as_array().map(Vec::len), Some(4_000_000));
    assert_eq!(deaf.line()["ok"], true);
}

#[test]
fn a_client_that_goes_before_its_reply_harms_nobody() {
    let served = Served::new();
    let mut gone = served.raw();
    gone.send(b"{\"op\":\"save\",\"path\":\"state\"}\n");
    served.fake.save.wait();
    drop(gone);
    served.fake.save.wait();
    served.client().request(&Request::Show).expect("the server is alive");
}

/// Whatever is sent, each line gets one line back that says yes or no, and then the end.
#[test]
fn any_bytes_get_a_line_for_a_line() {
    let served = Served::new();
    let piece = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        "[\\[\\]{}\",:0-9a-z\\\\ \n]{0,60}".prop_map(String::into_bytes),
        prop::sample::select(vec![
            r#"{"op":"show"}"#,
            r#"{"op":"get","gfn":1,"pages":2}"#,
            r#"{"op":"set","gfn":18446744073709551615,"maps":[4294967295]}"#,
            r#"{"op":"add","name":"\u0000","start":0,"length":0,"action":"?"}"#,
            r#"{"op":"remove","rule":"a"}"#,
            "\n",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
    ];
    let bytes = prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat());
    let mut runner = TestRunner::new(ProptestConfig::with_cases(300));
    let run = runner.run(&bytes, |bytes| {
        let mut raw = served.raw();
        raw.send(&bytes);
        raw.end_of_input();
        let answers = raw.rest();
        let answers = String::from_utf8(answers).expect("answers are UTF-8");
        let lines = bytes.split(|&byte| byte == b'\n').count() - 1;
        prop_assert_eq!(answers.lines().count(), lines);
        for answer in answers.lines() {
            let answer: Value = serde_json::from_str(answer).expect("answers are JSON");
            if answer["ok"] != true {
                prop_assert_eq!(&answer["ok"], false);
                prop_assert!(answer["code"].is_string() && answer["error"].is_string());
            }
        }
        Ok(())
    });
    run.unwrap_or_else(|failure| panic!("{failure}"));
    served.client().request(&Request::Show).expect("the server is alive");
}

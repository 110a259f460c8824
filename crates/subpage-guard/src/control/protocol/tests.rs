use serde_json::{Value, json};

use super::{
    HeatPage, HeatSubPage, NewRule, Refusal, Reply, ReplyLine, Request, RuleRef, Shown, ShownMap,
    ShownMaps, ShownRule, Written,
};

fn rule() -> NewRule {
    NewRule {
        name: "helper path".to_owned(),
        start: 0x10_e180,
        length: 128,
        action: "deny".to_owned(),
        owner: 0,
        locked: true,
    }
}

fn shown() -> Shown {
    let new = rule();
    let shown = ShownRule {
        rule: 7,
        new,
        spent: false,
        waits_for: None,
        exits: 9,
        exits_alone: 5,
        checked: 4,
        overruled: 1,
        logged: 1,
        denied: 2,
    };
    Shown {
        held: None,
        state: "running".to_owned(),
        failure: None,
        cpus: 2,
        memory: 1 << 28,
        rules: vec![shown],
        access_maps: ShownMaps {
            pages: 1,
            sub_pages: 2,
            first: vec![ShownMap { gfn: 0x10f, map: !0b11 }],
        },
        trackings: Vec::new(),
        trapped_pages: 1,
        writes: u64::MAX,
    }
}

/// Every kind of request, its line, and a reply to it.
fn all() -> Vec<(Request, Value, Reply, Value)> {
    let shown_json = json!({
        "ok": true, "state": "running", "failure": null, "cpus": 2, "memory": 1 << 28,
        "rules": [{
            "rule": 7, "name": "helper path", "start": 0x10_e180, "length": 128,
            "action": "deny", "owner": 0, "locked": true, "spent": false,
            "exits": 9, "exits_alone": 5, "checked": 4, "overruled": 1, "logged": 1, "denied": 2,
        }],
        "access_maps": {
            "pages": 1, "sub_pages": 2, "first": [{ "gfn": 0x10f, "map": !0b11_u32 }],
        },
        "trackings": [], "trapped_pages": 1, "writes": u64::MAX,
    });
    let by_name = || RuleRef::Name("helper path".to_owned());
    let done = || (Reply::Done {}, json!({"ok": true}));
    [
        (Request::Show, json!({"op": "show"}), (Reply::Shown(Box::new(shown())), shown_json)),
        (
            Request::Heat { pages: 5 },
            json!({"op": "heat", "pages": 5}),
            (
                Reply::Heat {
                    hottest: vec![HeatPage {
                        gfn: 0x10e,
                        map: !8,
                        writes: 7,
                        sub_pages: vec![HeatSubPage { sub_page: 3, writes: 7, denied: 2 }],
                    }],
                    counted: 1,
                    omitted: 0,
                },
                json!({
                    "ok": true, "counted": 1, "omitted": 0,
                    "hottest": [{
                        "gfn": 0x10e, "map": !8_u32, "writes": 7,
                        "sub_pages": [{"sub_page": 3, "writes": 7, "denied": 2}],
                    }],
                }),
            ),
        ),
        (
            Request::Get { gfn: 0x10e, pages: 2 },
            json!({"op": "get", "gfn": 270, "pages": 2}),
            (Reply::Maps { maps: vec![u32::MAX, 0] }, json!({"ok": true, "maps": [u32::MAX, 0]})),
        ),
        (
            Request::Set { gfn: 0x10e, maps: vec![0xffff_fff7] },
            json!({"op": "set", "gfn": 270, "maps": [0xffff_fff7_u32]}),
            (Reply::Pages { pages: 1 }, json!({"ok": true, "pages": 1})),
        ),
        (
            Request::Add(rule()),
            json!({
                "op": "add", "name": "helper path", "start": 0x10_e180, "length": 128,
                "action": "deny", "owner": 0, "locked": true,
            }),
            (Reply::Rule { rule: 7 }, json!({"ok": true, "rule": 7})),
        ),
        (Request::Remove { rule: RuleRef::Number(7) }, json!({"op": "remove", "rule": 7}), done()),
        (Request::Lock { rule: by_name() }, json!({"op": "lock", "rule": "helper path"}), done()),
        (Request::Watch, json!({"op": "watch"}), done()),
        (
            Request::Track { start: 0, length: 4096 },
            json!({"op": "track", "start": 0, "length": 4096}),
            (Reply::Track { track: 1 }, json!({"ok": true, "track": 1})),
        ),
        (
            Request::Harvest { track: 1 },
            json!({"op": "harvest", "track": 1}),
            (
                Reply::Harvest { written: vec![Written { gfn: 3, sub_pages: 1 }] },
                json!({"ok": true, "written": [{"gfn": 3, "sub_pages": 1}]}),
            ),
        ),
        (Request::GdbEnd, json!({"op": "gdb-end"}), done()),
        (Request::Untrack { track: 1 }, json!({"op": "untrack", "track": 1}), done()),
        (
            Request::Save { path: "guest.state".to_owned() },
            json!({"op": "save", "path": "guest.state"}),
            (Reply::Saved { saved: 5 }, json!({"ok": true, "saved": 5})),
        ),
        (Request::Stop, json!({"op": "stop"}), done()),
    ]
    .map(|(request, line, (reply, answer))| (request, line, reply, answer))
    .into()
}

#[test]
fn every_request_and_reply_comes_back() {
    for (request, line, reply, answer) in all() {
        assert_eq!(serde_json::to_value(&request).expect("JSON"), line);
        assert_eq!(Request::parse(line.to_string().as_bytes()), Ok(request.clone()));
        let written = serde_json::to_value(ReplyLine::done(&reply)).expect("JSON");
        assert_eq!(written, answer);
        let Value::Object(mut fields) = written else { panic!("not an object: {written}") };
        fields.insert("from_a_newer_server".to_owned(), json!(1));
        assert_eq!(request.reply(fields).expect("it is a reply"), reply, "{request:?}");
    }
}

#[test]
fn a_field_too_many_is_a_mistake() {
    for (_, mut line, _, _) in all() {
        line["locket"] = json!(true);
        let refusal = Request::parse(line.to_string().as_bytes()).expect_err("`locket`");
        assert_eq!(refusal.code, "EINVAL");
        assert!(refusal.error.contains("unknown field `locket`"), "{}", refusal.error);
    }
}

#[test]
fn a_reply_without_its_field_is_none() {
    for (request, _, reply, _) in all() {
        let fields = serde_json::Map::new();
        assert_eq!(request.reply(fields).is_ok(), reply == Reply::Done {}, "{request:?}");
    }
}

#[test]
fn owner_and_lock_may_be_left_out() {
    let line = br#"{"op":"add","name":"a","start":1,"length":2,"action":"log"}"#;
    let Ok(Request::Add(rule)) = Request::parse(line) else { panic!("it is a request") };
    assert_eq!((rule.owner, rule.locked), (0, false));
}

#[test]
fn what_is_not_a_request_is_refused_briefly() {
    let long = format!(r#"{{"op":"{}"}}"#, "x".repeat(100_000));
    let deep = "[".repeat(100_000);
    for line in [
        b"".as_slice(),
        b"\n",
        b"{}",
        b"null",
        b"[]",
        b"\xff\xfe",
        br#"{"op":"show"} {"op":"show"}"#,
        br#"{"op":"get","gfn":-1,"pages":1}"#,
        br#"{"op":"get","gfn":1,"pages":4294967296}"#,
        br#"{"op":"get","gfn":1.5,"pages":1}"#,
        br#"{"op":"get","gfn":1,"gfn":2,"pages":1}"#,
        br#"{"op":"remove","rule":null}"#,
        br#"{"op":"SHOW"}"#,
        long.as_bytes(),
        deep.as_bytes(),
    ] {
        let Refusal { code, error } = Request::parse(line).expect_err("not a request");
        assert_eq!(code, "EINVAL");
        assert!(error.len() < 2_000 && error.starts_with("not a request: "), "{error}");
    }
}

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::json;
use subpage_kvm::control::protocol::{
    HeatSubPage, NewRule, Request, RuleRef, ShownMaps, ShownRule,
};

use super::*;

pub(crate) fn rule(rule: u64, name: &str, start: u64, exits: u64, denied: u64) -> ShownRule {
    let new = NewRule {
        name: name.to_owned(),
        start,
        length: 128,
        action: "deny".to_owned(),
        owner: 0,
        locked: false,
    };
    ShownRule {
        rule,
        new,
        spent: false,
        waits_for: None,
        exits,
        exits_alone: exits,
        checked: denied,
        overruled: 0,
        logged: 0,
        denied,
    }
}

pub(crate) fn shown(rules: Vec<ShownRule>) -> Shown {
    Shown {
        state: "running".to_owned(),
        held: None,
        failure: None,
        cpus: 2,
        memory: 256 << 20,
        writes: rules.iter().map(|rule| rule.exits).sum(),
        rules,
        access_maps: ShownMaps::default(),
        trackings: Vec::new(),
        trapped_pages: 3,
    }
}

pub(crate) fn page(gfn: u64, map: u32, cells: &[(u8, u64, u64)]) -> HeatPage {
    let sub_page = |&(sub_page, writes, denied)| HeatSubPage { sub_page, writes, denied };
    HeatPage {
        gfn,
        map,
        writes: cells.iter().map(|(_, writes, _)| writes).sum(),
        sub_pages: cells.iter().map(sub_page).collect(),
    }
}

pub(crate) fn look(seconds: u64, rules: Vec<ShownRule>, hottest: Vec<HeatPage>) -> Look {
    let counted = hottest.len() as u64;
    let heat = Some(Heat { hottest, counted, omitted: 0 });
    Look { at: Duration::from_secs(seconds), shown: Box::new(shown(rules)), heat }
}

pub(crate) fn new() -> Model {
    Model::new("/run/user/1000/subpage/7590.sock", Duration::from_secs(1))
}

fn press(model: &mut Model, code: KeyCode) -> Option<Ask> {
    model.key(KeyEvent::new(code, KeyModifiers::NONE))
}

pub(crate) fn event(model: &mut Model, object: serde_json::Value) {
    let serde_json::Value::Object(object) = object else { panic!("an object") };
    model.event(&object);
}

fn names(model: &Model) -> Vec<&str> {
    model.rules.iter().map(|rule| rule.name.as_str()).collect()
}

#[test]
fn rates_are_those_of_the_last_interval_and_order_the_rules() {
    let mut model = new();
    model.look(look(1, vec![rule(1, "a", 0, 100, 0), rule(2, "b", 128, 5, 0)], Vec::new()));
    assert_eq!(names(&model), ["a", "b"], "by their totals");
    assert_eq!(model.rules[0].exits.rate, None);
    let rules = vec![rule(1, "a", 0, 101, 0), rule(2, "b", 128, 25, 2), rule(3, "c", 256, 8, 0)];
    model.look(look(3, rules, Vec::new()));
    assert_eq!(names(&model), ["b", "c", "a"]);
    let rates: Vec<_> = model.rules.iter().map(|rule| rule.exits.rate).collect();
    assert_eq!(rates, [Some(10.0), Some(4.0), Some(0.5)], "what was added began with nothing");
    assert_eq!(model.rules[0].denied, Count { total: 2, rate: Some(1.0) });
    press(&mut model, KeyCode::Char('o'));
    press(&mut model, KeyCode::Char('o'));
    assert_eq!(names(&model), ["a", "b", "c"], "by address");
}

#[test]
fn the_selection_stays_with_its_rule() {
    let mut model = new();
    model.look(look(1, vec![rule(1, "a", 0, 9, 0), rule(2, "b", 128, 5, 0)], Vec::new()));
    press(&mut model, KeyCode::Down);
    model.look(look(2, vec![rule(1, "a", 0, 9, 0), rule(2, "b", 128, 50, 0)], Vec::new()));
    assert_eq!((names(&model)[0], model.rule_index()), ("b", 0));
    press(&mut model, KeyCode::Down);
    press(&mut model, KeyCode::Down);
    assert_eq!(model.rule_index(), 1);
    // It is gone: the first row takes its place.
    model.look(look(3, vec![rule(2, "b", 128, 50, 0)], Vec::new()));
    assert_eq!(model.rule_index(), 0);
}

#[test]
fn cells_have_rates_and_a_page_that_was_not_there_began_with_nothing() {
    let mut model = new();
    model.look(look(1, Vec::new(), vec![page(2, !0, &[(3, 100, 0)])]));
    model.look(look(3, Vec::new(), vec![page(2, !8, &[(3, 104, 2)]), page(9, !0, &[(0, 50, 0)])]));
    let [first, second] = &model.pages[..] else { panic!("two pages") };
    assert_eq!((first.gfn, first.sub_pages[0].rate), (9, Some(25.0)));
    assert_eq!((second.sub_pages[3].rate, second.denied[3].rate), (Some(2.0), Some(1.0)));
    assert_eq!(second.guarded, AccessMap::from_bits(8));
    press(&mut model, KeyCode::Char('t'));
    assert_eq!(model.pages[0].gfn, 2, "by totals");
    // Where not all pages are told, one that comes may have been written before.
    let heat = |at, hottest| {
        let heat = Some(Heat { hottest, counted: 600, omitted: 0 });
        Look { at: Duration::from_secs(at), shown: Box::new(shown(Vec::new())), heat }
    };
    model.look(heat(4, vec![page(2, !0, &[(3, 104, 2)])]));
    model.look(heat(5, vec![page(7, !0, &[(3, 900, 0)])]));
    assert_eq!(model.pages[0].writes.rate, None);
}

use subpage::access::AccessMap;

#[test]
fn keys_ask_for_what_they_say() {
    let mut model = new();
    assert_eq!(press(&mut model, KeyCode::Char('a')), None, "there is no rule");
    press(&mut model, KeyCode::Char('x'));
    assert_eq!(model.overlay, Overlay::None);
    model.look(look(1, vec![rule(7, "path", 0, 9, 0)], Vec::new()));
    let asked = press(&mut model, KeyCode::Char('a'));
    let number = || RuleRef::Number(7);
    assert!(
        matches!(asked, Some(Ask::Request { request: Request::Arm { rules }, .. }) if rules == [number()])
    );
    for (answer, does) in [('n', false), ('q', false), ('y', true)] {
        assert_eq!(press(&mut model, KeyCode::Char('x')), None, "a question comes first");
        assert!(
            matches!(&model.overlay, Overlay::Confirm { question, .. } if question.contains("path"))
        );
        let asked = press(&mut model, KeyCode::Char(answer));
        let removes = matches!(asked, Some(Ask::Request { request: Request::Remove { rule }, .. }) if rule == number());
        assert_eq!(removes, does, "{answer}");
        assert_eq!(model.overlay, Overlay::None);
    }
    let request = |model: &mut Model| match press(model, KeyCode::Char('p')) {
        Some(Ask::Request { request, .. }) => request,
        other => panic!("{other:?}"),
    };
    assert_eq!(request(&mut model), Request::Pause);
    model.state.as_mut().expect("a look").word = "held".to_owned();
    assert_eq!(request(&mut model), Request::Resume);
    let control = |letter| KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL);
    assert_eq!(model.key(control('c')), Some(Ask::Quit));
    assert_eq!(model.key(control('z')), Some(Ask::Suspend));
    press(&mut model, KeyCode::Char('?'));
    assert_eq!(model.key(control('c')), Some(Ask::Quit), "whatever lies over it");
    assert_eq!(press(&mut model, KeyCode::Char('q')), Some(Ask::Quit));
}

pub(crate) fn denied(number: u64) -> serde_json::Value {
    json!({
        "v": 1, "type": "denied", "seq": number, "rule": "helper path", "action": "deny",
        "verdict": "denied", "write": 1000 + number, "gpa": "0x10e17d", "length": 4, "sub_page": 3,
        "pc": "0x401234", "pc_symbol": "sys_write", "pc_offset": 16, "source": null,
        "call_trace": ["vfs_write+0xc7"], "process": null, "process_name": null,
        "task": {"pid": 17, "tid": 18, "name": "sh", "uid": 0}, "vcpu": 1, "rule_id": 7,
        "pc_exact": true, "cpl": 0, "cr3": null, "gla": null, "at": "0x10e180", "bytes": "2f747c1b",
        "instruction": null, "text": "mov [rdi],eax", "time": "2026-11-27T17:30:00.000000Z",
        "since_start": 1.25, "time_stamp_counter": null, "response": "fault", "delivery": false,
        "software": false, "qualification": null,
    })
}

#[test]
fn the_latest_events_are_kept_and_all_are_counted() {
    let mut model = new();
    for number in 0..10_000 {
        event(&mut model, denied(number));
    }
    event(&mut model, json!({"type": "dropped", "events": 90_000}));
    assert_eq!(model.events.rows().len(), KEPT);
    assert_eq!((model.events.seen(), model.events.lost()), (100_000, 90_000));
    let rows = model.events.rows();
    assert_eq!((rows[0].word.as_str(), rows[0].tone), ("lost", Tone::Bad));
    let row = &rows[1];
    assert_eq!((row.rule.as_str(), row.bytes.as_str()), ("helper path", "4 at 0x10e17d"));
    assert_eq!((row.by.as_str(), row.process.as_str()), ("sys_write+0x10", "17 sh"));
    assert!(row.whole.contains("write 10,999") && row.whole.contains("called by vfs_write+0xc7"));
}

#[test]
fn a_selected_event_stays_until_it_is_dropped() {
    let mut model = new();
    model.focus = Pane::Events;
    for number in 0..3 {
        event(&mut model, denied(number));
    }
    press(&mut model, KeyCode::Down);
    event(&mut model, denied(3));
    assert_eq!(model.event_index(), 2);
    press(&mut model, KeyCode::Enter);
    assert!(matches!(&model.overlay, Overlay::Event(row) if row.whole.contains("write 1,001")));
    for number in 0..2 * KEPT as u64 {
        event(&mut model, denied(number));
    }
    assert_eq!(model.event_index(), KEPT - 1, "the oldest that is left");
}

#[test]
fn what_a_server_says_is_made_harmless_and_short() {
    let long = "a\u{1b}[2J".repeat(100_000);
    let mut model = Model::new(&long, Duration::from_secs(1));
    let mut hostile = rule(1, &long, u64::MAX, u64::MAX, u64::MAX);
    (hostile.new.length, hostile.waits_for) = (u64::MAX, Some(long.clone()));
    hostile.new.action.clone_from(&long);
    let mut look = look(1, vec![hostile], vec![page(u64::MAX, 0, &[(255, u64::MAX, u64::MAX)])]);
    look.shown.failure = Some(long.clone());
    look.shown.state.clone_from(&long);
    model.look(look);
    let mut told = denied(1);
    for key in ["rule", "pc_symbol", "text"] {
        told[key] = json!(long);
    }
    told["task"]["name"] = json!(long);
    event(&mut model, told);
    event(
        &mut model,
        json!({"type": "armed", "rules": [long], "by": long, "time": "2026-11-27T17:30:00Z", "since_start": 1e300}),
    );
    for broken in
        [json!({}), json!({"type": 7}), json!({"type": "denied"}), json!({"type": "armed"})]
    {
        event(&mut model, broken);
    }
    model.say(&long, Tone::Bad, Duration::ZERO);
    let rule = &model.rules[0];
    let state = model.state.as_ref().expect("a look");
    let mut texts = vec![&model.socket, &rule.name, &rule.action, &state.word];
    texts.extend([rule.waits_for.as_ref(), state.reason.as_ref()].into_iter().flatten());
    for row in model.events.rows() {
        texts.extend([&row.rule, &row.by, &row.process]);
        assert!(row.whole.len() < 100_000 && !row.whole.contains('\u{1b}'));
    }
    for text in texts {
        assert!(text.len() < 2000 && !text.contains(char::is_control), "{text}");
    }
    let (message, _) = model.message(Duration::ZERO).expect("it is new");
    assert!(!message.contains('\u{1b}'));
    assert_eq!(model.message(Duration::from_secs(60)), None, "it is old");
}

#[test]
fn a_server_that_says_nothing_is_noticed() {
    let mut model = new();
    let at = Duration::from_secs;
    assert_eq!(model.silent_for(at(2)), None);
    assert_eq!(model.silent_for(at(4)), Some(at(4)));
    model.look(look(10, Vec::new(), Vec::new()));
    assert_eq!((model.silent_for(at(13)), model.silent_for(at(14))), (None, Some(at(4))));
    event(&mut model, json!({"type": "end"}));
    assert_eq!(model.silent_for(at(60)), None, "there is nobody to answer");
}

//! Runs that are made up, so that output can be checked without a guest.

use std::time::Duration;

use subpage::address::{ByteRange, Gpa};
use subpage::rules::{Action, Owner, Rule, RuleId, RuleName};
use subpage_cli::events::{LiveStart, RuleEvent, RunHeader, StartEvent};
use subpage_cli::heat::Heat;
use subpage_cli::policy::PolicyRule;
use subpage_cli::summary::{
    EndingKind, HotPage, LiveSummary, MAX_FIRST_DENIALS, RuleSummary, Summary,
};
use subpage_trap::{Address, Event, Function, Record, SourceLine, Verdict, When};

/// A rule of a made-up policy.
pub(crate) fn rule(name: &str, start: u64, length: u64, action: Action, line: usize) -> PolicyRule {
    let range = ByteRange::new(Gpa::new(start), length).expect("a range");
    let name = RuleName::new(name).expect("a name");
    let rule = Rule { name, range, owner: Owner::HOST, action, locked: false };
    PolicyRule { rule, arm: None, file: "policy.toml".into(), line }
}

/// A run of made-up writes under a policy, decided byte by byte.
pub(crate) struct Run {
    pub(crate) start: StartEvent,
    pub(crate) events: Vec<Record>,
    pub(crate) summary: Summary,
}

fn header() -> RunHeader {
    RunHeader {
        tool_version: "0.0.0".to_owned(),
        host: Some("a \u{1b}host".to_owned()),
        command: ["subpage", "guard", "-p", "policy.toml", "<b>guest"].map(str::to_owned).into(),
        policy_sha256: Some("ab".repeat(32)),
        started: "2026-11-27T09:00:00.5Z".parse().expect("a time"),
    }
}

/// Runs `writes` (address, length, pc) through `rules`; the strongest touched rule decides.
pub(crate) fn run(guest: &str, rules: &[PolicyRule], writes: &[(u64, u64, u64)]) -> Run {
    let ranges: Vec<_> = rules.iter().map(|rule| rule.rule.range).collect();
    let mut heat = Heat::around(&ranges);
    let mut summaries: Vec<_> = rules.iter().map(RuleSummary::new).collect();
    let mut events = Vec::new();
    let mut first_denials = Vec::new();
    let (mut exits_page, mut exits_sub_page) = (0, 0);
    for (number, (address, length, pc)) in (1..).zip(writes) {
        let bytes = ByteRange::new(Gpa::new(*address), *length).expect("a range");
        let widened = |range: ByteRange, unit: u64| {
            let first = range.first().as_u64() / unit;
            let last = range.last().as_u64() / unit;
            first <= bytes.last().as_u64() / unit && bytes.first().as_u64() / unit <= last
        };
        exits_page += u64::from(ranges.iter().any(|range| widened(*range, 4096)));
        exits_sub_page += u64::from(ranges.iter().any(|range| widened(*range, 128)));
        let decider = (0..rules.len())
            .filter(|rule| ranges[*rule].intersection(bytes).is_some())
            .max_by_key(|rule| rules[*rule].rule.action);
        let denied = decider.is_some_and(|rule| rules[rule].rule.action >= Action::Deny);
        heat.count(bytes, denied);
        let in_page: Vec<_> =
            (0..rules.len()).filter(|rule| widened(ranges[*rule], 4096)).collect();
        for &rule in &in_page {
            summaries[rule].exits += 1;
            summaries[rule].exits_alone += u64::from(in_page.len() == 1);
        }
        for (index, summary) in summaries.iter_mut().enumerate() {
            if widened(ranges[index], 128) {
                summary.checked += 1;
                let meets = ranges[index].intersection(bytes).is_some();
                let counter = match (decider == Some(index), denied) {
                    (false, _) if meets => &mut summary.overruled,
                    (false, _) => &mut summary.allowed,
                    (true, false) => &mut summary.logged,
                    (true, true) => &mut summary.denied,
                };
                *counter += 1;
            }
        }
        let Some(decider) = decider else { continue };
        let met = ranges[decider].intersection(bytes).expect("it decided");
        let verdict = if denied { Verdict::Denied } else { Verdict::Logged };
        let mut event = Event {
            rule: Some(RuleId(decider as u64 + 1)),
            at: met.first(),
            ..Event::bare(verdict, rules[decider].rule.action, bytes)
        };
        event.origin.rip = (*pc != 0).then_some(*pc);
        let name = "parse_record".to_owned();
        let known = *pc == 0x40_11d6;
        let event = Record {
            rule_name: Some(rules[decider].rule.name.as_str().to_owned()),
            function: known.then_some(Function { name, offset: 0x16 }),
            source: known.then(|| SourceLine { file: "src/counter.c".to_owned(), line: 57 }),
            ..Record::new(events.len() as u64 + 1, number, event)
        };
        if denied {
            summaries[decider].first_denial.get_or_insert_with(|| event.clone());
            if first_denials.len() < MAX_FIRST_DENIALS {
                first_denials.push(event.clone());
            }
        }
        events.push(event);
    }
    for (range, summary) in ranges.iter().zip(&mut summaries) {
        summary.hottest_page = hottest_page(*range, writes);
    }
    let heat_omitted = heat.omitted();
    let heat = heat.into_pages();
    let guarded = || heat.iter().filter(|page| !page.rules.is_empty());
    let header = header();
    let summary = Summary {
        header: header.clone(),
        guest: guest.to_owned(),
        policy: "policy.toml".to_owned(),
        backend: "model".to_owned(),
        writes: writes.len() as u64,
        bytes: writes.iter().map(|(_, length, _)| length).sum(),
        rules: summaries,
        exits_page,
        exits_sub_page,
        pages_protected: guarded().count() as u64,
        sub_pages_protected: guarded().map(|page| u64::from(page.guarded().count())).sum(),
        stopped_at: None,
        warnings: Vec::new(),
        elapsed: Some(Duration::from_millis(40)),
        live: None,
        first_denials,
        heat,
        heat_omitted,
    };
    let start = StartEvent {
        header,
        guest: guest.to_owned(),
        policy: "policy.toml".to_owned(),
        backend: "model".to_owned(),
        rules: rules.iter().map(RuleEvent::from).collect(),
        live: None,
    };
    Run { start, events, summary }
}

/// The first of the range's pages with the most writes.
fn hottest_page(range: ByteRange, writes: &[(u64, u64, u64)]) -> Option<HotPage> {
    let of = |page: &u64| {
        let meets = |(first, length, _): &&(u64, u64, u64)| {
            first / 4096 <= *page && *page <= (first + length - 1) / 4096
        };
        writes.iter().filter(meets).count() as u64
    };
    let pages = range.first().as_u64() / 4096..=range.last().as_u64() / 4096;
    let page = pages.rev().max_by_key(of)?;
    let writes = of(&page);
    (writes > 0).then_some(HotPage { page: Address(page * 4096), writes })
}

/// Counters beside a path in one page, and a bug that writes over the path.
pub(crate) fn counter() -> Run {
    let rules = [
        rule("helper path", 0x10_c800, 0x100, Action::Deny, 5),
        rule("limits", 0x10_c9c0, 0x20, Action::Log, 10),
    ];
    let mut writes = Vec::new();
    for index in 0..100_000_u64 {
        writes.push((0x10_c000 + index % 7 * 8, 8, 0x40_1136));
        if index % 3 == 0 {
            writes.push((0x10_c180 + index % 48 * 8, 8, 0x40_1140));
        }
        if index % 10 == 0 {
            writes.push((0x10_d000 + index % 500 * 4, 4, 0x40_1200));
        }
        if index % 1000 == 0 {
            writes.push((0x10_c980 + index % 3 * 32, 8, 0x40_1180));
        }
        if index > 90_000 && index % 40 == 0 {
            writes.push((0x10_c7f8 + index % 11, 16, 0x40_11d6));
        }
    }
    run("counter.sptrace", &rules, &writes)
}

/// Nothing is denied.
pub(crate) fn quiet() -> Run {
    let rules = [rule("helper path", 0x10_c800, 0x100, Action::Deny, 5)];
    let writes: Vec<_> = (0..5000).map(|index| (0x10_c000 + index % 64 * 8, 8, 0)).collect();
    run("quiet.sptrace", &rules, &writes)
}

/// Thirty rules far apart, with hostile names among them.
pub(crate) fn thirty() -> Run {
    let rules: Vec<_> = (0..30)
        .map(|index: u64| {
            let name = match index {
                3 => "<script>alert(1)</script>".to_owned(),
                4 => "a name of sixty-two bytes, which is the most that is allowed !".to_owned(),
                5 => "\u{202e}turned\" onload=\"x".to_owned(),
                _ => format!("table {index}"),
            };
            let actions = [Action::Deny, Action::Log, Action::AllowOnce, Action::Stop];
            let action = actions[usize::try_from(index % 4).expect("small")];
            rule(
                &name,
                0x7f00_0000_0000 + index * 0x1880,
                0x40 << (index % 6),
                action,
                4 + 5 * usize::try_from(index).expect("small"),
            )
        })
        .collect();
    let writes: Vec<_> = (0..40_000_u64)
        .map(|index| {
            (0x7f00_0000_0000 + index * index * 13 % 0x31000, 1 + index % 16, 0x40_1000 + index % 9)
        })
        .collect();
    run("a <b>bold</b> guest \u{1b}[31m.sptrace", &rules, &writes)
}

/// A guest on KVM that was denied, with what only such guests have.
pub(crate) fn live() -> Run {
    let rules = [
        rule("helper path", 0x10_c800, 0x100, Action::Deny, 5),
        rule("limits", 0x10_c9c0, 0x20, Action::Log, 10),
    ];
    let writes = [
        (0x10_c9c8, 8, 0x40_1180),
        (0x10_c7fc, 8, 0x40_11d6),
        (0x10_c000, 8, 0x40_1136),
        (0x10_c8f8, 16, 0),
    ];
    let mut run = run("guest.elf", &rules, &writes);
    for (number, event) in (0_u32..).zip(&mut run.events) {
        let length = usize::try_from(event.event.length.expect("of a trace")).expect("small");
        let found = number != 2;
        event.text = found.then(|| "mov [rdi],\u{1b}rax".to_owned());
        let name = "copy_\u{1b}page".to_owned();
        event.function = found.then_some(Function { name, offset: 0x10 * u64::from(number) });
        let file = "mm/copy_\u{1b}page.c".to_owned();
        event.source = (number < 2).then_some(SourceLine { file, line: 40 + number });
        let gpa = event.event.gpa.as_u64();
        let event = &mut event.event;
        event.rule = Some(RuleId(1));
        let origin = &mut event.origin;
        (origin.vcpu, origin.rip_exact) = (number % 2, number != 1);
        (origin.cpl, origin.cr3) = (Some(3), Some(0x1000));
        event.when = When::Clock {
            unix: Duration::from_micros(1_764_216_000_123_456 + u64::from(number)),
            since_start: Duration::from_micros(1_000_123 * u64::from(number)),
        };
        event.gla = found.then_some(0x7fff_0000_0000 + gpa);
        (event.at, event.in_software) = (event.gpa, true);
        event.bytes = b"/sbin/\x1b\0modprobe".repeat(2)[..length].to_vec();
        event.instruction = [0x48, 0x89, 0x07].into_iter().collect();
    }
    run.summary.first_denials =
        run.events.iter().filter(|event| event.event.verdict.is_denial()).cloned().collect();
    run.summary.rules[0].first_denial = run.summary.first_denials.first().cloned();
    // One more was added over the control socket.
    let mut added = run.summary.rules[1].clone();
    (added.name, added.file, added.line) = ("added".to_owned(), None, None);
    (added.checked, added.allowed, added.overruled) = (4, 1, 2);
    run.summary.rules.push(added);
    for (rule, per_second) in run.summary.rules.iter_mut().zip([100.0, 12_345.678, 0.25]) {
        rule.exits_per_second = Some(per_second);
    }
    for backend in [&mut run.summary.backend, &mut run.start.backend] {
        "kvm".clone_into(backend);
    }
    run.summary.live = Some(LiveSummary {
        kind: EndingKind::Failed,
        exit_code: None,
        message: "processor 1 cannot continue: KVM cannot \u{1b}emulate; rip 0x401234".to_owned(),
        panic_console: Vec::new(),
        console_shown: true,
        denied_by_maps: 1,
        events_dropped: 1200,
        console_dropped: 70_000,
        notices_dropped: 3,
    });
    run.start.live = Some(LiveStart {
        gdb: None,
        cpus: 2,
        memory: 128 << 20,
        trap: "mprotect",
        control: "/run/user/0/subpage/1.sock".to_owned(),
        metrics: Some("http://127.0.0.1:9464/metrics".to_owned()),
    });
    run
}
